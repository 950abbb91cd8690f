//! Whether a file is a program that runs in a guest without any library: just enough of the ELF header.

/// `Err` says what is wrong with a program that has to run as x86-64 Linux without a dynamic loader.
pub(crate) fn check_static(program: &[u8]) -> Result<(), &'static str> {
    const PT_INTERP: u32 = 3;
    const MACHINE_X86_64: u16 = 62;
    const TRUNCATED: &str = "its ELF header is cut off";

    // Offsets: System V ABI, "ELF-64 Object File Format".
    if program.get(..4) != Some(b"\x7fELF") {
        return Err("it is not an ELF program");
    }
    if program.get(4..6) != Some(&[2, 1]) || u16_at(program, 18) != Some(MACHINE_X86_64) {
        return Err("it is not a program for x86-64");
    }
    let table = u64_at(program, 32).ok_or(TRUNCATED)?;
    let entry_size = u64::from(u16_at(program, 54).ok_or(TRUNCATED)?);
    let entries = u64::from(u16_at(program, 56).ok_or(TRUNCATED)?);
    if entries == 0 {
        return Err("it is not linked");
    }
    for entry in 0..entries {
        let offset = table.checked_add(entry * entry_size).and_then(|offset| usize::try_from(offset).ok());
        match offset.and_then(|offset| u32_at(program, offset)) {
            Some(PT_INTERP) => return Err("it is linked dynamically, and a guest may hold no libraries"),
            Some(_) => {}
            None => return Err(TRUNCATED),
        }
    }
    Ok(())
}

fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(offset..offset.checked_add(2)?)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(offset..offset.checked_add(4)?)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], offset: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(offset..offset.checked_add(8)?)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A header and two program headers of the given types.
    fn program(types: [u32; 2]) -> Vec<u8> {
        let mut bytes = vec![0; 64];
        bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
        bytes[18] = 62;
        bytes[32] = 64;
        bytes[54] = 56;
        bytes[56] = 2;
        for kind in types {
            bytes.extend(kind.to_le_bytes());
            bytes.extend([0; 52]);
        }
        bytes
    }

    #[test]
    fn a_static_program_is_accepted() {
        assert_eq!(check_static(&program([1, 2])), Ok(()));
    }

    #[test]
    fn a_program_with_an_interpreter_is_refused() {
        assert!(check_static(&program([1, 3])).unwrap_err().contains("dynamically"));
        let this_test = std::fs::read("/proc/self/exe").unwrap();
        assert!(check_static(&this_test).unwrap_err().contains("dynamically"));
    }

    #[test]
    fn other_files_are_refused() {
        assert!(check_static(b"#!/bin/sh\n").unwrap_err().contains("not an ELF"));
        assert!(check_static(b"").unwrap_err().contains("not an ELF"));
        let mut arm = program([1, 2]);
        arm[18] = 183;
        assert!(check_static(&arm).unwrap_err().contains("x86-64"));
    }

    #[test]
    fn a_program_cut_anywhere_is_refused_and_never_panics() {
        let whole = program([1, 2]);
        for length in 0..124 {
            assert!(check_static(&whole[..length]).is_err(), "{length} bytes were accepted");
        }
        let mut far = program([1, 2]);
        far[32..40].copy_from_slice(&u64::MAX.to_le_bytes());
        assert!(check_static(&far).is_err());
    }
}
