//! The way in: a table of sandboxes and what they share.

mod begin;
mod ready;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use manta_api::{SandboxId, SandboxInfo, SnapshotId, SnapshotInfo};
use manta_host::WorkDirLock;
use manta_host::disk::{CloneMode, reflink_supported};
use manta_host::facts;
use manta_host::net::{HostNetwork, ServerLock, sweep_network};
use manta_host::process::processes_in;
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, info, warn};

use crate::admission::{Admission, DiskRoom};
use crate::agent::ExecOutput;
use crate::artifacts::Artifacts;
use crate::caller::Caller;
use crate::config::{EngineConfig, sandbox_mib};
use crate::confine::Confinement;
use crate::dirs::{self, make_dir, sandboxes};
use crate::error::{EngineError, StartError};
use crate::events::{EventReader, Events, unix_ms};
use crate::exec::ExecSpec;
use crate::failpoint::{Failpoint, reached};
use crate::fingerprint;
use crate::journal::Journal;
use crate::lifetime;
use crate::limits::Limits as VmmLimits;
use crate::metrics;
use crate::net_rules::{NetRules, Watch};
use crate::places::{HostLimits, Places};
use crate::pool::{Foreground, Pools, PreparedVms, WarmPool};
use crate::recovery::Plan;
use crate::sandbox::Handle;
use crate::shared::Shared;
use crate::slots::Slots;
use crate::snapshots::{Limits, Order, SnapshotName, Store, StoreError, blocking};
use crate::table::Table;
use crate::template::Template;
use crate::timing::{Clock, Operation, Timed, Timings};
use crate::wish::Wish;

/// Longest a shutdown waits for sandboxes to go.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(30);

/// Longest it then waits for the last events to be in the log.
const LOG_LIMIT: Duration = Duration::from_secs(1);

/// Makes, lists, uses and destroys sandboxes.
#[derive(Debug)]
pub struct Engine {
    shared: Shared,
    /// Writes events to the log; ends after all else.
    logging: TaskTracker,
    /// What an earlier server left, until it is dealt with.
    left: Mutex<Option<Plan>>,
    table: Arc<Table>,
    admission: Arc<Admission>,
    foreground: Arc<Foreground>,
    snapshots: Store,
    templates: Store,
    template: Template,
    /// Cancelled once it is known what new sandboxes begin with.
    decided: CancellationToken,
    prepared: Arc<PreparedVms>,
    warm: Arc<WarmPool>,
    net_rules: Arc<NetRules>,
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
    /// Takes the host's resources, and decides what becomes of what a killed predecessor left: [`Self::recover`] is
    /// next. Blocking, seconds at most; must be called within a Tokio runtime.
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
        config
            .vmm
            .check_dir(&config.work_dir)
            .map_err(StartError::host("run microVMs in the work directory"))?;
        if config.clone_mode == CloneMode::ReflinkRequired {
            let can = reflink_supported(&config.work_dir)
                .map_err(StartError::host("find out whether the work directory can clone files"))?;
            if !can {
                return Err(StartError::NoReflink(config.work_dir.clone()));
            }
        }
        let left = StartError::host("find out what a killed server left behind");
        let deserted = || processes_in(&sandboxes(&config)).is_ok_and(|strays| strays.is_empty());
        let (journal, archive, found) =
            Journal::open(&config.work_dir, deserted).map_err(StartError::host("use the journal"))?;
        let vmm_limits = VmmLimits::set_up(&config)?;
        let artifacts = Artifacts::prepare(&config)?;
        let machine = fingerprint::machine(&config, &artifacts)
            .map_err(StartError::host("take the fingerprint of what snapshots depend on"))?;
        let limits = Limits {
            max_snapshots: config.max_snapshots,
            max_bytes: config.max_snapshot_bytes,
            reserve_bytes: config.disk_reserve_bytes,
        };
        let opened = |store: Result<Store, StoreError>| store.map_err(StartError::host("open the snapshots"));
        let snapshots = opened(Store::open(&dirs::snapshots(&config.work_dir), limits))?;
        let templates = opened(Store::open(&dirs::golden(&config.work_dir), Limits::NONE))?;
        let boot_id: Arc<str> = facts::boot_id().unwrap_or_default().into();
        let plan = Plan::make(found.rows, &sandboxes(&config), &boot_id, unix_ms()).map_err(left)?;
        let ours = config.vmm.info().kind.to_string();
        if let Some((theirs, count)) = plan.other_vmm(&ours) {
            return Err(StartError::OtherVmm { count, theirs, ours });
        }
        reached(Failpoint::RecoverOpened);
        // From here on something is changed, and nothing fails that could be known before.
        let kept: Vec<u16> = plan.kept_slots().into_iter().collect();
        sweep_network(&kept)
            .map_err(StartError::host("remove the network that a killed server left behind"))?;
        let host = HostNetwork::take_over(config.egress.as_deref(), &kept)
            .map_err(StartError::host("set up the host's side of the sandboxes' network"))?
            .with_limits(config.net_limits);
        let host = Arc::new(host);
        let watch = Watch::open(&host).map_err(StartError::host("watch the network's rules"))?;
        reached(Failpoint::RecoverNetwork);
        plan.sweep_groups(vmm_limits.cgroups());

