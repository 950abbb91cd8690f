//! Taking a snapshot of a running sandbox, which goes on running: the agent's connection is parked, the guest is
//! paused while its state, memory and disk are saved, then everything resumes, whatever happened.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use manta_api::{Event, EventKind, SandboxInfo, SandboxState};
use manta_host::disk::clone_file;
use manta_vmm::{BoxFuture, MicroVm, SnapshotFiles};
use tokio::sync::oneshot;
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{Draft, Machine, SnapshotName, Store, StoreError, Stored};
use crate::agent::Session;
use crate::artifacts::by_descriptor;
use crate::caller::Caller;
use crate::error::{EngineError, chain};
use crate::failpoint::{Failpoint, reached};
use crate::guest;
use crate::shared::Shared;
use crate::timing::Clock;

/// For a guest to write what it has cached to its disk, and to send what is due.
const PARK_LIMIT: Duration = Duration::from_secs(60);

/// What a snapshot is taken of.
#[derive(Debug)]
pub(crate) struct Subject {
    pub(crate) vm: Arc<dyn MicroVm>,
    pub(crate) session: Session,
    /// The sandbox's own disk.
    pub(crate) disk: Arc<File>,
    /// What it is: of other settings than today's, perhaps, if it was taken back from a killed server.
    pub(crate) machine: Arc<Machine>,
}

/// What is wanted.
#[derive(Debug)]
pub(crate) struct Order {
    /// By whom.
    pub(crate) caller: Caller,
    /// Where to.
    pub(crate) store: Store,
    pub(crate) name: Option<SnapshotName>,
    pub(crate) clock: Clock,
}

/// Takes a snapshot and answers; to be awaited to its end, which `doomed` hastens: then the sandbox is of no use any
/// more. When nobody waits for the answer any more, there is no snapshot.
pub(crate) async fn take(
    info: &SandboxInfo,
    subject: Subject,
    order: Order,
    shared: &Shared,
    doomed: &CancellationToken,
    answer: oneshot::Sender<Result<Arc<Stored>, EngineError>>,
) {
    let (store, who) = (order.store.clone(), order.caller.who());
    let taken = save(info, subject, order, shared, doomed, || answer.is_closed()).await;
    // Before the answer, so that who has that finds the event.
    if let Ok(stored) = &taken
        && !answer.is_closed()
    {
        let snapshot_id = Some(stored.manifest.id.clone());
        shared.events.emit(Event {
            who,
            snapshot_id,
            ..Event::new(EventKind::Snapshot, Some(info.id.clone()))
        });
    }
    if let Err(Ok(unwanted)) = answer.send(taken) {
        let deleted = spawn_blocking(move || store.delete(&unwanted.manifest.id)).await;
        warn!(sandbox_id = %info.id, ?deleted, "nobody waited for a snapshot: it is deleted again");
    }
}

async fn save(
    info: &SandboxInfo,
    subject: Subject,
    order: Order,
    shared: &Shared,
    doomed: &CancellationToken,
    unwanted: impl Fn() -> bool,
) -> Result<Arc<Stored>, EngineError> {
    let Order { store, name, clock, .. } = order;
    let machine = subject.machine.clone();
    let mem_bytes = u64::from(machine.mem_mib) << 20;
    let disk_bytes = subject.disk.metadata().map_or(0, |found| found.blocks() * 512);
    let draft = blocking(move || store.begin(name, mem_bytes + disk_bytes)).await?;
    reached(Failpoint::SnapshotDrafted);
    clock.passed("draft");
    match fill(info, subject, &draft, shared, doomed, &clock).await {
        Ok(pause) if !unwanted() => commit(info, draft, pause, &machine, &clock).await,
        outcome => {
            let removed = spawn_blocking(move || drop(draft)).await;
            debug_assert!(removed.is_ok(), "dropping a draft panicked");
            Err(outcome.err().unwrap_or_else(|| going(info)))
        }
    }
}

/// Saves the guest to the draft; says how long it was paused.
async fn fill(
    info: &SandboxInfo,
    subject: Subject,
    draft: &Draft,
    shared: &Shared,
    doomed: &CancellationToken,
    clock: &Clock,
) -> Result<Duration, EngineError> {
    let Subject { vm, session, disk, .. } = subject;
    // How long the guest takes is up to the guest.
    let parked = doomed.run_until_cancelled(session.park(PARK_LIMIT)).await.ok_or_else(|| going(info))?;
    parked.map_err(|error| failed("parking the agent", &error))?;
    reached(Failpoint::SnapshotParked);
    clock.passed("park");
    let paused = pause_and_save(&*vm, draft, disk, shared).await;
    reached(Failpoint::SnapshotSaved);
    clock.passed_with("save", "pause", *paused.as_ref().unwrap_or(&Duration::ZERO));
    // Whatever happened, the guest goes on if it can.
    let resumed = doomed.run_until_cancelled(guest::resume(&session, &shared.config)).await;
    reached(Failpoint::SnapshotResumed);
    clock.passed("resume");
    let pause = paused?;
    resumed.ok_or_else(|| going(info))?.map_err(|error| failed("letting the guest go on", &error))?;
    Ok(pause)
}

async fn commit(
    info: &SandboxInfo,
    draft: Draft,
    pause: Duration,
    machine: &Machine,
    clock: &Clock,
) -> Result<Arc<Stored>, EngineError> {
    let created_unix_ms = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    let (sandbox_id, machine) = (info.id.clone(), machine.clone());
    let created_unix_ms = u64::try_from(created_unix_ms).unwrap_or_default();
    let stored = blocking(move || draft.commit(sandbox_id, created_unix_ms, machine, pause)).await?;
    clock.passed("commit");
    let stages = clock.timings();
    info!(sandbox_id = %info.id, snapshot_id = %stored.manifest.id, ?pause, %stages, "snapshot taken");
    Ok(stored)
}

/// How long the guest was paused.
async fn pause_and_save(
    vm: &dyn MicroVm,
    draft: &Draft,
    disk: Arc<File>,
    shared: &Shared,
) -> Result<Duration, EngineError> {
    let (to, mode) = (draft.disk(), shared.config.clone_mode);
    let clone_disk: BoxFuture<'_, io::Result<()>> = Box::pin(async move {
        let cloned = spawn_blocking(move || clone_file(&by_descriptor(&disk), &to, mode)).await?;
        reached(Failpoint::SnapshotPaused);
        cloned.map(drop).map_err(|error| io::Error::other(chain(&error)))
    });
    let files: SnapshotFiles = draft.files();
    vm.snapshot(&files, clone_disk).await.map_err(|error| failed("saving the microVM", &error))
}

/// Work on the store, off the event loop.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, EngineError> {
    match spawn_blocking(work).await {
        Ok(done) => done.map_err(EngineError::from),
        Err(panicked) => {
            Err(EngineError::Host { stage: "working on snapshots", reason: panicked.to_string() })
        }
    }
}

fn going(info: &SandboxInfo) -> EngineError {
    EngineError::NotRunning { id: info.id.clone(), state: SandboxState::Stopping, reason: None }
}

fn failed(stage: &'static str, error: &dyn std::error::Error) -> EngineError {
    EngineError::SnapshotFailed { stage, reason: chain(error) }
}
