//! What happened to sandboxes, as `GET /events` tells it: one JSON object a line. Never what a command was, or what
//! it printed.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::id::{SandboxId, SnapshotId};

/// One event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Event {
    /// Its number: one more for each, also over restarts of the server. Of `lost` the last one lost.
    pub seq: u64,
    /// When, milliseconds since 1970.
    pub unix_ms: u64,
    /// What.
    pub event: EventKind,
    /// Of which sandbox; absent from `lost`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox_id: Option<SandboxId>,
    /// Who caused it: the name of an API key; `server` for what the server did of its own accord. Absent when nobody
    /// needed a key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub who: Option<String>,
    /// `created`: the snapshot it begins with, absent when it boots. `snapshot`: the new one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot_id: Option<SnapshotId>,
    /// `exec`: from the command's turn to its end by the host's clock, microseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration_us: Option<u64>,
    /// `exec`: the exit status, of a command that ended by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// `exec` without exit status, `destroyed`, `swept`: why, in one word. `crashed`: why, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// `lost`: how many events are not kept any more; absent where that is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lost: Option<u64>,
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum EventKind {
    /// Its creation began, or one that waited was claimed.
    Created,
    /// It was handed out, and takes commands.
    Ready,
    /// A command ended, or was ended.
    Exec,
    /// It was saved.
    Snapshot,
    /// Its lifetime ended; it is being destroyed.
    Expired,
    /// Its microVM or agent failed; the entry stays until it is destroyed.
    Crashed,
    /// It is gone, with all it used. The last event of every sandbox that was created.
    Destroyed,
    /// A server that was killed left it running; this one took it back, and it takes commands.
    Adopted,
    /// A server that was killed left it behind; it was removed at this server's start. Its last event.
    Swept,
    /// Events before the next line are not kept any more.
    Lost,
}

impl EventKind {
    /// As in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Ready => "ready",
            Self::Exec => "exec",
            Self::Snapshot => "snapshot",
            Self::Expired => "expired",
            Self::Crashed => "crashed",
            Self::Destroyed => "destroyed",
            Self::Adopted => "adopted",
            Self::Swept => "swept",
            Self::Lost => "lost",
        }
    }
}

impl Event {
    /// One without number and time yet, and nothing more to say.
    #[must_use]
    pub fn new(event: EventKind, sandbox_id: Option<SandboxId>) -> Self {
        let (who, snapshot_id, duration_us, exit_code, reason, lost) = (None, None, None, None, None, None);
        Self { seq: 0, unix_ms: 0, event, sandbox_id, who, snapshot_id, duration_us, exit_code, reason, lost }
    }
}
