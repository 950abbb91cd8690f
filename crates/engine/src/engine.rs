//! The way in: a table of sandboxes and what they share.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use manta_api::{SandboxId, SandboxInfo, SandboxState, SnapshotId, SnapshotInfo};
use manta_host::disk::{CloneMode, reflink_supported};
use manta_host::lock::{ServerLock, WorkDirLock};
use manta_host::net::{GUEST, HostNetwork};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use crate::agent::ExecOutput;
use crate::artifacts::Artifacts;
use crate::config::EngineConfig;
use crate::confine::Confinement;
use crate::dirs::{self, make_dir, sandboxes};
use crate::error::{EngineError, StartError};
use crate::exec::ExecSpec;
use crate::fingerprint;
use crate::prepared::{Prepared, PreparedVms};
use crate::resources::{Resources, Start};
use crate::sandbox::Handle;
use crate::shared::{Shared, random};
use crate::slots::Slots;
use crate::snapshots::{Limits, Order, SnapshotName, Store, StoreError, Stored, blocking, golden};
use crate::sweep::sweep;
use crate::table::Table;

/// Longest a shutdown waits for sandboxes to go.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(30);
/// Restores of the golden snapshot that may fail in a row before it is given up.
const GOLDEN_FAILURES: u32 = 3;

/// Makes, lists, uses and destroys sandboxes.
#[derive(Debug)]
pub struct Engine {
    shared: Shared,
    table: Arc<Table>,
    capacity: Arc<Semaphore>,
    snapshots: Store,
    templates: Store,
    golden: Mutex<Golden>,
    /// Restores of it that failed, since the last that succeeded.
    golden_failures: AtomicU32,
    prepared: Arc<PreparedVms>,
    degraded: Vec<String>,
    _locks: (ServerLock, WorkDirLock),
}

/// What new sandboxes begin with.
#[derive(Debug)]
enum Golden {
    /// None, or none yet.
    Missing,
    Ready(Arc<Stored>),
    /// None, for this reason.
    Failed(String),
}

/// What a shutdown left undone.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct ShutdownReport {
    /// What could not be removed, and why; empty when all is gone.
    pub problems: Vec<String>,
}

impl Engine {
    /// Takes the host's resources and sweeps what a killed predecessor left. Blocking, seconds at
    /// most; must be called within a Tokio runtime.
    ///
    /// # Errors
    /// Whatever of the settings or the host would keep sandboxes from working.
    pub fn start(config: EngineConfig) -> Result<Self, StartError> {
        make_dir(&config.work_dir)?;
        make_dir(&sandboxes(&config))?;
        let work_dir_lock =
            WorkDirLock::acquire(&config.work_dir).map_err(StartError::host("lock the work directory"))?;
        let server_lock = ServerLock::acquire()
            .map_err(StartError::host("be the only server in this network namespace"))?;
        if config.clone_mode == CloneMode::ReflinkRequired {
            let can = reflink_supported(&config.work_dir)
                .map_err(StartError::host("find out whether the work directory can clone files"))?;
            if !can {
                return Err(StartError::NoReflink(config.work_dir.clone()));
            }
        }
        sweep(&sandboxes(&config)).map_err(StartError::host("remove what a killed server left behind"))?;
        let artifacts = Artifacts::prepare(&config)?;
        let machine = fingerprint::machine(&config, &artifacts)
            .map_err(StartError::host("take the fingerprint of what snapshots depend on"))?;
        let limits = Limits { max_snapshots: config.max_snapshots, max_bytes: config.max_snapshot_bytes };
        let opened = |store: Result<Store, StoreError>| store.map_err(StartError::host("open the snapshots"));
        let snapshots = opened(Store::open(&dirs::snapshots(&config.work_dir), limits))?;
        let templates = opened(Store::open(&dirs::golden(&config.work_dir), Limits::NONE))?;
        let host = HostNetwork::set_up(config.egress.as_deref())
            .map_err(StartError::host("set up the host's side of the sandboxes' network"))?;

        let confinement = Confinement::for_vmm(config.vmm.info());
        let mut degraded = Vec::new();
        if config.egress.is_none() {
            degraded.push(
                "no egress: sandboxes reach no network; give the host a default route, or name an interface \
                 in MANTA_HOST_IFACE"
                    .to_owned(),
            );
        }
        degraded.extend(confinement.root_because.clone());
        degraded.iter().for_each(|what| warn!("degraded: {what}"));

        let slots = Slots::new(Arc::new(host), confinement.clone(), config.netns_pool_size);
        let capacity = Arc::new(Semaphore::new(config.max_sandboxes));
        let shared = Shared {
            config: Arc::new(config),
            artifacts: Arc::new(artifacts),
            machine: Arc::new(machine),
            confinement,
            slots: slots.clone(),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
        };
        shared.tasks.spawn(slots.keep_full(shared.stop.clone()));
        let prepared = PreparedVms::new(shared.config.vmm_pool_size);
        shared.tasks.spawn(prepared.clone().keep_full(shared.clone()));
        Ok(Self {
            shared,
            table: Arc::default(),
            capacity,
            snapshots,
            templates,
            golden: Mutex::new(Golden::Missing),
            golden_failures: AtomicU32::new(0),
            prepared,
            degraded,
            _locks: (server_lock, work_dir_lock),
        })
    }

