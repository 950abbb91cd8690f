//! The [`Vmm`] trait and what goes in and out of it. No implementation.

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use manta_host::{CgroupEntry, Credentials, NetNs, Process, ProcessId};
use tokio::net::UnixStream;

use crate::disk_limits::DiskLimits;
use crate::error::VmmError;

/// A future on the heap, as trait objects take it.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// The virtual machine monitors there are drivers for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum VmmKind {
    /// Firecracker; needs usable KVM.
    Firecracker,
    /// QEMU's `microvm` machine.
    Qemu,
}

/// What executes the guest's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Accelerator {
    /// The processor's virtualization, through Linux's KVM.
    Kvm,
    /// QEMU's translator, in software.
    Tcg,
}

/// A VMM as found on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmmInfo {
    /// Which one.
    pub kind: VmmKind,
    /// As it says itself, without a leading `v`.
    pub version: String,
    /// How it runs guests here.
    pub accelerator: Accelerator,
    /// The program that puts its processes into jails of their own, if one does: Firecracker's jailer.
    pub jailer: Option<PathBuf>,
}

/// The machine to run.
#[derive(Debug, Clone)]
pub struct VmSpec {
    /// Linux kernel: an uncompressed ELF image with a PVH entry point.
    pub kernel: PathBuf,
    /// Uncompressed initramfs whose `/init` is the agent; see [`crate::write_initramfs`].
    pub initramfs: PathBuf,
    /// Image of the guest's system, shared read-only by all VMs; the guest's only read-only disk.
    pub rootfs: PathBuf,
    /// This VM's own disk image, raw, writable for [`Place::credentials`]. Not needed after the VM: flushes are
    /// not carried through to the medium.
    pub disk: PathBuf,
    /// Virtual processors.
    pub vcpus: u8,
    /// Memory, MiB.
    pub mem_mib: u32,
    /// Ethernet address of the guest's only network interface.
    pub mac: [u8; 6],
    /// Where the agent announces itself and listens on VMMs that have vsock.
    pub vsock_port: u32,
    /// What it may use of its disks; not part of [`Vmm::machine`].
    pub disk_limits: DiskLimits,
}

/// What a VM begins with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// An empty machine, which boots the kernel.
    Boot,
    /// The machine as it was when these were saved, by the same VMM on the same kind of machine. Its disk must be
    /// a clone of the disk as it was then.
    Snapshot(SnapshotFiles),
}

/// Files that hold a paused VM. Written once, by [`MicroVm::snapshot`]; never changed after that, since clones
/// map them. VMMs get descriptors or links, so only the files' own permissions count: they must be readable for others,
/// in a directory that others cannot search.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotFiles {
    /// Processors and devices: tens of KiB. In a format of the VMM's own.
    pub state: PathBuf,
    /// The guest's memory, as large as that; sparse where the VMM can tell.
    pub memory: PathBuf,
}

/// Where on the host a VM runs.
#[derive(Debug)]
pub struct Place {
    /// Absolute; exclusively this VM's and empty; writable for `credentials`, not searchable for others.
    pub dir: PathBuf,
    /// The network namespace of the VMM process, in which the tap is.
    pub netns: Arc<NetNs>,
    /// Name of the tap.
    pub tap_name: String,
    /// A queue of the tap, opened with `IFF_VNET_HDR`. For a VMM that opens the tap by name it is closed: the
    /// tap must be persistent and owned by `credentials`.
    pub tap: OwnedFd,
    /// Whom the VMM process runs as.
    pub credentials: Credentials,
    /// The cgroup of the VMM process, if it is to be in one.
    pub cgroup: Option<CgroupEntry>,
}

/// A VM whose server was killed while it ran.
#[derive(Debug)]
pub struct Survivor {
    /// Its VMM's process, adopted ([`Process::adopt`]).
    pub process: Process,
    /// Its directory: [`Place::dir`].
    pub dir: PathBuf,
    /// Whom the VMM runs as.
    pub credentials: Credentials,
    /// Whether it began with a snapshot.
    pub restored: bool,
}

