//! Finds a VMM's program and asks it for its version.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use manta_host::process::Confinement;
use manta_host::{Credentials, Process, ProcessError, Spawn};
use rustix::process::{getegid, geteuid};

use crate::error::VmmError;

const TIMEOUT: Duration = Duration::from_secs(5);

/// What a driver needs of its program.
#[derive(Debug)]
pub(crate) struct Requirement {
    /// The VMM's name, for messages.
    pub(crate) name: &'static str,
    /// What stands before the version number in what the program prints.
    pub(crate) marker: &'static str,
    /// First version that will do: major, minor.
    pub(crate) needed: (u32, u32),
    /// What the earlier ones lack.
    pub(crate) reason: &'static str,
}

/// A program that fits.
#[derive(Debug)]
pub(crate) struct Program {
    /// Absolute.
    pub(crate) path: PathBuf,
    pub(crate) version: String,
}

impl Requirement {
    /// Finds `program`, as given or in `PATH`, and checks its version. Blocks while the program runs.
    pub(crate) fn check(&self, program: &Path) -> Result<Program, VmmError> {
        let path = find(program).ok_or_else(|| VmmError::NotFound { program: program.to_owned() })?;
        let output =
            version_output(&path).map_err(|source| VmmError::Version { program: path.clone(), source })?;
        let Some((version, numbers)) = self.parse(&output) else {
            return Err(VmmError::NoVersion { program: path, name: self.name, output });
        };
        if numbers < self.needed {
            return Err(VmmError::TooOld {
                program: path,
                name: self.name,
                version,
                needed: format!("{}.{}", self.needed.0, self.needed.1),
                reason: self.reason,
            });
        }
        Ok(Program { path, version })
    }

    fn parse(&self, output: &str) -> Option<(String, (u32, u32))> {
        let (_, rest) = output.split_once(self.marker)?;
        let version = rest.split(|c: char| c.is_whitespace()).next()?;
        let mut numbers = version.split('.').map(str::parse);
        let (Some(Ok(major)), Some(Ok(minor))) = (numbers.next(), numbers.next()) else { return None };
        Some((version.to_owned(), (major, minor)))
    }
}

fn find(program: &Path) -> Option<PathBuf> {
    let is_program = |path: &PathBuf| path.is_file();
    if program.components().count() > 1 {
        return std::path::absolute(program).ok().filter(is_program);
    }
    let search_path = std::env::var_os("PATH")?;
    std::env::split_paths(&search_path).map(|dir| dir.join(program)).find(is_program)
}

fn version_output(program: &Path) -> Result<String, ProcessError> {
    let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
    let process = Process::spawn(Spawn {
        program,
        args: &[OsString::from("--version")],
        dir: Path::new("/"),
        netns: None,
        credentials: &Credentials { uid, gid, groups: Vec::new() },
        fds: Vec::new(),
        confinement: Confinement::default(),
    })?;
    if process.wait_timeout(TIMEOUT)?.is_none() {
        process.kill()?;
        process.wait_timeout(TIMEOUT)?;
    }
    Ok(process.output())
}

#[cfg(test)]
mod tests {
    use super::*;

    const QEMU: Requirement =
        Requirement { name: "QEMU", marker: "QEMU emulator version ", needed: (8, 0), reason: "" };

    #[test]
    fn versions_are_found_in_what_the_programs_print() {
        let debian = "QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2+deb13u1~bpo12+1)\nCopyright";
        assert_eq!(QEMU.parse(debian), Some(("10.0.2".to_owned(), (10, 0))));
        assert_eq!(QEMU.parse("QEMU emulator version 8.2\n"), Some(("8.2".to_owned(), (8, 2))));
        let firecracker = Requirement { marker: "Firecracker v", ..QEMU };
        assert_eq!(firecracker.parse("Firecracker v1.12.1\n\n"), Some(("1.12.1".to_owned(), (1, 12))));
        assert_eq!(QEMU.parse("QEMU emulator version many\n"), None);
        assert_eq!(QEMU.parse(""), None);
    }

    #[test]
    fn a_program_of_another_kind_is_refused() {
        let error = QEMU.check(Path::new("true")).unwrap_err();
        assert!(matches!(error, VmmError::NoVersion { .. }), "{error}");
        let error = QEMU.check(Path::new("/nowhere/qemu")).unwrap_err();
        assert!(matches!(error, VmmError::NotFound { .. }), "{error}");
    }

    #[test]
    fn an_old_version_is_refused_with_the_reason() {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("qemu");
        std::fs::write(&program, "#!/bin/sh\necho QEMU emulator version 7.2.19\n").unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&program, mode).unwrap();
        let error = Requirement { reason: "it is slow", ..QEMU }.check(&program).unwrap_err().to_string();
        assert!(error.ends_with("is QEMU 7.2.19, but 8.0 or later is needed: it is slow"), "{error}");
    }
}
