//! Whom VMMs run as: a user of its own for each slot, root only where a device leaves no choice. In a jail there is
//! always a choice: the jailer makes the devices for that user.

use std::fs;
use std::os::unix::fs::MetadataExt;

use manta_host::process::Credentials;
use manta_vmm::{VmmInfo, VmmKind};

/// First user id of VMMs: above every range that systemd's conventions assign
/// (<https://systemd.io/UIDS-GIDS/>), one for each slot.
const UID_BASE: u32 = 0x7000_0000;

/// Whom VMMs run as.
#[derive(Debug, Clone)]
pub(crate) struct Confinement {
    /// Groups that give access to the devices the VMM opens itself.
    groups: Vec<u32>,
    /// Why VMMs see the host's file system, when they do.
    pub(crate) no_jail_because: Option<String>,
    /// Why VMMs have to stay root, when they have.
    pub(crate) root_because: Option<String>,
}

impl Confinement {
    /// Looks at the devices that `vmm` opens: whether an ordinary user in the right group may.
    pub(crate) fn for_vmm(vmm: &VmmInfo) -> Self {
        if vmm.jailer.is_some() {
            return Self { groups: Vec::new(), no_jail_because: None, root_because: None };
        }
        let no_jail_because = (vmm.kind == VmmKind::Firecracker).then(|| {
            "MANTA_JAILER=0: Firecracker runs without its jailer, and one that its guest has taken over sees the \
             host's file system, as far as its user may"
                .to_owned()
        });
        let mut devices = Vec::new();
        if vmm.accelerator == manta_vmm::Accelerator::Kvm {
            devices.push("/dev/kvm");
        }
        if vmm.kind == VmmKind::Firecracker {
            devices.push("/dev/net/tun");
        }
        let mut groups = Vec::new();
        for device in devices {
            match fs::metadata(device) {
                Ok(found) if found.mode() & 0o006 == 0o006 => {}
                Ok(found) if found.mode() & 0o060 == 0o060 && found.gid() != 0 => groups.push(found.gid()),
                _ => {
                    let reason = format!(
                        "{device} is open to root only, so {} runs as root; `chmod 666 {device}`, or give it \
                         to a group, to confine it",
                        vmm.kind
                    );
                    return Self { groups: Vec::new(), no_jail_because, root_because: Some(reason) };
                }
            }
        }
        Self { groups, no_jail_because, root_because: None }
    }

    /// User and group for the VMM in slot `index`.
    pub(crate) fn credentials(&self, index: u16) -> Credentials {
        let id = if self.root_because.is_some() { 0 } else { UID_BASE + u32::from(index) };
        Credentials { uid: id, gid: id, groups: self.groups.clone() }
    }
}
