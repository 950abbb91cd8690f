//! Bodies of `/snapshot/*`.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::id::{SandboxId, SnapshotId};

/// `POST /snapshot/create`: saves a running sandbox, which goes on running.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SnapshotCreateRequest {
    /// The sandbox.
    pub sandbox_id: SandboxId,
    /// A name for people, unlike that of any other snapshot: 1 to 64 letters, digits, `.`, `_` and `-`,
    /// beginning with a letter or digit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// The snapshot is complete and on the disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SnapshotCreateResponse {
    /// The snapshot.
    pub snapshot_id: SnapshotId,
    /// How long the sandbox stood still, microseconds.
    #[serde(default)]
    pub pause_us: u64,
}

/// `POST /snapshot/restore`: a new sandbox that begins where the snapshot was taken. The answer is that of
/// `POST /create`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SnapshotRestoreRequest {
    /// The snapshot.
    pub snapshot_id: SnapshotId,
    /// The new sandbox is destroyed after this long, seconds from when it is handed out. Default and maximum are the
    /// server's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1)]
    pub timeout_s: Option<u64>,
}

/// `POST /snapshot/delete`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SnapshotDeleteRequest {
    /// The snapshot.
    pub snapshot_id: SnapshotId,
}

/// The snapshot is gone; sandboxes restored from it are not touched.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SnapshotDeleteResponse {
    /// The snapshot.
    pub snapshot_id: SnapshotId,
    /// Always `deleted`.
    pub status: SnapshotDeleteStatus,
}

/// See [`SnapshotDeleteResponse`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum SnapshotDeleteStatus {
    /// Its files are removed.
    Deleted,
}

/// `GET /snapshot/list`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SnapshotList {
    /// Oldest first.
    pub snapshots: Vec<SnapshotInfo>,
}

/// One snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SnapshotInfo {
    /// The snapshot.
    pub id: SnapshotId,
    /// As given when it was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// When it was made, milliseconds since 1970.
    pub created_unix_ms: u64,
    /// The sandbox it was made of.
    pub sandbox_id: SandboxId,
    /// `qemu` or `firecracker`.
    pub vmm: String,
    /// Version of the VMM.
    pub vmm_version: String,
    /// Virtual processors.
    pub vcpus: u8,
    /// Memory, MiB.
    pub mem_mib: u32,
    /// What its files take on the host's disk, bytes. Blocks shared with other files count in each.
    pub disk_bytes: SnapshotBytes,
    /// Whether this server can restore it.
    pub restorable: bool,
    /// Why not, when it cannot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// Bytes on the host's disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SnapshotBytes {
    /// Processors and devices.
    pub state: u64,
    /// The guest's memory.
    pub memory: u64,
    /// The guest's own disk.
    pub disk: u64,
}

impl SnapshotBytes {
    /// All of them.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.state + self.memory + self.disk
    }
}
