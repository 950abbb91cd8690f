//! What one sandbox uses on the host: acquired step by step, given back in the opposite order,
//! whatever step was reached. Owned by the sandbox's task; see [`crate::sandbox`].

mod adopt;
mod disk;
mod entry;
mod rest;
mod still;
mod tear_down;

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use manta_agent_proto::{Identity, Network};
use manta_api::{SandboxId, SandboxState};
use manta_host::net::{GUEST, NetSlot};
use manta_host::{Cgroup, remove_all};
use manta_vmm::{Exit, MicroVm, Origin, Place, VmmError};
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::agent::{End, Session};
use crate::artifacts::by_descriptor;
use crate::error::{EngineError, chain};
use crate::failpoint::{Stage, Way};
use crate::guest;
use crate::journal::{Record, VmmProcess};
use crate::shared::Shared;
use crate::snapshots::{Stored, Subject};
use crate::timing::Clock;

use disk::make_disk;
use entry::{first_row, unwritable};

pub(crate) use still::STANDS_STILL;
pub(crate) use tear_down::remove;

/// How often a restore is tried; see `engine/begin.rs`.
const RESTORES: u32 = 2;

/// A dead VMM's sockets close this long, at most, before its end is seen.
const DYING: Duration = Duration::from_millis(500);

/// For a VMM that lives to give what its guest printed.
const CONSOLE: Duration = Duration::from_secs(1);

/// How Linux begins its last words.
const PANIC: &str = "Kernel panic - not syncing";

/// What ended, and why.
#[derive(Debug)]
pub(crate) enum Death {
    /// The VMM, and the guest with it.
    Vmm(String),
    /// Only the session with the agent, which outlives connections that are lost.
    Session(End),
}

/// What a sandbox begins with.
#[derive(Debug, Clone)]
pub(crate) enum Start {
    /// An empty machine.
    Boot,
    /// A snapshot whose files were checked.
    Restore(Arc<Stored>),
}

/// Everything of one sandbox.
#[derive(Debug, Default)]
pub(crate) struct Resources {
    /// What the journal knows of it; there before anything else is.
    record: Option<Record>,
    /// Nobody has asked for it yet.
    ahead: bool,
    dir: Option<PathBuf>,
    /// The sandbox's own disk, held since before its directory was given to the VMM: what is in there may be
    /// anything by now.
    disk: Option<Arc<File>>,
    slot: Option<NetSlot>,
    /// Of its VMM.
    cgroup: Option<Cgroup>,
    vm: Option<Arc<dyn MicroVm>>,
    pub(crate) session: Option<Session>,
}

impl Resources {
    /// Of a sandbox that is made before anybody asks for it.
    pub(crate) fn ahead_of_time() -> Self {
        let mut resources = Self::default();
        resources.ahead = true;
        resources
    }

    /// Somebody has asked for it.
    pub(crate) fn claimed(mut self) -> Self {
        self.ahead = false;
        self
    }

    /// All the way to an adopted guest, from whatever was reached before. Must be awaited to its end: `leave` ends
    /// its waits early, with whatever was reached in `self`.
    pub(crate) async fn bring_up(
        &mut self,
        id: &SandboxId,
        start: &Start,
        shared: &Shared,
        leave: &CancellationToken,
        clock: &Clock,
    ) -> Result<(), EngineError> {
        if self.session.is_some() {
            return self.rouse(id, shared, leave, clock).await;
        }
        if self.vm.is_none() {
            self.prepare(id, start, shared, leave, clock).await?;
        }
        self.start_guest(id, self.way(start), shared, leave, clock).await
    }

    fn way(&self, start: &Start) -> Way {
        match start {
            _ if self.ahead => Way::Refill,
            Start::Boot => Way::Boot,
            Start::Restore(_) => Way::Restore,
        }
    }

