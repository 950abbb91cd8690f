//! What the journal knows of one sandbox.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use manta_api::{SandboxId, SandboxInfo, SnapshotId};
use serde::{Deserialize, Serialize};

use crate::ending::Ending;
use crate::snapshots::Machine;

/// How far it is. What each means at the next start is told in [`super`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Step {
    Making,
    Waiting,
    Handed,
    Ending,
}

/// One sandbox. Its directory has the name of its id; no path is ever read from a journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Row {
    pub(crate) id: SandboxId,
    pub(crate) step: Step,
    /// Boot id of the host: the numbers below mean nothing after another boot.
    pub(crate) boot_id: String,
    /// Number of its network slot.
    pub(crate) slot: u16,
    /// Whom its VMM runs as.
    pub(crate) uid: u32,
    /// What it begins with; none: it boots.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) snapshot_id: Option<SnapshotId>,
    pub(crate) vsock_port: u32,
    /// Its disk, as the server made it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) disk: Option<DiskId>,
    /// Its VMM, once that was started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) process: Option<VmmProcess>,
    /// As it was shown last, once it was handed out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) info: Option<SandboxInfo>,
    /// When it is to be destroyed, milliseconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) expires_unix_ms: Option<u64>,
    /// Why it is being destroyed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) ending: Option<Ending>,
    /// What machine it is. Kept beside the rows, since most share one.
    #[serde(skip)]
    pub(crate) machine: Option<Arc<Machine>>,
}

/// A VMM process: its number and, since numbers are used again, when it started (`proc_pid_stat(5)`, field 22).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct VmmProcess {
    pub(crate) pid: u32,
    pub(crate) start_ticks: u64,
}

/// A file that is the same one whatever it is called: its VMM may put another in its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct DiskId {
    pub(crate) dev: u64,
    pub(crate) ino: u64,
}

impl DiskId {
    pub(crate) fn of(found: &Metadata) -> Self {
        Self { dev: found.dev(), ino: found.ino() }
    }
}
