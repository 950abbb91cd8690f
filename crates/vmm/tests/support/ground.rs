//! A place to run a VM in: a directory and a network slot inside a network namespace of its own. Leaves nothing.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use manta_host::{Credentials, HostNetwork, NetNs, NetSlot};
use manta_vmm::{DiskLimits, Place, VmSpec};
use tempfile::TempDir;

/// Whom the VMMs of these tests run as; nobody else does.
const UID: u32 = 64_123;

pub(crate) struct Ground {
    slot: NetSlot,
    network: Arc<HostNetwork>,
    /// Of root's alone: the VMM may not even search it.
    dir: TempDir,
}

impl Ground {
    pub(crate) fn new() -> Self {
        let host = NetNs::create().unwrap();
        let network = Arc::new(host.run(|| HostNetwork::set_up(None)).unwrap().unwrap());
        let slot = NetSlot::create(&network, 0, UID).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let vm = dir.path().join("vm");
        fs::create_dir(&vm).unwrap();
        fs::set_permissions(&vm, PermissionsExt::from_mode(0o700)).unwrap();
        chown(&vm, Some(UID), Some(UID)).unwrap();
        fs::write(dir.path().join("rootfs"), vec![0; 1 << 20]).unwrap();
        let disk = dir.path().join("disk");
        fs::write(&disk, vec![0; 1 << 20]).unwrap();
        fs::set_permissions(&disk, PermissionsExt::from_mode(0o600)).unwrap();
        chown(&disk, Some(UID), Some(UID)).unwrap();
        Self { slot, network, dir }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The VM's own directory.
    pub(crate) fn vm_dir(&self) -> PathBuf {
        self.path("vm")
    }

    /// A file that anyone could read if they could get at it.
    pub(crate) fn file(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, content).unwrap();
        path
    }

    pub(crate) fn place(&self) -> Place {
        Place {
            dir: self.vm_dir(),
            netns: Arc::new(self.slot.netns().clone()),
            tap_name: self.slot.tap_name().to_owned(),
            tap: self.slot.open_tap().unwrap(),
            credentials: Credentials { uid: UID, gid: UID, groups: Vec::new() },
            cgroup: None,
        }
    }

    pub(crate) fn spec(&self, kernel: &Path, initramfs: &Path) -> VmSpec {
        VmSpec {
            kernel: kernel.to_owned(),
            initramfs: initramfs.to_owned(),
            rootfs: self.path("rootfs"),
            disk: self.path("disk"),
            vcpus: 1,
            mem_mib: 128,
            mac: [0x06, 0, 0, 0, 0, 2],
            vsock_port: 5252,
            disk_limits: DiskLimits::default(),
        }
    }

    /// Fails if a process is left; a test that fails earlier leaves the rest to the guards.
    pub(crate) fn finish(self) {
        let left = manta_host::processes_in(&self.vm_dir()).unwrap();
        assert!(left.is_empty(), "left behind: {left:?}");
        self.slot.destroy().unwrap();
        Arc::into_inner(self.network).unwrap().tear_down().unwrap();
    }
}