    /// Makes sure that there is a golden snapshot for these settings, if there is to be one. Seconds, when it has
    /// to be made. Failing that, sandboxes boot, and [`Self::degraded`] says why.
    pub async fn prepare(&self) {
        if !self.shared.config.golden_snapshot {
            return;
        }
        let golden = match self.find_or_make_golden().await {
            Ok(stored) => {
                self.prepared.set(Some(stored.clone()));
                Golden::Ready(stored)
            }
            Err(error) => {
                warn!(%error, "no golden snapshot: every sandbox boots");
                Golden::Failed(error.to_string())
            }
        };
        *self.golden() = golden;
    }

    async fn find_or_make_golden(&self) -> Result<Arc<Stored>, EngineError> {
        let (templates, machine) = (self.templates.clone(), self.shared.machine.clone());
        if let Some(stored) = blocking(move || templates.golden(&machine)).await? {
            // Its memory is too large to be hashed, so it is tried.
            match self.begin(Start::Restore(stored.clone()), self.admit()?).await {
                Ok(id) => {
                    info!(snapshot_id = %stored.manifest.id, "golden snapshot found");
                    self.destroy(&id).await?;
                    return Ok(stored);
                }
                Err(error @ EngineError::BootFailed { .. }) => {
                    warn!(%error, "the golden snapshot cannot be restored: it is made anew");
                    let (templates, id) = (self.templates.clone(), stored.manifest.id.clone());
                    blocking(move || templates.delete(&id)).await?;
                }
                Err(error) => return Err(error),
            }
        }
        info!("making the golden snapshot");
        let id = self.begin(Start::Boot, self.admit()?).await?;
        let made = golden::make(&self.handle(&id)?, self.templates.clone()).await;
        self.destroy(&id).await?;
        made
    }

    /// No more of it: every sandbox boots.
    fn give_up_golden(&self, reason: String) {
        warn!(reason, "the golden snapshot is of no use any more: every sandbox boots");
        *self.golden() = Golden::Failed(reason);
        self.prepared.set(None);
    }

    /// A new sandbox, ready for commands. Dropping this takes apart what was begun.
    ///
    /// # Errors
    /// [`EngineError::HostFull`], [`EngineError::ShuttingDown`], [`EngineError::BootFailed`] or
    /// [`EngineError::Host`]; nothing is left of it then.
    pub async fn create(&self) -> Result<SandboxId, EngineError> {
        let permit = self.admit()?;
        let golden = match &*self.golden() {
            Golden::Ready(stored) => Some(stored.clone()),
            _ => None,
        };
        let Some(golden) = golden else { return self.begin(Start::Boot, permit).await };
        let checked = golden.clone();
        if let Err(error) = blocking(move || checked.check()).await {
            self.give_up_golden(error.to_string());
            return self.begin(Start::Boot, permit).await;
        }
        let start = Start::Restore(golden.clone());
        let outcome = match self.prepared.claim(&golden, &self.shared).await {
            None => self.begin(start, permit).await,
            Some(Prepared { id, resources, .. }) => self.begin_with(id, start, resources, permit).await,
        };
        match &outcome {
            Ok(_) => self.golden_failures.store(0, Ordering::Relaxed),
            Err(EngineError::BootFailed { .. }) => {
                if self.golden_failures.fetch_add(1, Ordering::Relaxed) + 1 >= GOLDEN_FAILURES {
                    self.give_up_golden(format!("{GOLDEN_FAILURES} restores in a row failed"));
                }
            }
            Err(_) => {}
        }
        outcome
    }

