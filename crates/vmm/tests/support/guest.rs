//! The smallest guest: an init of a few instructions, as a static ELF program, and the kernel to run it.

use std::path::{Path, PathBuf};

/// What the guest prints.
pub(crate) const GREETING: &str = "manta test guest: hello\n";

/// What it does then.
pub(crate) enum Then {
    /// Waits for ever.
    Wait,
    /// Ends, which is the death of a kernel's first process.
    Exit,
}

/// An init for x86-64 Linux.
pub(crate) fn init(then: Then) -> Vec<u8> {
    const HEADERS: usize = 0x40 + 56;
    const BASE: u64 = 0x40_0000;
    let end: &[u8] = match then {
        Then::Wait => &[
            0xb8, 34, 0, 0, 0, // mov eax, pause
            0x0f, 0x05, // syscall
            0xeb, 0xf7, // jmp to the start of this
        ],
        Then::Exit => &[
            0xb8, 60, 0, 0, 0, // mov eax, exit
            0x31, 0xff, // xor edi, edi
            0x0f, 0x05, // syscall
        ],
    };
    let mut code = vec![0xb8, 1, 0, 0, 0]; // mov eax, write
    code.extend([0xbf, 1, 0, 0, 0]); // mov edi, stdout
    code.push(0xba); // mov edx, length
    code.extend((GREETING.len() as u32).to_le_bytes());
    code.extend([0x48, 0x8d, 0x35]); // lea rsi, [rip + what is between here and the greeting]
    code.extend((2 + end.len() as u32).to_le_bytes());
    code.extend([0x0f, 0x05]); // syscall
    code.extend(end);
    code.extend(GREETING.as_bytes());

    let mut elf = b"\x7fELF\x02\x01\x01".to_vec();
    elf.resize(16, 0);
    let length = (HEADERS + code.len()) as u64;
    let half = |elf: &mut Vec<u8>, numbers: &[u16]| numbers.iter().for_each(|n| elf.extend(n.to_le_bytes()));
    let word = |elf: &mut Vec<u8>, numbers: &[u32]| numbers.iter().for_each(|n| elf.extend(n.to_le_bytes()));
    let long = |elf: &mut Vec<u8>, numbers: &[u64]| numbers.iter().for_each(|n| elf.extend(n.to_le_bytes()));
    half(&mut elf, &[2, 62]); // executable, x86-64
    word(&mut elf, &[1]);
    long(&mut elf, &[BASE + HEADERS as u64, 0x40, 0]); // entry, program headers, no section headers
    word(&mut elf, &[0]);
    half(&mut elf, &[0x40, 56, 1, 0, 0, 0]);
    word(&mut elf, &[1, 5]); // one segment: load, read and execute
    long(&mut elf, &[0, BASE, BASE, length, length, 0x1000]);
    elf.extend(code);
    elf
}

/// The guest kernel: `MANTA_KERNEL_PATH`, which must exist if set, or what the image build has made.
pub(crate) fn kernel() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("MANTA_KERNEL_PATH") {
        let path = PathBuf::from(path);
        assert!(path.is_file(), "MANTA_KERNEL_PATH={} is no file", path.display());
        return Some(path);
    }
    let built = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../guest-artifacts/vmlinux");
    if built.is_file() {
        return Some(built);
    }
    println!("skipped: no guest kernel (neither MANTA_KERNEL_PATH nor guest-artifacts/vmlinux)");
    None
}