/// How a VMM process ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exit {
    /// For people: exit code, signal, or what the guest did to end it.
    pub status: String,
    /// What guest console and VMM printed, at most 64 KiB. Printable, but not to be trusted.
    pub console: String,
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.console.trim() {
            "" => write!(f, "{}, having printed nothing", self.status),
            console => write!(f, "{}, having printed:\n{console}", self.status),
        }
    }
}

/// A virtual machine monitor on this host.
#[async_trait]
pub trait Vmm: Send + Sync + fmt::Debug {
    /// Which it is.
    fn info(&self) -> &VmmInfo;

    /// The machine as this VMM makes it, with everything of it that a snapshot depends on and nothing that
    /// differs from VM to VM: two machines of the same description are alike.
    fn machine(&self, spec: &VmSpec) -> String;

    /// Whether the files of `VmSpec` and `Origin` must be on the file system of the VM's directory, for hard links
    /// to be made of them; block devices can be anywhere.
    fn needs_links(&self) -> bool;

    /// Whether VMs can run in directories below `dir`.
    ///
    /// # Errors
    /// When its file system is mounted in a way that does not let them.
    fn check_dir(&self, dir: &Path) -> Result<(), VmmError>;

    /// Whether [`MicroVm::rest`] makes its VMs stand still.
    fn can_rest(&self) -> bool;

    /// Starts the VMM process in its place; the guest does not run yet. If the future is dropped, the process
    /// is killed.
    ///
    /// # Errors
    /// When a file of `spec` or `origin` cannot be opened, or the process cannot be started or ends before it is ready to
    /// boot a guest; nothing is left of it then but files in the place's directory.
    async fn spawn(&self, place: Place, spec: &VmSpec, origin: &Origin)
    -> Result<Box<dyn MicroVm>, VmmError>;

    /// Takes over a VM that a server which is dead has started, by this driver and from this `spec`; no file of it
    /// need be there any more. A guest that is paused, because the server died while it was saved or because it
    /// rested, goes on.
    ///
    /// What is lost: what the VMM printed, and with QEMU the part of the guest's console that the dead server had
    /// read. If the VMM was upgraded meanwhile, this VM's is not of [`Vmm::info`]'s version: it runs on, but
    /// [`MicroVm::snapshot`] refuses.
    ///
    /// # Errors
    /// [`VmmError::NeverRan`] when the dead server had not let its guest run; [`VmmError::Ended`] when the guest has
    /// ended itself meanwhile, or the VMM has; others when it does not answer, in 15 s at most unless a snapshot of
    /// the dead server is still being written, or is not as it was started. In all cases the VMM is killed, as it
    /// is if the future is dropped.
    async fn adopt(&self, survivor: Survivor, spec: &VmSpec) -> Result<Box<dyn MicroVm>, VmmError>;
}

/// A VMM process with its one VM. Dropping it kills the process, which may block the thread for a moment: use
/// [`MicroVm::kill`].
#[async_trait]
pub trait MicroVm: Send + Sync + fmt::Debug {
    /// The VMM's process id; meaningful until [`MicroVm::exited`] completes.
    fn pid(&self) -> u32;

    /// By what a later server finds the VMM's process, to adopt it ([`Vmm::adopt`]).
    fn process_id(&self) -> ProcessId;

    /// Lets the guest boot, or go on where its snapshot was taken. To be called once.
    ///
    /// # Errors
    /// When the VMM refuses, does not answer in time, or has ended.
    async fn start(&self) -> Result<(), VmmError>;

    /// Lets a started VM rest: when this returns its processors stand still, and it uses none of the host's, until
    /// [`MicroVm::wake`]. Idempotent. Its agent's stream stays, and can be made and written to meanwhile: what is
    /// written arrives when it wakes. Its clocks may stand still, so the agent must be told the time after it.
    /// [`MicroVm::snapshot`] wakes it.
    ///
    /// With Firecracker 1.16.0 and 1.16.1 nothing is done, and an idle guest takes its few timer ticks: a pause
    /// that is not for a snapshot cuts it off from the host there (Firecracker's pull request 6100).
    ///
    /// # Errors
    /// When the VMM refuses, does not answer in time, or has ended.
    async fn rest(&self) -> Result<(), VmmError>;