    /// A new sandbox that goes on where a snapshot was taken. Dropping this takes apart what was begun.
    ///
    /// # Errors
    /// As [`Self::create`], and [`EngineError::SnapshotNotFound`], [`EngineError::SnapshotIncompatible`] or
    /// [`EngineError::SnapshotDamaged`].
    pub async fn restore(&self, id: &SnapshotId) -> Result<SandboxId, EngineError> {
        let permit = self.admit()?;
        let restored = self.begin(Start::Restore(self.stored(id).await?), permit).await;
        if restored.is_err() {
            // When it was deleted meanwhile, that is the reason.
            self.stored(id).await?;
        }
        restored
    }

    /// A user's snapshot that can be restored here.
    async fn stored(&self, id: &SnapshotId) -> Result<Arc<Stored>, EngineError> {
        let (snapshots, machine, id) = (self.snapshots.clone(), self.shared.machine.clone(), id.clone());
        blocking(move || snapshots.get(&id, &machine)).await
    }

    /// A place among all sandboxes.
    fn admit(&self) -> Result<OwnedSemaphorePermit, EngineError> {
        if self.shared.stop.is_cancelled() {
            return Err(EngineError::ShuttingDown);
        }
        let limit = self.shared.config.max_sandboxes;
        self.capacity.clone().try_acquire_owned().map_err(|_| EngineError::HostFull { limit })
    }

    async fn begin(&self, start: Start, permit: OwnedSemaphorePermit) -> Result<SandboxId, EngineError> {
        self.begin_with(SandboxId::from_random(random()?), start, Resources::default(), permit).await
    }

    /// Brings up a sandbox. When the VMM of a restored one dies on the way, which one that waited may have done
    /// already, it is tried once more: nothing was handed out.
    async fn begin_with(
        &self,
        id: SandboxId,
        start: Start,
        resources: Resources,
        permit: OwnedSemaphorePermit,
    ) -> Result<SandboxId, EngineError> {
        let is_restore = matches!(start, Start::Restore(_));
        match self.bring_up(id, start.clone(), resources, permit).await {
            Err(error @ EngineError::BootFailed { ended: true, .. }) if is_restore => {
                warn!(%error, "the microVM of a new sandbox died; another is made");
                let id = SandboxId::from_random(random()?);
                self.bring_up(id, start, Resources::default(), self.admit()?).await
            }
            outcome => outcome,
        }
    }

    async fn bring_up(
        &self,
        id: SandboxId,
        start: Start,
        resources: Resources,
        permit: OwnedSemaphorePermit,
    ) -> Result<SandboxId, EngineError> {
        if self.shared.stop.is_cancelled() {
            return Err(EngineError::ShuttingDown);
        }
        let info = SandboxInfo {
            id: id.clone(),
            state: SandboxState::Creating,
            reason: None,
            vmm: self.shared.config.vmm.info().kind.to_string(),
            snapshot_id: match &start {
                Start::Restore(stored) => Some(stored.manifest.id.clone()),
                Start::Boot => None,
            },
            created_unix_s: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
            pid: None,
            guest_address: GUEST.address,
            host_address: Ipv4Addr::UNSPECIFIED,
        };
        let (created, outcome) = oneshot::channel();
        let shared = self.shared.clone();
        let handle = self
            .table
            .insert(&id, |ended| Handle::start(info, start, resources, shared, permit, created, ended));
        let guard = handle.leave_on_drop();
        outcome.await.unwrap_or(Err(EngineError::ShuttingDown))?;
        guard.disarm();
        Ok(id)
    }

