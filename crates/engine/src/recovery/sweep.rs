//! Removing what is left under one name: its processes, then its cgroup and its files, then its entry in the journal.
//! The network of all that is not taken back is gone already.

use std::time::Duration;

use manta_api::{Event, EventKind};
use manta_host::process::{Process, ProcessError, ProcessId, Stray};
use tokio::task::spawn_blocking;
use tracing::{error, info};

use super::plan::Remains;
use crate::caller::Caller;
use crate::ending::Ending;
use crate::failpoint::{Failpoint, reached};
use crate::journal::{Row, written};
use crate::resources::remove;
use crate::shared::Shared;

/// How long a killed VMM may take to be gone.
const KILL_LIMIT: Duration = Duration::from_secs(10);

/// What could not be removed stays in the journal, for the next start to try again; but for its slot, which is tried
/// again until then, and in use.
pub(super) async fn sweep(remains: Remains, shared: Shared) {
    let Remains { id, row, dir, strays, ending } = remains;
    info!(
        sandbox_id = id.as_ref().map(tracing::field::display),
        ?dir,
        ?ending,
        "removing what a killed server left"
    );
    let process = row.as_ref().filter(|row| row.boot_id == *shared.boot_id).and_then(vmm);
    let (limits, name) = (shared.limits.clone(), id.as_ref().map(ToString::to_string));
    let removed = spawn_blocking(move || {
        kill(strays, process)?;
        remove(limits.cgroups(), name.as_deref(), dir.as_deref())?;
        reached(Failpoint::RecoverFiles);
        Ok(())
    });
    let removed = removed.await.unwrap_or_else(|panicked| Err(panicked.to_string()));
    if let Err(error) = removed {
        error!(
            sandbox_id = id.as_ref().map(tracing::field::display),
            error, "what a killed server left stays"
        );
        return;
    }
    let Some(id) = id else { return };
    let reason = ending.as_ref().map_or("left_behind", Ending::as_str);
    let (who, reason) = (Caller::Server.who(), Some(reason.to_owned()));
    shared.events.emit(Event { who, reason, ..Event::new(EventKind::Swept, Some(id.clone())) });
    if let Some(row) = row {
        // The journal says it if that cannot be written now.
        let _ = written(shared.journal.remove(id, ending)).await;
        reached(Failpoint::RecoverForgotten);
        let slots = shared.slots.clone();
        let discarded = spawn_blocking(move || slots.discard(row.slot)).await;
        if let Err(error) = discarded.unwrap_or_else(|panicked| Err(panicked.to_string())) {
            error!(
                slot = row.slot,
                error, "a network slot that a killed server left could not be taken apart"
            );
        }
    }
}

fn vmm(row: &Row) -> Option<ProcessId> {
    row.process.map(|vmm| ProcessId { pid: vmm.pid, start_ticks: vmm.start_ticks })
}

fn kill(strays: Vec<Stray>, process: Option<ProcessId>) -> Result<(), String> {
    let chain = |error: ProcessError| crate::error::chain(&error);
    for stray in strays {
        stray.kill_and_wait(KILL_LIMIT).map_err(chain)?;
    }
    // Usually among the strays, and gone by now.
    if let Some(process) = process.as_ref().map(Process::adopt).transpose().map_err(chain)?.flatten() {
        process.kill().map_err(chain)?;
        if process.wait_timeout(KILL_LIMIT).map_err(chain)?.is_none() {
            return Err(format!("process {} does not end", process.pid()));
        }
    }
    reached(Failpoint::RecoverKilled);
    Ok(())
}