    /// Up to a VMM that waits to be started; as [`Self::bring_up`].
    pub(crate) async fn prepare(
        &mut self,
        id: &SandboxId,
        start: &Start,
        shared: &Shared,
        leave: &CancellationToken,
        clock: &Clock,
    ) -> Result<(), EngineError> {
        let config = &shared.config;
        let slot = shared.slots.acquire().await.map_err(host("acquiring a network slot"))?;
        let (index, netns, tap_name) =
            (slot.index(), Arc::new(slot.netns().clone()), slot.tap_name().to_owned());
        let credentials = shared.confinement.credentials(index);
        clock.passed("network");
        let way = self.way(start);
        match Record::begin(&shared.journal, first_row(id, start, index, credentials.uid, shared)).await {
            Ok(record) => self.record = Some(record),
            Err(error) => {
                self.slot = Some(slot);
                return Err(unwritable(error));
            }
        }
        way.reached(Stage::Journaled);

        let dir = shared.sandbox_dir(id);
        self.dir = Some(dir.clone());
        let prepared = spawn_blocking({
            let (owner, dir, shared) = (credentials.clone(), dir.clone(), shared.clone());
            let original = match start {
                Start::Boot => shared.artifacts.empty_disk.clone(),
                Start::Restore(stored) => stored.disk(),
            };
            let id = id.clone();
            move || {
                let group = shared.limits.group(&id);
                let disk = make_disk(&dir, &original, &owner, &shared);
                let made = disk.and_then(|disk| Ok((disk, slot.open_tap().map_err(|error| chain(&error))?)));
                (slot, made, group)
            }
        });
        let (slot, made, group) =
            prepared.await.map_err(|panicked| host("making the disk")(panicked.to_string()))?;
        self.slot = Some(slot);
        let group = self.cgroup.insert(group?);
        let entry = group.entry().map_err(|error| host("opening the cgroup")(chain(&error)))?;
        let (disk, tap) = made.map_err(host("making the disk and opening the tap"))?;
        let (disk, disk_id) = disk;
        let disk = Arc::new(disk);
        let disk_path = by_descriptor(&disk);
        self.disk = Some(disk);
        self.record.iter_mut().for_each(|record| record.has_disk(disk_id));
        clock.passed("disk");
        way.reached(Stage::Disk);
        if leave.is_cancelled() {
            return Err(left(id, shared));
        }

        let place = Place { dir, netns, tap_name, tap, credentials, cgroup: Some(entry) };
        let spec = shared.artifacts.spec(config, disk_path);
        let origin = match start {
            Start::Boot => Origin::Boot,
            Start::Restore(stored) => Origin::Snapshot(stored.files()),
        };
        let vm: Arc<dyn MicroVm> = match config.vmm.spawn(place, &spec, &origin).await {
            Ok(vm) => Arc::from(vm),
            Err(error) => {
                if matches!(error, VmmError::Unkillable { .. }) {
                    self.abandon_slot(shared);
                }
                return Err(boot("starting the VMM")(chain(&error)));
            }
        };
        way.reached(Stage::Spawned);
        let process = vm.process_id();
        self.vm = Some(vm);
        self.record.iter_mut().for_each(|record| {
            record.has_process(VmmProcess { pid: process.pid, start_ticks: process.start_ticks });
        });
        clock.passed("spawn");
        info!(sandbox_id = %id, stages = %clock.timings(), "prepared");
        Ok(())
    }

    /// From a VMM that waits to an adopted guest; as [`Self::bring_up`].
    async fn start_guest(
        &mut self,
        id: &SandboxId,
        way: Way,
        shared: &Shared,
        leave: &CancellationToken,
        clock: &Clock,
    ) -> Result<(), EngineError> {
        let config = &shared.config;
        let Some(vm) = self.vm.clone() else { return Err(no_guest()) };
        let network = Network {
            address: GUEST.address,
            prefix_len: GUEST.prefix_len,
            gateway: GUEST.gateway,
            dns: config.dns.clone(),
        };
        let identity: Identity = guest::identity(id, network)?;
        let up = async {
            vm.start().await.map_err(|error| boot("starting the guest")(chain(&error)))?;
            clock.passed("start");
            way.reached(Stage::Started);
            let session = guest::connect(&vm, Some(identity), config).await?;
            clock.passed("adopt");
            Ok(session)
        };
        // A restored guest that fails is replaced, once: both together have the time that a boot has.
        let tries = if matches!(way, Way::Restore) { RESTORES } else { 1 };
        let limit = config.agent_wait_timeout / tries;
        let up = tokio::select! {
            up = tokio::time::timeout(limit, up) => up,
            () = leave.cancelled() => return Err(left(id, shared)),
        };
        let session = match up {
            Ok(Ok(session)) => session,
            Ok(Err(error)) => return Err(self.explain(error, &*vm, shared).await),
            Err(_) => {
                let reason = format!("no answer within {} ms", limit.as_millis());
                return Err(self.explain(boot("waiting for the agent")(reason), &*vm, shared).await);
            }
        };
        self.session = Some(session);
        way.reached(Stage::Adopted);
        info!(sandbox_id = %id, stages = %clock.timings(), "created");
        Ok(())
    }

    /// Whether its guest was adopted already, and waits.
    pub(crate) fn is_adopted(&self) -> bool {
        self.session.is_some()
    }

