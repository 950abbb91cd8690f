//! What can go wrong, by what the caller can do about it.

use std::path::PathBuf;
use std::time::Duration;

use manta_api::{SandboxId, SandboxState, SnapshotId};
use thiserror::Error;

use crate::agent::Output;
use crate::caller::Rate;
use crate::ending::Ending;

/// A request that failed.
#[derive(Debug, Error)]
pub enum EngineError {
    /// No such sandbox, as far as is remembered.
    #[error("there is no sandbox {0}")]
    NotFound(SandboxId),
    /// There was such a sandbox, not long ago.
    #[error("there is no sandbox {id} any more: it {ending}")]
    Gone {
        /// Which.
        id: SandboxId,
        /// Why.
        ending: Ending,
    },
    /// The sandbox exists but cannot do this now.
    #[error("sandbox {id} is {}{}", state_name(*state), reason.as_ref().map(|r| format!(": {r}")).unwrap_or_default())]
    NotRunning {
        /// Which.
        id: SandboxId,
        /// Its state.
        state: SandboxState,
        /// Why, when it failed.
        reason: Option<String>,
    },
    /// The sandbox was destroyed while the command ran.
    #[error("sandbox {id} was destroyed while the command ran")]
    Destroyed {
        /// Which.
        id: SandboxId,
        /// Output up to then.
        output: Box<Output>,
    },
    /// The guest died, or its agent broke off, while the command ran.
    #[error("the guest of sandbox {id} is gone: {reason}")]
    GuestGone {
        /// Which.
        id: SandboxId,
        /// What was seen.
        reason: String,
        /// Output up to then.
        output: Box<Output>,
    },
    /// The agent did not answer in time.
    #[error("the guest of sandbox {id} did not answer within {}", humantime(*after))]
    GuestTimeout {
        /// Which.
        id: SandboxId,
        /// The deadline that passed.
        after: Duration,
        /// Output up to then.
        output: Box<Output>,
    },
    /// The command outlived its limit and was killed.
    #[error("the command was killed after its time limit of {}", humantime(*after))]
    ExecTimeout {
        /// The limit.
        after: Duration,
        /// Output up to then.
        output: Box<Output>,
    },
    /// As many commands in one sandbox as allowed.
    #[error("{limit} commands are running in sandbox {id}; wait for some to end")]
    SandboxBusy {
        /// Which.
        id: SandboxId,
        /// The limit.
        limit: usize,
    },
    /// A parameter out of range.
    #[error("{0}")]
    BadRequest(String),
    /// As many sandboxes as allowed.
    #[error("the host is full: {limit} sandboxes exist; destroy some or try again later")]
    HostFull {
        /// The limit.
        limit: usize,
    },
    /// As much memory as allowed is committed to sandboxes.
    #[error(
        "the host is full: {committed_mib} of {limit_mib} MiB of memory are committed to sandboxes, and another does \
         not fit; destroy some or try again later"
    )]
    HostMemoryFull {
        /// To those that exist.
        committed_mib: u64,
        /// The limit.
        limit_mib: u64,
    },
    /// Too little of the disk is free.
    #[error(
        "the host's disk is full: {free_mib} MiB are free, and {reserve_mib} stay free; delete snapshots or make room"
    )]
    HostDiskFull {
        /// What is free.
        free_mib: u64,
        /// What is to stay free.
        reserve_mib: u64,
    },
    /// Next to no file descriptor of the server is free.
    #[error(
        "the host is full: the server has used up its {limit} file descriptors; destroy some sandboxes, or let it have \
         more (LimitNOFILE= in its unit, or `ulimit -n`)"
    )]
    HostDescriptorsFull {
        /// So many it may have.
        limit: u64,
    },
    /// As many sandboxes as the caller's key may have.
    #[error("your API key has its {limit} sandboxes; destroy some")]
    KeySandboxLimit {
        /// The limit.
        limit: u32,
    },
    /// Faster than the caller's key may make sandboxes.
    #[error("your API key may make {rate} sandboxes (per second:at once); try again in {}", humantime(*after))]
    KeyRateLimit {
        /// The limit.
        rate: Rate,
        /// When it is worth another try.
        after: Duration,
    },
    /// Its turn did not come in time.
    #[error("the host is busy: no microVM could be started for you within {}; try again later", humantime(*after))]
    Overloaded {
        /// How long it waited.
        after: Duration,
    },
    /// No new work: the server is ending.
    #[error("the server is shutting down")]
    ShuttingDown,
    /// What would be begun now could not be taken back or removed if the server were killed.
    #[error("nothing new can be begun: {reason}; look at the disk of the server's work directory")]
    JournalUnwritable {
        /// What the journal said.
        reason: String,
    },
    /// The microVM did not come up.
    #[error("the microVM did not come up while {stage}: {reason}")]
    BootFailed {
        /// What was being done.
        stage: &'static str,
        /// What went wrong, with console text when there is any.
        reason: String,
    },
    /// No such snapshot now; perhaps it was deleted.
    #[error("there is no snapshot {0}")]
    SnapshotNotFound(SnapshotId),
    /// Names are unique.
    #[error("there is a snapshot named {0} already; delete it, or choose another name")]
    SnapshotNameTaken(String),
    /// It was made on, or of, something else.
    #[error("snapshot {id} cannot be restored here: {}", differences.join("; "))]
    SnapshotIncompatible {
        /// Which.
        id: SnapshotId,
        /// One sentence each.
        differences: Vec<String>,
    },
    /// Its files are not what was written.
    #[error("snapshot {id} is damaged: {reason}")]
    SnapshotDamaged {
        /// Which.
        id: SnapshotId,
        /// Which file, and how.
        reason: String,
    },
    /// A limit, or the disk.
    #[error("{0}")]
    SnapshotStorageFull(String),
    /// The sandbox could not be saved; it runs on if it can.
    #[error("the snapshot failed while {stage}: {reason}")]
    SnapshotFailed {
        /// What was being done.
        stage: &'static str,
        /// What went wrong.
        reason: String,
    },
    /// The host failed us.
    #[error("host failure while {stage}: {reason}")]
    Host {
        /// What was being done.
        stage: &'static str,
        /// The whole chain of causes.
        reason: String,
    },
}

