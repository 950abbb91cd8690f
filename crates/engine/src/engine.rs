//! The way in: a table of sandboxes and what they share.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use manta_api::{SandboxId, SandboxInfo, SandboxState};
use manta_host::disk::{CloneMode, reflink_supported};
use manta_host::lock::{ServerLock, WorkDirLock};
use manta_host::net::{GUEST, HostNetwork};
use tokio::sync::{Semaphore, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use crate::agent::ExecOutput;
use crate::artifacts::Artifacts;
use crate::config::EngineConfig;
use crate::confine::Confinement;
use crate::dirs::{make_dir, sandboxes};
use crate::error::{EngineError, StartError};
use crate::exec::ExecSpec;
use crate::sandbox::Handle;
use crate::shared::{Shared, random};
use crate::slots::Slots;
use crate::sweep::sweep;
use crate::table::Table;

/// Longest a shutdown waits for sandboxes to go.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(30);

/// Makes, lists, uses and destroys sandboxes.
#[derive(Debug)]
pub struct Engine {
    shared: Shared,
    table: Arc<Table>,
    capacity: Arc<Semaphore>,
    degraded: Vec<String>,
    _locks: (ServerLock, WorkDirLock),
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
            confinement,
            slots: slots.clone(),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
        };
        shared.tasks.spawn(slots.keep_full(shared.stop.clone()));
        Ok(Self { shared, table: Arc::default(), capacity, degraded, _locks: (server_lock, work_dir_lock) })
    }

    /// A new sandbox, ready for commands. Dropping this takes apart what was begun.
    ///
    /// # Errors
    /// [`EngineError::HostFull`], [`EngineError::ShuttingDown`], [`EngineError::BootFailed`] or
    /// [`EngineError::Host`]; nothing is left of it then.
    pub async fn create(&self) -> Result<SandboxId, EngineError> {
        if self.shared.stop.is_cancelled() {
            return Err(EngineError::ShuttingDown);
        }
        let limit = self.shared.config.max_sandboxes;
        let permit =
            self.capacity.clone().try_acquire_owned().map_err(|_| EngineError::HostFull { limit })?;
        let id = SandboxId::from_random(random()?);
        let info = SandboxInfo {
            id: id.clone(),
            state: SandboxState::Creating,
            reason: None,
            vmm: self.shared.config.vmm.info().kind.to_string(),
            created_unix_s: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
            pid: None,
            guest_address: GUEST.address,
            host_address: Ipv4Addr::UNSPECIFIED,
        };
        let (created, outcome) = oneshot::channel();
        let shared = self.shared.clone();
        let handle = self.table.insert(&id, |ended| Handle::start(info, shared, permit, created, ended));
        let guard = handle.leave_on_drop();
        outcome.await.unwrap_or(Err(EngineError::ShuttingDown))?;
        guard.disarm();
        Ok(id)
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
    pub fn degraded(&self) -> &[String] {
        &self.degraded
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

    fn handle(&self, id: &SandboxId) -> Result<Handle, EngineError> {
        self.table.get(id).ok_or_else(|| EngineError::NotFound(id.clone()))
    }
}