    /// Completes when the microVM or the session with its agent is gone; never when there is none.
    pub(crate) fn death(&self) -> impl Future<Output = Death> + Send + 'static {
        let (vm, session) = (self.vm.clone(), self.session.clone());
        async move {
            let (Some(vm), Some(session)) = (vm, session) else { return std::future::pending().await };
            let ended =
                |exit: Exit| Death::Vmm(format!("the VMM ended: {}{}", exit.status, quote(&exit.console)));
            tokio::select! {
                exit = vm.exited() => ended(exit),
                end = session.ended() => {
                    // The VMM's own end explains more, and comes a moment later.
                    match tokio::time::timeout(DYING, vm.exited()).await {
                        Ok(exit) => ended(exit),
                        Err(_) => Death::Session(end),
                    }
                }
            }
        }
    }

    /// Begins another session with the agent of a running guest; what the last one ran is killed.
    pub(crate) async fn reconnect(&mut self, shared: &Shared) -> Result<(), String> {
        self.session = None;
        let Some(vm) = &self.vm else { return Err("there is no microVM".to_owned()) };
        let limit = shared.config.agent_dial_timeout;
        let session = tokio::time::timeout(limit, guest::connect(vm, None, &shared.config)).await;
        let session = session.map_err(|_| format!("no hello within {} ms", limit.as_millis()))?;
        self.session = Some(session.map_err(|error| error.to_string())?);
        Ok(())
    }

    /// Where the VMM process is.
    pub(crate) fn pid(&self) -> Option<u32> {
        self.vm.as_ref().map(|vm| vm.pid())
    }

    /// Ends the guest, whatever it is doing; the rest stays until [`Self::tear_down`].
    pub(crate) async fn kill(&self) {
        if let Some(vm) = &self.vm
            && let Err(error) = vm.kill().await
        {
            error!(error = chain(&error), "the VMM could not be killed");
        }
    }

    /// Whether there is a VMM that has not ended.
    pub(crate) async fn is_alive(&self) -> bool {
        let Some(vm) = &self.vm else { return false };
        tokio::select! {
            biased;
            _ = vm.exited() => false,
            () = std::future::ready(()) => true,
        }
    }

    /// What a snapshot is taken of; none while there is no running guest.
    pub(crate) fn subject(&self) -> Option<Subject> {
        let machine = self.record.as_ref()?.row().machine.clone()?;
        Some(Subject {
            vm: self.vm.clone()?,
            session: self.session.clone()?,
            disk: self.disk.clone()?,
            machine,
        })
    }

    /// The address that stands for the sandbox on the host.
    pub(crate) fn host_address(&self) -> Option<std::net::Ipv4Addr> {
        self.slot.as_ref().map(NetSlot::host_address)
    }

    /// How the VMM ended, and why, if this host's limits ended it.
    pub(crate) fn with_cause(&self, how: String, shared: &Shared) -> String {
        let cause = self.cgroup.as_ref().and_then(|group| shared.limits.cause_of_death(group));
        cause.map_or(how.clone(), |cause| format!("{how}; {cause}"))
    }

    /// Adds how the VMM ended, if it did, or else what the guest's console says.
    async fn explain(&self, error: EngineError, vm: &dyn MicroVm, shared: &Shared) -> EngineError {
        let EngineError::BootFailed { stage, mut reason } = error else { return error };
        // A dead VMM's sockets close a moment before its pidfd tells how it ended.
        let console = match tokio::time::timeout(DYING, vm.exited()).await {
            Ok(exit) => {
                let status = format!("; the VMM ended: {}", exit.status);
                reason.push_str(&self.with_cause(status, shared));
                exit.console
            }
            // One that stands still does not give that either.
            Err(_) => tokio::time::timeout(CONSOLE, vm.console()).await.unwrap_or_default(),
        };
        reason.push_str(&quote(&console));
        EngineError::BootFailed { stage, reason }
    }
}

impl Drop for Resources {
    /// The safety net for a task that was dropped on the way; the guards inside do the rest.
    fn drop(&mut self) {
        if let Some(dir) = self.dir.take() {
            warn!(dir = %dir.display(), "a sandbox was dropped without being taken apart");
            drop(self.vm.take());
            let _ = remove_all(&dir);
        }
    }
}

/// The last words on a console, as part of a message.
fn quote(console: &str) -> String {
    let words = last_lines(console, 8);
    // A panic says what it is before it says where, which takes many lines.
    let panic = console.lines().rfind(|line| line.contains(PANIC) && !words.contains(line.trim()));
    match panic.map(str::trim).into_iter().chain([&*words]).collect::<Vec<_>>().join(" | ") {
        words if words.is_empty() => words,
        words => format!("; console: {words}"),
    }
}

fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<_> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    lines[lines.len().saturating_sub(count)..].join(" | ")
}

/// Why a creation was given up.
fn left(id: &SandboxId, shared: &Shared) -> EngineError {
    if shared.stop.is_cancelled() {
        EngineError::ShuttingDown
    } else {
        EngineError::NotRunning { id: id.clone(), state: SandboxState::Stopped, reason: None }
    }
}

fn host(stage: &'static str) -> impl FnOnce(String) -> EngineError {
    move |reason| EngineError::Host { stage, reason }
}

fn boot(stage: &'static str) -> impl FnOnce(String) -> EngineError {
    move |reason| EngineError::BootFailed { stage, reason }
}

/// A step was asked for before the one it needs: a defect of ours.
fn no_guest() -> EngineError {
    EngineError::Host { stage: "looking for the guest", reason: "there is none".to_owned() }
}
