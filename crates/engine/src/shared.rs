//! What all sandboxes of an engine share.

use std::path::PathBuf;
use std::sync::Arc;

use manta_api::SandboxId;
use manta_host::random::random_bytes;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::artifacts::Artifacts;
use crate::config::EngineConfig;
use crate::confine::Confinement;
use crate::dirs::sandboxes;
use crate::error::EngineError;
use crate::events::Events;
use crate::journal::Journal;
use crate::limits::Limits;
use crate::slots::Slots;
use crate::snapshots::Machine;

/// What all sandboxes share.
#[derive(Debug, Clone)]
pub(crate) struct Shared {
    pub(crate) config: Arc<EngineConfig>,
    pub(crate) artifacts: Arc<Artifacts>,
    /// What snapshots taken now depend on.
    pub(crate) machine: Arc<Machine>,
    pub(crate) confinement: Confinement,
    pub(crate) limits: Arc<Limits>,
    pub(crate) slots: Arc<Slots>,
    pub(crate) events: Events,
    pub(crate) journal: Journal,
    /// Boot id of the host.
    pub(crate) boot_id: Arc<str>,
    pub(crate) tasks: TaskTracker,
    /// Cancelled when the engine shuts down.
    pub(crate) stop: CancellationToken,
}

impl Shared {
    pub(crate) fn sandbox_dir(&self, id: &SandboxId) -> PathBuf {
        sandboxes(&self.config).join(id.as_str())
    }
}

/// Random bytes from the kernel.
pub(crate) fn random<const N: usize>() -> Result<[u8; N], EngineError> {
    random_bytes()
        .map_err(|error| EngineError::Host { stage: "reading random bytes", reason: error.to_string() })
}
