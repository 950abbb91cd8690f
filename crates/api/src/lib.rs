//! What goes over Manta's HTTP interface: bodies, ids, error codes. No I/O.

mod error;
mod event;
mod id;
mod sandbox;
mod server;
mod snapshot;

pub use error::{ErrorBody, ErrorCode};
pub use event::{Event, EventKind};
pub use id::{IdError, SandboxId, SnapshotId};
pub use sandbox::{
    CreateRequest, CreateResponse, DestroyRequest, DestroyResponse, DestroyStatus, ExecRequest, ExecResponse,
    ExtendRequest, OutputEncoding, SandboxInfo, SandboxList, SandboxState,
};
pub use server::{Health, HealthStatus, HostConditions, PoolInfo, Pools, VmmInfo};
pub use snapshot::{
    SnapshotBytes, SnapshotCreateRequest, SnapshotCreateResponse, SnapshotDeleteRequest,
    SnapshotDeleteResponse, SnapshotDeleteStatus, SnapshotInfo, SnapshotList, SnapshotRestoreRequest,
};
