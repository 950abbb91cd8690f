//! What the journal is told of a sandbox: before things are made, and when they are gone.

use std::time::Duration;

use manta_api::{SandboxId, SandboxInfo};

use super::{Resources, Start, no_guest};
use crate::ending::Ending;
use crate::error::EngineError;
use crate::journal::{Record, Row, Step, Unwritable, Written};
use crate::shared::Shared;

/// Longest that a destroy waits for the journal.
const LIMIT: Duration = Duration::from_secs(1);

impl Resources {
    /// Has the journal know that it waits.
    pub(crate) fn waits(&mut self) {
        self.record.iter_mut().for_each(Record::waits);
    }

    /// Has the journal know that it is handed out, as `info` shows it: not to be done before this completes.
    pub(crate) fn hand_out(
        &mut self,
        info: SandboxInfo,
        expires_unix_ms: Option<u64>,
    ) -> impl Future<Output = Result<(), EngineError>> + Send + 'static {
        let written = self.record.as_mut().map(|record| record.hand_out(info, expires_unix_ms));
        async move {
            match written {
                Some(written) => written.await.map_err(unwritable),
                None => Err(no_guest()),
            }
        }
    }

    /// Has the journal know when it is to end.
    pub(crate) fn extend(&mut self, info: SandboxInfo, expires_unix_ms: u64) -> Option<Written> {
        self.record.as_mut().map(|record| record.extend(info, Some(expires_unix_ms)))
    }

    /// Has the journal know that it is being destroyed; completes when it does, or cannot.
    pub(crate) async fn ends(&mut self, ending: Ending) {
        if let Some(record) = &mut self.record {
            patiently(record.ends(ending)).await;
        }
    }

    /// What is told of it when nothing is left.
    pub(crate) fn will_have_ended(&mut self, ending: &Ending) {
        self.record.iter_mut().for_each(|record| record.will_have_ended(ending.clone()));
    }
}

/// As the journal knows it first.
pub(super) fn first_row(id: &SandboxId, start: &Start, slot: u16, uid: u32, shared: &Shared) -> Row {
    Row {
        id: id.clone(),
        step: Step::Making,
        boot_id: shared.boot_id.to_string(),
        slot,
        uid,
        snapshot_id: match start {
            Start::Boot => None,
            Start::Restore(stored) => Some(stored.manifest.id.clone()),
        },
        vsock_port: shared.config.vsock_port,
        disk: None,
        process: None,
        info: None,
        expires_unix_ms: None,
        ending: None,
        machine: Some(shared.machine.clone()),
    }
}

/// Waits until something is written that would be done also if it cannot be, for a while.
pub(super) async fn patiently(written: Written) {
    // What goes wrong is in the log already.
    let _ = tokio::time::timeout(LIMIT, written).await;
}

pub(super) fn unwritable(error: Unwritable) -> EngineError {
    EngineError::JournalUnwritable { reason: error.to_string() }
}
