//! The files that a program needs to run: its dynamic linker, and the libraries which that finds. Reads just enough
//! of ELF to find the linker.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::JailError;
use crate::process::{Confinement, Credentials, Process, ProcessError, Spawn};

/// The linker takes some 10 ms.
const TIMEOUT: Duration = Duration::from_secs(10);
/// It finds libraries without it, too, but not in places that a distribution added.
const CACHE: &str = "/etc/ld.so.cache";

/// Of a program that is linked statically there are none.
pub(super) fn of(program: &Path) -> Result<Vec<PathBuf>, JailError> {
    let read = |source| JailError::Content { path: program.to_owned(), source };
    let no_program = || JailError::NoProgram { path: program.to_owned() };
    let file = File::open(program).map_err(read)?;
    let linker = match interpreter(&file).map_err(read)? {
        Elf::None => return Err(no_program()),
        Elf::Static => return Ok(Vec::new()),
        Elf::Dynamic(linker) => linker,
    };
    let said =
        ask(&linker, program).map_err(|source| JailError::Libraries { path: program.to_owned(), source })?;
    let mut files = parse(&said).ok_or_else(|| JailError::Linker { path: program.to_owned(), said })?;
    files.push(linker);
    files.extend(Some(PathBuf::from(CACHE)).filter(|cache| cache.is_file()));
    Ok(files)
}

fn ask(linker: &Path, program: &Path) -> Result<String, ProcessError> {
    let process = Process::spawn(Spawn {
        program: linker,
        args: &[OsString::from("--list"), program.as_os_str().to_owned()],
        dir: Path::new("/"),
        netns: None,
        credentials: &Credentials { uid: 0, gid: 0, groups: Vec::new() },
        fds: Vec::new(),
        confinement: Confinement::default(),
    })?;
    process.wait_timeout(TIMEOUT)?;
    Ok(process.output())
}

/// Lines like `libc.so.6 => /lib/libc.so.6 (0x7f…)` or `/lib/libc.so.6 (0x7f…)`; one that has no file, as `=> not
/// found`, spoils all, but not what is in the kernel (`linux-vdso.so.1`).
fn parse(said: &str) -> Option<Vec<PathBuf>> {
    let mut files = Vec::new();
    for line in said.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let name = line.split_once(" => ").map_or(line, |(_, file)| file);
        let (file, _address) = name.rsplit_once(" (0x")?;
        if file.starts_with('/') {
            files.push(PathBuf::from(file));
        } else if line.contains(" => ") {
            return None;
        }
    }
    Some(files)
}

#[derive(Debug, PartialEq, Eq)]
enum Elf {
    None,
    Static,
    Dynamic(PathBuf),
}

/// What the kernel starts the program with. Offsets: System V ABI, "ELF-64 Object File Format".
fn interpreter(file: &File) -> io::Result<Elf> {
    const PT_INTERP: u32 = 3;
    let mut header = [0; 64];
    if file.read_exact_at(&mut header, 0).is_err() || header[..6] != *b"\x7fELF\x02\x01" {
        return Ok(Elf::None);
    }
    let table = u64_at(&header, 32);
    let [size, count] =
        [54, 56].map(|offset| u64::from(u16::from_le_bytes([header[offset], header[offset + 1]])));
    for entry in 0..count {
        let mut bytes = [0; 56];
        file.read_exact_at(&mut bytes, table.wrapping_add(entry * size))?;
        if bytes[..4] == PT_INTERP.to_le_bytes() {
            // No path is longer.
            let length = u64_at(&bytes, 32).min(4096) as usize;
            let mut path = vec![0; length];
            file.read_exact_at(&mut path, u64_at(&bytes, 8))?;
            let path = path.strip_suffix(b"\0").unwrap_or(&path);
            return Ok(Elf::Dynamic(OsStr::from_bytes(path).into()));
        }
    }
    Ok(Elf::Static)
}

fn u64_at<const N: usize>(bytes: &[u8; N], offset: usize) -> u64 {
    let mut number = [0; 8];
    number.copy_from_slice(&bytes[offset..offset + 8]);
    u64::from_le_bytes(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_read_from_what_the_linker_says() {
        let said = "\tlinux-vdso.so.1 (0x00007ffd)\n\tlibz.so.1 => /lib/a b/libz.so.1 (0x00007f25)\n\t\
            /lib64/ld-linux-x86-64.so.2 (0x00007f2f)\n";
        let files = ["/lib/a b/libz.so.1", "/lib64/ld-linux-x86-64.so.2"].map(PathBuf::from);
        assert_eq!(parse(said), Some(files.to_vec()));
        assert_eq!(parse("\tlibz.so.1 => not found\n"), None);
        assert_eq!(parse("error while loading shared libraries"), None);
        assert_eq!(parse(""), Some(Vec::new()));
    }

    #[test]
    fn what_is_no_program_has_no_libraries() {
        let script = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(script.path(), "#!/bin/sh\n").unwrap();
        assert!(matches!(of(script.path()), Err(JailError::NoProgram { .. })));
        let files = of(&Path::new("/bin/sh").canonicalize().unwrap()).unwrap();
        assert!(files.iter().any(|file| file.to_string_lossy().contains("/libc.so")), "{files:?}");
        assert!(files.iter().all(|file| file.exists()), "{files:?}");
    }
}
