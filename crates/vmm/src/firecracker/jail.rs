//! Firecracker's jailer: found, and told what to do. It makes the VM's directory the root of Firecracker's file
//! system, in a mount namespace of its own, puts a copy of the program and three or four device nodes there, takes
//! on the VM's user and group, and becomes Firecracker, under the same process id (`docs/jailer.md` of
//! Firecracker). Network namespace and cgroup it has from whoever starts it.
//!
//! It copies the program for each VM, 3 MB, on purpose: two Firecrackers that had one text in memory could observe
//! each other.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use rustix::fs::{StatVfsMountFlags, statvfs};

use crate::dir::VmDir;
use crate::error::VmmError;
use crate::version::{Program, Requirement};

/// In the VM's directory; the jailer's `chroot-base-dir`.
const BASE: &str = "jail";

/// What it can do, of what root can (numbers of `linux/capability.h`). Firecracker has none of them, but what its
/// bounding set is, which nothing can draw on without new privileges.
pub(super) const CAPABILITIES: &[u32] = &[
    0,  // CHOWN: of what it makes, to the VM's user
    1,  // DAC_OVERRIDE: to make it, in a directory of that user
    3,  // FOWNER: to set its mode
    6,  // SETGID
    7,  // SETUID
    21, // SYS_ADMIN: mounts
    27, // MKNOD
];

const REQUIREMENT: Requirement = Requirement {
    name: "Firecracker's jailer",
    marker: "Jailer v",
    needed: (1, 8),
    reason: "it must be that of Firecracker's own release",
};

/// Which jailer to use.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum JailerChoice {
    /// The program `jailer` beside Firecracker's, else in `PATH`.
    #[default]
    Find,
    /// This program: a path, or a name to be found in `PATH`.
    At(PathBuf),
    /// None: Firecracker sees the host's file system, as far as its user may.
    Off,
}

/// The jailer of a Firecracker.
#[derive(Debug, Clone)]
pub(super) struct Jailer {
    pub(super) program: PathBuf,
    /// As the jailer will resolve it.
    firecracker: PathBuf,
}

impl Jailer {
    /// Finds the one chosen and checks that it belongs to `firecracker`. Blocks while it prints its version.
    ///
    /// # Errors
    /// When there is none, or that of another release.
    pub(super) fn find(choice: &JailerChoice, firecracker: &Program) -> Result<Option<Self>, VmmError> {
        let resolved = firecracker.path.canonicalize();
        let resolved = resolved.map_err(|_| VmmError::NotFound { program: firecracker.path.clone() })?;
        let program = match choice {
            JailerChoice::Off => return Ok(None),
            JailerChoice::At(program) => program.clone(),
            JailerChoice::Find => {
                let beside = [&firecracker.path, &resolved].map(|path| path.with_file_name("jailer"));
                beside.into_iter().find(|path| path.is_file()).unwrap_or_else(|| "jailer".into())
            }
        };
        let jailer = REQUIREMENT.check(&program).map_err(|source| VmmError::Jailer {
            firecracker: firecracker.path.clone(),
            source: Box::new(source),
        })?;
        if jailer.version != firecracker.version {
            return Err(VmmError::JailerVersion {
                jailer: jailer.path,
                version: jailer.version,
                firecracker: firecracker.version.clone(),
            });
        }
        Ok(Some(Self { program: jailer.path, firecracker: resolved }))
    }

    /// Sees to it that the jail of `id` is `dir` itself.
    pub(super) fn prepare(&self, dir: &VmDir, id: &str) -> Result<(), VmmError> {
        let make = || {
            // The jailer's fixed layout: BASE, the program's name, the id, "root". The last one may be a link; so
            // what is outside the jail and what is inside have one path, one inode and one owner.
            let name = self.firecracker.file_name().unwrap_or_default();
            let parent = dir.short_path(BASE).join(name).join(id);
            fs::create_dir_all(&parent)?;
            symlink("../../..", parent.join("root"))
        };
        make().map_err(|source: io::Error| VmmError::Jail { dir: dir.path().to_owned(), source })
    }

