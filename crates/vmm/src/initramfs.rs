//! Writes the guest's initramfs: the agent as `/init` and the little it needs to start. Format: "newc", see
//! `Documentation/driver-api/early-userspace/buffer-format.rst` of Linux; not compressed, since the kernel
//! copies faster than it unpacks.

use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

/// Why there is no initramfs.
#[derive(Debug, thiserror::Error)]
pub enum InitramfsError {
    /// The agent could not be read.
    #[error("cannot read the agent {path}")]
    Read {
        /// The agent.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The agent is not a program for a guest.
    #[error("the agent {path} cannot be a guest's init: {reason}")]
    Unfit {
        /// The agent.
        path: PathBuf,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The initramfs could not be written.
    #[error("cannot write the initramfs {path}")]
    Write {
        /// The initramfs.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const CONSOLE: u32 = 0o020_600;

/// Writes an initramfs with `agent` as `/init` to `out`, which is replaced at once or not at all, and readable
/// for every user.
///
/// # Errors
/// When the agent cannot be read or is not a statically linked x86-64 ELF program, or `out` not written.
pub fn write_initramfs(agent: &Path, out: &Path) -> Result<(), InitramfsError> {
    let init = fs::read(agent).map_err(|source| InitramfsError::Read { path: agent.to_owned(), source })?;
    if let Some(reason) = unfit(&init) {
        return Err(InitramfsError::Unfit { path: agent.to_owned(), reason });
    }
    write_replacing(out, &archive(&init))
        .map_err(|source| InitramfsError::Write { path: out.to_owned(), source })
}

fn write_replacing(out: &Path, bytes: &[u8]) -> io::Result<()> {
    let dir = out.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut temporary = NamedTempFile::new_in(dir)?;
    temporary.write_all(bytes)?;
    temporary.as_file().set_permissions(Permissions::from_mode(0o644))?;
    temporary.as_file().sync_all()?;
    temporary.persist(out)?;
    File::open(dir)?.sync_all()
}

fn archive(init: &[u8]) -> Vec<u8> {
    let mut cpio = Vec::with_capacity(init.len() + 1024);
    let entries: [(&str, u32, u32, &[u8]); 6] = [
        ("dev", DIRECTORY, 0, b""),
        // The kernel opens it for init before init can mount anything on /dev.
        ("dev/console", CONSOLE, rdev_minor(5, 1), b""),
        ("proc", DIRECTORY, 0, b""),
        ("sys", DIRECTORY, 0, b""),
        ("init", PROGRAM, 0, init),
        ("TRAILER!!!", 0, 0, b""),
    ];
    for (number, (name, mode, device, content)) in entries.into_iter().enumerate() {
        let (major, minor) = (device >> 16, device & 0xffff);
        let fields = [
            number as u32 + 1, // inode
            mode,
            0, // user
            0, // group
            1, // links
            0, // modification time: the same input gives the same bytes
            content.len() as u32,
            0, // device of the file itself
            0,
            major,
            minor,
            name.len() as u32 + 1,
            0, // checksum, unused in this format
        ];
        cpio.extend(b"070701");
        for field in fields {
            cpio.extend(format!("{field:08x}").into_bytes());
        }
        cpio.extend(name.as_bytes());
        cpio.push(0);
        pad(&mut cpio);
        cpio.extend(content);
        pad(&mut cpio);
    }
    cpio
}

/// Major in the upper half, minor in the lower.
const fn rdev_minor(major: u32, minor: u32) -> u32 {
    major << 16 | minor
}

fn pad(cpio: &mut Vec<u8>) {
    cpio.resize(cpio.len().next_multiple_of(4), 0);
}

/// Why an ELF file cannot run without a C library and a loader beside it; `elf(5)`.
fn unfit(file: &[u8]) -> Option<&'static str> {
    const PT_INTERP: u64 = 3;
    const X86_64: u64 = 62;
    let number = |offset: usize, length: usize| {
        let bytes = file.get(offset..offset.checked_add(length)?)?;
        Some(bytes.iter().rev().fold(0, |number: u64, byte| number << 8 | u64::from(*byte)))
    };
    let interpreted = || {
        let (table, size, count) = (number(0x20, 8)?, number(0x36, 2)?, number(0x38, 2)?);
        (0..count).try_fold(false, |found, index| {
            let offset = table.checked_add(index * size)?;
            Some(found || number(usize::try_from(offset).ok()?, 4)? == PT_INTERP)
        })
    };
    // 64 bits, little endian.
    if !file.starts_with(b"\x7fELF\x02\x01") || number(0x12, 2) != Some(X86_64) {
        return Some("it is not an x86-64 ELF program");
    }
    match interpreted() {
        Some(false) => None,
        Some(true) => Some("it is linked dynamically (build it with -C target-feature=+crt-static)"),
        None => Some("its ELF headers are cut off"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A static program without content: headers only.
    fn elf(segment: u32) -> Vec<u8> {
        let mut file = vec![0; 0x40];
        file[..6].copy_from_slice(b"\x7fELF\x02\x01");
        file[0x12] = 62;
        file[0x20] = 0x40;
        file[0x36] = 56;
        file[0x38] = 1;
        file.extend(segment.to_le_bytes());
        file.resize(0x40 + 56, 0);
        file
    }

    #[test]
    fn archive_is_a_newc_archive_with_init() {
        let archive = archive(b"program");
        let text = String::from_utf8_lossy(&archive);
        let headers: Vec<&str> = text.split("070701").skip(1).collect();
        assert_eq!(headers.len(), 6);
        assert!(headers[1].contains("00002180") && headers[1].contains("0000000500000001"), "console is 5:1");
        let init = headers[4];
        assert_eq!(&init[8..16], "000081ed");
        assert_eq!(&init[48..56], "00000007");
        assert!(init[104..].starts_with("init\0") && init.contains("program"));
        assert!(headers[5].contains("TRAILER!!!"));
        assert_eq!(archive.len() % 4, 0);
    }

    #[test]
    fn initramfs_replaces_the_old_one_and_is_readable_for_all() {
        let dir = tempfile::tempdir().unwrap();
        let (agent, out) = (dir.path().join("agent"), dir.path().join("initramfs"));
        fs::write(&agent, elf(1)).unwrap();
        fs::write(&out, "old").unwrap();
        write_initramfs(&agent, &out).unwrap();
        assert!(fs::read(&out).unwrap().starts_with(b"070701"));
        assert_eq!(fs::metadata(&out).unwrap().permissions().mode() & 0o777, 0o644);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "nothing temporary left");
    }

    #[test]
    fn what_cannot_be_init_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (agent, out) = (dir.path().join("agent"), dir.path().join("initramfs"));
        let refused = |content: &[u8], part: &str| {
            fs::write(&agent, content).unwrap();
            let error = write_initramfs(&agent, &out).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        };
        refused(&elf(3), "linked dynamically");
        refused(b"#!/bin/sh\n", "not an x86-64 ELF");
        refused(b"", "not an x86-64 ELF");
        refused(&elf(1)[..0x40], "cut off");
        // This test program itself is linked dynamically.
        let this = std::env::current_exe().unwrap();
        assert!(matches!(write_initramfs(&this, &out), Err(InitramfsError::Unfit { .. })));
        assert!(!out.exists());
        let missing = dir.path().join("missing");
        assert!(matches!(write_initramfs(&missing, &out), Err(InitramfsError::Read { .. })));
    }
}
