//! Where Firecracker finds the files of its VM: hard links in the VM's directory, which is its root when it is
//! jailed. They have the same names for every VM, since a snapshot remembers those of disks. Does not know the
//! jailer, nor what Firecracker writes: see [`super::saved`].
//!
//! They belong to whom the files belong to: only the disk is Firecracker's, and what others use can only be read. They
//! are in a directory of their own, so that none can have the name of something the jailer makes, and be written to.

use std::fs::{self, Permissions};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, Mode, linkat, mknodat};
use rustix::io::Errno;

use crate::dir::VmDir;
use crate::error::VmmError;
use crate::vmm::{Origin, VmSpec};

const DIR: &str = "files";

/// Relative to the VM's directory, in which Firecracker works.
pub(super) const KERNEL: &str = "files/kernel";
pub(super) const INITRAMFS: &str = "files/initramfs";
pub(super) const ROOTFS: &str = "files/rootfs";
pub(super) const DISK: &str = "files/disk";
pub(super) const STATE: &str = "files/state";
pub(super) const MEMORY: &str = "files/memory";

/// Puts what a VM needs into its empty directory. Says how long its disk is, bytes. Blocks, for as long as it takes
/// to make a few names.
///
/// # Errors
/// [`VmmError::Link`]: most likely a file that is gone, or on another file system than the directory.
pub(super) fn link(dir: &VmDir, spec: &VmSpec, origin: &Origin) -> Result<u64, VmmError> {
    let failed = |what, path: &Path| {
        let path = path.to_owned();
        move |source| VmmError::Link { what, path, source }
    };
    let made = fs::create_dir(dir.short_path(DIR))
        .and_then(|()| fs::set_permissions(dir.short_path(DIR), Permissions::from_mode(0o711)));
    made.map_err(|error| failed("directory of files", dir.path())(errno(&error)))?;
    let mut files = vec![("rootfs", &spec.rootfs, ROOTFS), ("disk", &spec.disk, DISK)];
    match origin {
        Origin::Boot => {
            files.extend([("kernel", &spec.kernel, KERNEL), ("initramfs", &spec.initramfs, INITRAMFS)]);
        }
        Origin::Snapshot(snapshot) => files.extend([
            ("snapshot's state", &snapshot.state, STATE),
            ("snapshot's memory", &snapshot.memory, MEMORY),
        ]),
    }
    for (what, from, name) in files {
        link_one(from, &dir.short_path(name)).map_err(failed(what, from))?;
    }
    let disk = fs::metadata(dir.short_path(DISK));
    disk.map(|disk| disk.len()).map_err(|error| failed("disk", &spec.disk)(errno(&error)))
}

/// Also of an open file that is named by its descriptor.
fn link_one(from: &Path, to: &Path) -> Result<(), Errno> {
    let found = fs::metadata(from).map_err(|error| errno(&error))?;
    if !found.file_type().is_block_device() {
        return linkat(CWD, from, CWD, to, AtFlags::SYMLINK_FOLLOW);
    }
    // Its name is on a file system of the kernel's. The node here is nobody's but the server's, so that what may
    // only be read cannot be made writable.
    let mode = Mode::RUSR | Mode::RGRP | Mode::ROTH;
    mknodat(CWD, to, FileType::BlockDevice, mode, found.rdev())?;
    fs::set_permissions(to, Permissions::from_mode(mode.bits())).map_err(|error| errno(&error))
}

fn errno(error: &std::io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsRawFd;
    use std::path::PathBuf;

    use super::*;
    use crate::vmm::{SnapshotFiles, test_spec};

    fn file(path: PathBuf) -> PathBuf {
        fs::write(&path, path.file_name().unwrap().as_encoded_bytes()).unwrap();
        path
    }

    #[test]
    fn a_vm_finds_what_it_begins_with_and_nothing_else() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| file(root.path().join(name));
        let disk = File::open(at("disk")).unwrap();
        let spec = VmSpec {
            kernel: at("kernel"),
            initramfs: at("initramfs"),
            rootfs: at("rootfs"),
            // As the engine names it.
            disk: format!("/proc/self/fd/{}", disk.as_raw_fd()).into(),
            ..test_spec()
        };
        let snapshot = Origin::Snapshot(SnapshotFiles { state: at("state"), memory: at("memory") });
        for (n, origin, names) in [
            (1, Origin::Boot, [DISK, INITRAMFS, KERNEL, ROOTFS]),
            (2, snapshot, [DISK, MEMORY, ROOTFS, STATE]),
        ] {
            let vm = root.path().join(n.to_string());
            fs::create_dir(&vm).unwrap();
            link(&VmDir::open(&vm).unwrap(), &spec, &origin).unwrap();
            let mut found: Vec<_> = fs::read_dir(vm.join(DIR)).unwrap().map(|e| e.unwrap().path()).collect();
            found.sort();
            assert_eq!(found, names.map(|name| vm.join(name)));
            for path in found {
                let original = root.path().join(path.file_name().unwrap());
                assert_eq!(fs::metadata(&path).unwrap().ino(), fs::metadata(original).unwrap().ino());
            }
            assert_eq!(fs::metadata(vm.join(DIR)).unwrap().mode() & 0o777, 0o711);
        }
    }

    #[test]
    fn what_cannot_be_linked_is_named() {
        let root = tempfile::tempdir().unwrap();
        let vm = root.path().join("vm");
        fs::create_dir(&vm).unwrap();
        // On the kernel's own file system.
        let rootfs = PathBuf::from("/proc/version");
        let error = link(&VmDir::open(&vm).unwrap(), &VmSpec { rootfs, ..test_spec() }, &Origin::Boot);
        let error = error.unwrap_err();
        assert!(matches!(&error, VmmError::Link { what: "rootfs", source: Errno::XDEV, .. }), "{error:?}");
    }
}