        let confinement = Confinement::for_vmm(config.vmm.info());
        let mut degraded = Vec::new();
        if config.egress.is_none() {
            degraded.push(
                "no egress: sandboxes reach no network; give the host a default route, or name an interface \
                 in MANTA_HOST_IFACE"
                    .to_owned(),
            );
        }
        degraded.extend(confinement.no_jail_because.clone());
        degraded.extend(confinement.root_because.clone());
        degraded.extend_from_slice(vmm_limits.cgroups().missing());
        degraded.extend(found.put_aside);
        degraded.iter().for_each(|what| warn!("degraded: {what}"));

        let slots = Slots::new(host.clone(), confinement.clone(), config.netns_pool_size, plan.taken_slots());
        let stop = CancellationToken::new();
        let places = Places::new(HostLimits {
            max_sandboxes: config.max_sandboxes,
            max_memory_mib: config.max_memory_mib,
            sandbox_mib: sandbox_mib(config.mem_mib),
        });
        let room = DiskRoom { dir: config.work_dir.clone(), reserve_bytes: config.disk_reserve_bytes };
        let (width, patience) = (config.start_width, config.queue_timeout);
        let admission = Arc::new(Admission::new(places, room, width, patience, stop.clone()));
        let shared = Shared {
            config: Arc::new(config),
            artifacts: Arc::new(artifacts),
            machine: Arc::new(machine),
            confinement,
            limits: Arc::new(vmm_limits),
            slots: slots.clone(),
            events: Events::new(found.next_seq, archive),
            journal,
            boot_id,
            tasks: TaskTracker::new(),
            stop,
        };
        let net_rules = Arc::<NetRules>::default();
        shared.tasks.spawn(net_rules.clone().keep(host, watch, shared.stop.clone()));
        let logging = TaskTracker::new();
        logging.spawn(shared.events.clone().log());
        logging.spawn(shared.events.clone().write(shared.journal.clone()));
        let prepared = PreparedVms::new(shared.config.vmm_pool_size);
        let foreground = Arc::<Foreground>::default();
        let (target, max_age) = (shared.config.warm_pool_size, shared.config.warm_max_age);
        let warm = WarmPool::new(target, max_age, foreground.clone(), admission.clone());
        Ok(Self {
            shared,
            logging,
            left: Mutex::new(Some(plan)),
            table: Table::remembering(found.endings),
            admission,
            foreground,
            snapshots,
            templates,
            template: Template::default(),
            decided: CancellationToken::new(),
            prepared,
            warm,
            net_rules,
            degraded,
            _locks: (server_lock, work_dir_lock),
        })
    }

    /// A new sandbox, ready for commands, which is destroyed after `timeout`, or the engine's default. Dropping this
    /// takes apart what was begun.
    ///
    /// # Errors
    /// [`EngineError::BadRequest`], [`EngineError::HostFull`], [`EngineError::HostMemoryFull`],
    /// [`EngineError::HostDiskFull`], [`EngineError::HostDescriptorsFull`], [`EngineError::KeySandboxLimit`],
    /// [`EngineError::KeyRateLimit`], [`EngineError::Overloaded`], [`EngineError::ShuttingDown`],
    /// [`EngineError::BootFailed`] or [`EngineError::Host`]; nothing is left of it then.
    pub async fn create(&self, caller: &Caller, timeout: Option<Duration>) -> Timed<SandboxId> {
        let clock = Clock::start();
        let outcome = match self.wish(caller, timeout) {
            Ok(wish) => self.create_timed(&wish, &clock).await,
            Err(error) => Err(error),
        };
        clock.finish(Operation::Create, outcome)
    }

    /// A new sandbox that goes on where a snapshot was taken. Dropping this takes apart what was begun.
    ///
    /// # Errors
    /// As [`Self::create`], and [`EngineError::SnapshotNotFound`], [`EngineError::SnapshotIncompatible`] or
    /// [`EngineError::SnapshotDamaged`].
    pub async fn restore(
        &self,
        caller: &Caller,
        id: &SnapshotId,
        timeout: Option<Duration>,
    ) -> Timed<SandboxId> {
        let clock = Clock::start();
        let outcome = match self.wish(caller, timeout) {
            Ok(wish) => self.restore_timed(id, &wish, &clock).await,
            Err(error) => Err(error),
        };
        clock.finish(Operation::Restore, outcome)
    }

    fn wish(&self, caller: &Caller, timeout: Option<Duration>) -> Result<Wish, EngineError> {
        let lifetime = lifetime::of_new(timeout, &self.shared.config)?;
        Ok(Wish { caller: caller.clone(), lifetime })
    }

    /// Saves a running sandbox, which goes on running. Dropping this leaves no snapshot.
    ///
    /// # Errors
    /// [`EngineError::NotFound`], [`EngineError::NotRunning`], [`EngineError::BadRequest`] for a name that is
    /// none, and those that are about snapshots; nothing is left of it then.
    pub async fn snapshot(
        &self,
        caller: &Caller,
        id: &SandboxId,
        name: Option<&str>,
    ) -> Timed<(SnapshotId, Duration)> {
        let clock = Clock::start();
        let outcome = self.snapshot_timed(caller, id, name, clock.clone()).await;
        clock.finish(Operation::Snapshot, outcome)
    }

    async fn snapshot_timed(
        &self,
        caller: &Caller,
        id: &SandboxId,
        name: Option<&str>,
        clock: Clock,
    ) -> Result<(SnapshotId, Duration), EngineError> {
        let name = name.map(str::parse::<SnapshotName>).transpose();
        let name = name.map_err(|error| EngineError::BadRequest(error.to_string()))?;
        self.ensure_journal()?;
        let _busy = self.foreground.enter();
        let order = Order { caller: caller.clone(), store: self.snapshots.clone(), name, clock };
        let stored = self.handle(id).await?.snapshot(order).await?;
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
        // Before, so that it is done also when this is dropped; after, for who asked meanwhile.
        self.warm.forget(&id);
        let deleted = id.clone();
        blocking(move || snapshots.delete(&deleted)).await?;
        self.warm.forget(&id);
        Ok(())
    }

    /// Runs a command in a sandbox. Dropping this kills it.
    ///
    /// # Errors
    /// All but those of [`Self::create`]; what the command printed so far comes with the error.
    pub async fn exec(&self, caller: &Caller, id: &SandboxId, spec: ExecSpec) -> Timed<ExecOutput> {
        let clock = Clock::start();
        let outcome = self.exec_timed(caller, id, spec, clock.clone()).await;
        let timed = clock.finish(Operation::Exec, outcome);
        debug!(sandbox_id = %id, stages = %timed.timings, "command ended");
        timed
    }

    async fn exec_timed(
        &self,
        caller: &Caller,
        id: &SandboxId,
        spec: ExecSpec,
        clock: Clock,
    ) -> Result<ExecOutput, EngineError> {
        let max = self.shared.config.exec_timeout_max;
        if spec.timeout.is_some_and(|timeout| timeout.is_zero() || timeout > max) {
            return Err(EngineError::BadRequest(format!("timeout_ms must be 1 to {}", max.as_millis())));
        }
        let handle = self.handle(id).await?;
        self.foreground.touch();
        let outcome = handle.exec(caller.clone(), spec, clock).await;
        self.foreground.touch();
        outcome
    }

    /// Destroys a sandbox; completes when its guest is dead and its files are gone. Idempotent. Tells where the time
    /// went; nowhere, when it was gone already.
    ///
    /// # Errors
    /// [`EngineError::NotFound`] for an id that never was, or was long ago.
    pub async fn destroy(&self, caller: &Caller, id: &SandboxId) -> Result<Timings, EngineError> {
        match self.handle(id).await {
            Ok(handle) => {
                let _busy = self.foreground.enter();
                Ok(handle.destroy(caller).await)
            }
            Err(EngineError::Gone { .. }) => Ok(Timings::default()),
            Err(error) => Err(error),
        }
    }

    /// Has a running sandbox live for `timeout` from now on, whatever was said before.
    ///
    /// # Errors
    /// [`EngineError::BadRequest`], [`EngineError::NotFound`], [`EngineError::Gone`] or [`EngineError::NotRunning`].
    pub async fn extend(&self, id: &SandboxId, timeout: Duration) -> Result<SandboxInfo, EngineError> {
        let limit = lifetime::of_extended(timeout, &self.shared.config)?;
        self.handle(id).await?.extend(limit).await
    }

    /// One sandbox.
    ///
    /// # Errors
    /// [`EngineError::NotFound`] or [`EngineError::Gone`].
    pub async fn info(&self, id: &SandboxId) -> Result<SandboxInfo, EngineError> {
        self.handle(id).await.map(|handle| handle.info())
    }

    /// What happened after event number `since`, or since as long as is kept; with `follow` also what is still to
    /// happen, until the engine has shut down; to one sandbox, if it is named.
    #[must_use]
    pub fn events(&self, since: Option<u64>, follow: bool, of: Option<SandboxId>) -> EventReader {
        self.shared.events.reader(since, follow, of)
    }

    /// All sandboxes, oldest first.
    #[must_use]
    pub fn list(&self) -> Vec<SandboxInfo> {
        self.table.infos()
    }

    /// What is not as it should be, and what to do about it.
    #[must_use]
    pub fn degraded(&self) -> Vec<String> {
        let journal = self.shared.journal.ensure_writable().err();
        let journal = journal.map(|error| format!("nothing new can be begun: {error}"));
        let now = self.net_rules.problem().into_iter().chain(self.template.problem()).chain(journal);
        self.degraded.iter().cloned().chain(now).collect()
    }

    /// How the pools do.
    #[must_use]
    pub fn pools(&self) -> Pools {
        Pools { warm: self.warm.status(), vmms: self.prepared.status(), slots: self.shared.slots.status() }
    }

    /// Has the metrics tell how many sandboxes there are, and how full the pools.
    pub fn measure(&self) {
        metrics::sandboxes(&self.table.states());
        metrics::pools(self.pools());
        metrics::memory(self.admission.committed_mib(), self.shared.config.max_memory_mib);
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
        self.shared.events.close();
        self.logging.close();
        // Whoever keeps the log may not read it any more.
        let _ = tokio::time::timeout(LOG_LIMIT, self.logging.wait()).await;
        let journal = self.shared.journal.clone();
        if spawn_blocking(move || journal.close()).await.is_err() {
            report.problems.push("closing the journal panicked".to_owned());
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
        if let Err(error) = self.shared.limits.cgroups().tear_down() {
            report.problems.push(crate::error::chain(&error));
        }
        info!(problems = ?report.problems, "shut down");
        report
    }

    /// That what is begun now can be written down.
    fn ensure_journal(&self) -> Result<(), EngineError> {
        let written = self.shared.journal.ensure_writable();
        written.map_err(|error| EngineError::JournalUnwritable { reason: error.to_string() })
    }

    /// One that is not the server's own; once it is known whether it can be taken back from a killed server.
    async fn handle(&self, id: &SandboxId) -> Result<Handle, EngineError> {
        self.table.settled(id).await;
        let found = self.table.get(id).filter(|handle| !handle.is_own());
        found.ok_or_else(|| match self.table.ending(id) {
            Some(ending) => EngineError::Gone { id: id.clone(), ending },
            None => EngineError::NotFound(id.clone()),
        })
    }
}