    /// Saves a running sandbox, which goes on running. Dropping this leaves no snapshot.
    ///
    /// # Errors
    /// [`EngineError::NotFound`], [`EngineError::NotRunning`], [`EngineError::BadRequest`] for a name that is
    /// none, and those that are about snapshots; nothing is left of it then.
    pub async fn snapshot(
        &self,
        id: &SandboxId,
        name: Option<&str>,
    ) -> Result<(SnapshotId, Duration), EngineError> {
        let name = name.map(str::parse::<SnapshotName>).transpose();
        let name = name.map_err(|error| EngineError::BadRequest(error.to_string()))?;
        let stored = self.handle(id)?.snapshot(Order { store: self.snapshots.clone(), name }).await?;
        Ok((stored.manifest.id.clone(), Duration::from_micros(stored.manifest.pause_us)))
    }

    /// All snapshots, oldest first.
    ///
    /// # Errors
    /// [`EngineError::Host`].
    pub async fn snapshots(&self) -> Result<Vec<SnapshotInfo>, EngineError> {
        let (snapshots, machine) = (self.snapshots.clone(), self.shared.machine.clone());
        blocking(move || Ok(snapshots.list(&machine))).await
    }

    /// Deletes a snapshot; sandboxes restored from it live on.
    ///
    /// # Errors
    /// [`EngineError::SnapshotNotFound`] or [`EngineError::Host`].
    pub async fn delete_snapshot(&self, id: &SnapshotId) -> Result<(), EngineError> {
        let (snapshots, id) = (self.snapshots.clone(), id.clone());
        blocking(move || snapshots.delete(&id)).await
    }

    /// Runs a command in a sandbox. Dropping this kills it.
    ///
    /// # Errors
    /// All but those of [`Self::create`]; what the command printed so far comes with the error.
    pub async fn exec(&self, id: &SandboxId, spec: ExecSpec) -> Result<ExecOutput, EngineError> {
        let max = self.shared.config.exec_timeout_max;
        if spec.timeout.is_some_and(|timeout| timeout.is_zero() || timeout > max) {
            return Err(EngineError::BadRequest(format!("timeout_ms must be 1 to {}", max.as_millis())));
        }
        let handle = self.handle(id)?;
        handle.exec(spec).await
    }

    /// Destroys a sandbox; completes when all it used is gone. Idempotent.
    ///
    /// # Errors
    /// [`EngineError::NotFound`] for an id that never was.
    pub async fn destroy(&self, id: &SandboxId) -> Result<(), EngineError> {
        match self.handle(id) {
            Ok(handle) => {
                handle.destroy().await;
                Ok(())
            }
            Err(_) if self.table.was_destroyed(id) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// All sandboxes, oldest first.
    #[must_use]
    pub fn list(&self) -> Vec<SandboxInfo> {
        self.table.infos()
    }

    /// What is not as it should be, and what to do about it.
    #[must_use]
    pub fn degraded(&self) -> Vec<String> {
        let golden = match &*self.golden() {
            Golden::Failed(reason) => Some(format!(
                "no golden snapshot, so every sandbox boots, in seconds: {reason}; restart the server to try again"
            )),
            _ => None,
        };
        self.degraded.iter().cloned().chain(golden).collect()
    }

    /// The settings in force.
    #[must_use]
    pub fn config(&self) -> &EngineConfig {
        &self.shared.config
    }

    /// Destroys all sandboxes and gives back what the engine took from the host. New work is refused
    /// from the start.
    pub async fn shut_down(&self) -> ShutdownReport {
        let mut report = ShutdownReport::default();
        self.shared.stop.cancel();
        self.shared.tasks.close();
        if tokio::time::timeout(SHUTDOWN_LIMIT, self.shared.tasks.wait()).await.is_err() {
            let left = self.table.len();
            report.problems.push(format!("{left} sandboxes did not end in time"));
        }
        match self.shared.slots.close().await.map(Arc::try_unwrap) {
            Some(Ok(host)) => {
                if let Err(error) = host.tear_down() {
                    report.problems.push(crate::error::chain(&error));
                }
            }
            Some(Err(_)) => report.problems.push("the host's network is still in use".to_owned()),
            None => {}
        }
        info!(problems = ?report.problems, "shut down");
        report
    }

    fn golden(&self) -> MutexGuard<'_, Golden> {
        self.golden.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn handle(&self, id: &SandboxId) -> Result<Handle, EngineError> {
        self.table.get(id).ok_or_else(|| EngineError::NotFound(id.clone()))
    }
}