/// Why an engine could not start.
#[derive(Debug, Error)]
pub enum StartError {
    /// A file or directory that must be usable.
    #[error("cannot {action} {path}")]
    Path {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// An artifact for guests is unusable.
    #[error("cannot use guest artifact {path}: {reason}")]
    Artifact {
        /// Which.
        path: PathBuf,
        /// Why, and what to do.
        reason: String,
    },
    /// `reflink-required`, and the file system cannot.
    #[error(
        "MANTA_ROOTFS_CLONE_MODE=reflink-required, but the file system of {0} cannot clone files; \
         put MANTA_WORK_DIR on XFS or btrfs, or use auto"
    )]
    NoReflink(PathBuf),
    /// The sandboxes of a killed server are of another kind.
    #[error(
        "{count} sandboxes that a killed server left alive run on {theirs}, and this server was told to use {ours}: \
         start it with MANTA_VMM={theirs}, which takes them back; SIGTERM ends that server and them"
    )]
    OtherVmm {
        /// How many.
        count: usize,
        /// Their VMM.
        theirs: String,
        /// That of the settings.
        ours: String,
    },
    /// Something of the host's could not be set up.
    #[error("cannot {action}")]
    Host {
        /// What was tried.
        action: &'static str,
        /// Why not.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl StartError {
    pub(crate) fn host<E: Into<Box<dyn std::error::Error + Send + Sync>>>(
        action: &'static str,
    ) -> impl FnOnce(E) -> Self {
        move |source| Self::Host { action, source: source.into() }
    }
}

/// An error and its causes, on one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}

fn state_name(state: SandboxState) -> &'static str {
    match state {
        SandboxState::Creating => "still being created",
        SandboxState::Running => "running",
        SandboxState::Stopping => "being destroyed",
        SandboxState::Stopped => "destroyed",
        SandboxState::Failed => "failed",
    }
}

fn humantime(duration: Duration) -> String {
    format!("{} ms", duration.as_millis())
}