    /// Lets a VM that rests go on; nothing on one that does not. Takes QEMU half a millisecond.
    ///
    /// # Errors
    /// When the VMM refuses, does not answer in time, or has ended.
    async fn wake(&self) -> Result<(), VmmError>;

    /// Saves the running VM to `files`, which must not exist, in a directory on the file system of the VM's own;
    /// they are read-only then, and not yet flushed to the medium, for which the agent need not be kept waiting.
    /// The guest is paused meanwhile, as shortly as can be: what can be copied before is; `while_paused` runs when
    /// its disk is at rest, to clone it. Says how long the pause was. Connections to the agent must be closed: on
    /// some VMMs they break.
    ///
    /// Whatever fails, the guest runs on if it can, and parts of `files` may be left. Every step
    /// has a deadline; `while_paused` is dropped after two minutes, and what it left running elsewhere finds the
    /// guest running. Must be awaited to its end, or the guest may stay paused.
    ///
    /// # Errors
    /// When the VMM refuses, does not answer in time, or has ended; when a file cannot be written, or the VMM
    /// could still change it; when `while_paused` failed or did not end in time.
    async fn snapshot(
        &self,
        files: &SnapshotFiles,
        while_paused: BoxFuture<'_, io::Result<()>>,
    ) -> Result<Duration, VmmError>;

    /// A byte stream to the agent. Waits until there can be one, without a deadline of its own; dropping the
    /// future is safe. One at a time: the previous stream must be closed. When a stream ends before the agent
    /// has said anything on it, ask again at once: a link can die with a reset the guest had not seen yet.
    ///
    /// # Errors
    /// At once when the VMM has ended or ends meanwhile; when the VMM refuses repeatedly.
    async fn connect_agent(&self) -> Result<UnixStream, VmmError>;

    /// Completes when the VMM process has ended, by itself or killed. Any number of callers may wait.
    async fn exited(&self) -> Exit;

    /// Whether the VMM ends when its guest switches itself off. Where not, a guest that neither runs nor answers is of no
    /// use any more.
    fn ends_with_guest(&self) -> bool {
        true
    }

    /// How long the guest's processors have run, or waited to be run by the host, so far; none if that cannot be said, as
    /// while the VMM is stopped by a signal.
    fn guest_time(&self) -> Option<Duration> {
        None
    }

    /// Kills the VMM process and waits until it is reaped, a few seconds at most. Idempotent.
    ///
    /// # Errors
    /// When it cannot be killed; it may still run then.
    async fn kill(&self) -> Result<(), VmmError>;

    /// What guest console and VMM printed so far, at most 64 KiB, as in [`Exit::console`].
    async fn console(&self) -> String;
}

/// A name that is none of those expected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{given:?} is none of: {expected}")]
pub struct UnknownName {
    /// The name.
    pub given: String,
    /// What it could have been.
    pub expected: &'static str,
}

impl fmt::Display for VmmKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Firecracker => "firecracker",
            Self::Qemu => "qemu",
        })
    }
}

impl FromStr for VmmKind {
    type Err = UnknownName;

    fn from_str(name: &str) -> Result<Self, UnknownName> {
        match name {
            "firecracker" => Ok(Self::Firecracker),
            "qemu" => Ok(Self::Qemu),
            _ => Err(UnknownName { given: name.to_owned(), expected: "firecracker, qemu" }),
        }
    }
}

impl fmt::Display for Accelerator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        })
    }
}

/// `aa:bb:cc:dd:ee:ff`, as both VMMs take it.
pub(crate) fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// A machine for the tests of both drivers' command lines.
#[cfg(test)]
pub(crate) fn test_spec() -> VmSpec {
    VmSpec {
        kernel: "/images/vmlinux".into(),
        initramfs: "/images/initramfs".into(),
        rootfs: "/images/rootfs.ext4".into(),
        disk: "/vm/disk".into(),
        vcpus: 2,
        mem_mib: 256,
        mac: [0x06, 0, 0xac, 0x10, 0, 2],
        vsock_port: 5252,
        disk_limits: DiskLimits::default(),
    }
}
