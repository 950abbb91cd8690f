//! What can go wrong on the way to a running VM and with it.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use manta_host::{JailError, ProcessError};
use rustix::io::Errno;

use crate::firecracker::ApiError;
use crate::qemu::QmpError;
use crate::vmm::Exit;

/// Why a VMM cannot be used, or a VM could not be started, reached or ended.
#[derive(Debug, thiserror::Error)]
pub enum VmmError {
    /// No such program, or not in the search path.
    #[error("cannot find the program {program}")]
    NotFound {
        /// As configured.
        program: PathBuf,
    },
    /// The VMM could not be asked for its version.
    #[error("cannot run {program} --version")]
    Version {
        /// The program.
        program: PathBuf,
        /// Why.
        #[source]
        source: ProcessError,
    },
    /// What it printed is not a version of this VMM.
    #[error("{program} --version names no version of {name} (it printed {output:?})")]
    NoVersion {
        /// The program.
        program: PathBuf,
        /// Which VMM it should be.
        name: &'static str,
        /// What it printed.
        output: String,
    },
    /// The VMM is too old.
    #[error("{program} is {name} {version}, but {needed} or later is needed: {reason}")]
    TooOld {
        /// The program.
        program: PathBuf,
        /// Which VMM it is.
        name: &'static str,
        /// Its version.
        version: String,
        /// The first version that will do.
        needed: String,
        /// What the earlier ones lack.
        reason: &'static str,
    },
    /// Firecracker was asked for on a host without KVM.
    #[error("Firecracker needs KVM: {reason}")]
    NoKvm {
        /// What the probe found.
        reason: String,
    },
    /// Firecracker is there, its jailer is not.
    #[error(
        "{firecracker} is not to run without its jailer, a program of the same release; put it beside Firecracker, \
         name it in MANTA_JAILER_BIN, or do without by MANTA_JAILER=0"
    )]
    Jailer {
        /// The Firecracker.
        firecracker: PathBuf,
        /// What is wrong with the jailer.
        #[source]
        source: Box<VmmError>,
    },
    /// The jailer is of another release than Firecracker.
    #[error(
        "the jailer {jailer} is of version {version}, Firecracker of {firecracker}: they belong together"
    )]
    JailerVersion {
        /// The jailer.
        jailer: PathBuf,
        /// Its version.
        version: String,
        /// Firecracker's.
        firecracker: String,
    },
    /// No jail can be there.
    #[error(
        "{dir} is on a file system mounted with {option}, and a jail needs device nodes and a program in it; put \
         MANTA_WORK_DIR elsewhere, or mount it without"
    )]
    JailMount {
        /// Where VMs were to be.
        dir: PathBuf,
        /// The mount option.
        option: &'static str,
    },
    /// The VM's directory could not be made its jail.
    #[error("cannot make a jail of {dir}")]
    Jail {
        /// The directory.
        dir: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file of the VM could not be put into its directory.
    #[error("cannot put a link to the {what} {path} into the VM's directory")]
    Link {
        /// Kernel, initramfs, rootfs, disk, state or memory of a snapshot, or the links' directory.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: Errno,
    },
    /// A file of the VM could not be opened.
    #[error("cannot open the {what} {path}")]
    Open {
        /// Kernel, initramfs, rootfs, disk, state or memory of a snapshot, or VM directory.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: Errno,
    },
    /// A socket in the VM's directory could not be made.
    #[error("cannot listen on the socket {name} in {dir}")]
    Listen {
        /// The socket's file name.
        name: String,
        /// The VM's directory.
        dir: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The VM's directory could not be watched for the VMM's socket.
    #[error("cannot watch {dir} for the socket of the VMM")]
    Watch {
        /// The VM's directory.
        dir: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A socket of the VMM could not be connected to, though the VMM lives.
    #[error("cannot connect to the socket {name} in {dir}")]
    Connect {
        /// The socket's file name.
        name: String,
        /// The VM's directory.
        dir: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// There is no root for VMM processes to be confined in.
    #[error("cannot confine {program}")]
    Confine {
        /// The program.
        program: PathBuf,
        /// Why.
        #[source]
        source: JailError,
    },
    /// The VMM process could not be started.
    #[error("cannot start the VMM")]
    Spawn(#[source] ProcessError),
    /// The event loop cannot watch the VMM process.
    #[error("cannot watch the VMM process")]
    Pidfd(#[source] io::Error),
    /// The VMM was started, lives, and did not become ready.
    #[error("the VMM was not ready within {0:?} of its start")]
    NotReady(Duration),
    /// The VMM ended when it should have worked.
    #[error("the VMM ended: {0}")]
    Ended(Exit),
    /// A server was killed before it let this VM's guest run.
    #[error("the guest was never started (the VMM says {0:?})")]
    NeverRan(String),
    /// A VM to be adopted is in a state that none should be in.
    #[error("the VM cannot be adopted (the VMM says {0:?})")]
    NotAdoptable(String),
    /// A snapshot was asked of a VM whose VMM was started before its program was upgraded.
    #[error("the VM cannot be saved: it runs in version {running} of its VMM, snapshots are of {current}")]
    OtherVersion {
        /// That of the process.
        running: String,
        /// That of the program now.
        current: String,
    },
    /// A command to QEMU failed.
    #[error("QMP command {command} failed")]
    Qmp {
        /// The command.
        command: &'static str,
        /// Why.
        #[source]
        source: QmpError,
    },
    /// A request to Firecracker failed.
    #[error("Firecracker request {request} failed")]
    Api {
        /// Method and path.
        request: String,
        /// Why.
        #[source]
        source: ApiError,
    },
    /// The VMM lives, but gives no link to the agent.
    #[error("the VMM gives no link to the agent")]
    AgentLink(#[source] io::Error),
    /// There is no memory for the guest.
    #[error("cannot make the memory of the guest")]
    MakeMemory(#[source] io::Error),
    /// A file of a snapshot could not be written or put in place.
    #[error("cannot save the VM to {path}")]
    Save {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The guest's memory could not be read.
    #[error("cannot read the memory of the VM (pid {pid})")]
    Memory {
        /// The VMM process.
        pid: u32,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// What was to be done while the VM was paused failed.
    #[error("cannot finish what its pause was for")]
    WhilePaused(#[source] io::Error),
    /// The VM could not be resumed after its snapshot: it is of no use any more.
    #[error("the VM could not be resumed after its snapshot")]
    Resume(#[source] Box<VmmError>),
    /// The VMM could not be signalled or waited for.
    #[error("cannot kill the VMM")]
    Kill(#[source] ProcessError),
    /// The VMM did not end when killed.
    #[error("the VMM (pid {pid}) did not end within {timeout:?} of being killed")]
    Unkillable {
        /// Its process id.
        pid: u32,
        /// How long it was given.
        timeout: Duration,
    },
}