    /// Its arguments, for a process that works in the directory that was prepared. `owner` is the user and group
    /// of the VM. What follows is for Firecracker.
    pub(super) fn args(&self, id: &str, owner: (u32, u32)) -> Vec<OsString> {
        let (uid, gid) = (owner.0.to_string(), owner.1.to_string());
        let mut args: Vec<OsString> = vec!["--id".into(), id.into()];
        args.extend(["--exec-file".into(), self.firecracker.clone().into_os_string()]);
        args.extend(["--uid", &uid, "--gid", &gid].map(OsString::from));
        args.extend(["--chroot-base-dir", BASE, "--"].map(OsString::from));
        args
    }
}

/// Whether a jail can be in `dir`, or something of its file system forbids it.
///
/// # Errors
/// [`VmmError::JailMount`] when it is mounted with `nodev` or `noexec`; [`VmmError::Jail`] when it cannot be seen.
pub(super) fn check_dir(dir: &Path) -> Result<(), VmmError> {
    let found =
        statvfs(dir).map_err(|source| VmmError::Jail { dir: dir.to_owned(), source: source.into() })?;
    for (flag, option) in [(StatVfsMountFlags::NODEV, "nodev"), (StatVfsMountFlags::NOEXEC, "noexec")] {
        if found.f_flag.contains(flag) {
            return Err(VmmError::JailMount { dir: dir.to_owned(), option });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    use super::*;

    fn script(path: &Path, prints: &str) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, format!("#!/bin/sh\necho {prints}\n")).unwrap();
        fs::set_permissions(path, PermissionsExt::from_mode(0o755)).unwrap();
    }

    fn program(path: PathBuf) -> Program {
        Program { path, version: "1.12.1".to_owned() }
    }

    #[test]
    fn the_jailer_is_that_of_firecrackers_release() {
        let root = tempfile::tempdir().unwrap();
        let [release, link, elsewhere] = ["release", "bin", "elsewhere"].map(|name| root.path().join(name));
        script(&release.join("firecracker"), "Firecracker v1.12.1");
        script(&release.join("jailer"), "Jailer v1.12.1");
        fs::create_dir(&link).unwrap();
        symlink("../release/firecracker", link.join("firecracker")).unwrap();
        for dir in [&release, &link] {
            let found = Jailer::find(&JailerChoice::Find, &program(dir.join("firecracker"))).unwrap();
            assert_eq!(found.unwrap().program, release.join("jailer"));
        }

        script(&elsewhere.join("jailer"), "Jailer v1.11.0");
        let other = JailerChoice::At(elsewhere.join("jailer"));
        let error = Jailer::find(&other, &program(release.join("firecracker"))).unwrap_err();
        assert!(matches!(&error, VmmError::JailerVersion { version, .. } if version == "1.11.0"), "{error}");

        let missing = JailerChoice::At(elsewhere.join("none"));
        let error = Jailer::find(&missing, &program(release.join("firecracker"))).unwrap_err();
        assert!(matches!(error, VmmError::Jailer { .. }), "{error}");
        let off = Jailer::find(&JailerChoice::Off, &program(release.join("firecracker"))).unwrap();
        assert!(off.is_none());
    }

    #[test]
    fn the_jail_is_the_vms_directory() {
        let root = tempfile::tempdir().unwrap();
        let jailer = Jailer { program: "/bin/jailer".into(), firecracker: "/bin/firecracker".into() };
        jailer.prepare(&VmDir::open(root.path()).unwrap(), "sb-1").unwrap();
        let jail = fs::metadata(root.path().join("jail/firecracker/sb-1/root")).unwrap();
        assert_eq!(jail.ino(), fs::metadata(root.path()).unwrap().ino());
    }

    #[test]
    fn what_the_jailer_is_told() {
        let jailer =
            Jailer { program: "/opt/fc/jailer".into(), firecracker: "/opt/fc/firecracker-v1.12.1".into() };
        insta::assert_debug_snapshot!(jailer.args("sb-1", (1_879_048_199, 1_879_048_199)));
    }

    #[test]
    fn a_jail_needs_devices_and_programs() {
        check_dir(tempfile::tempdir().unwrap().path()).unwrap();
        let error = check_dir(Path::new("/nowhere")).unwrap_err();
        assert!(matches!(error, VmmError::Jail { .. }), "{error}");
    }
}
