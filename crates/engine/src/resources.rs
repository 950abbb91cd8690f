//! What one sandbox uses on the host: acquired step by step, given back in the opposite order,
//! whatever step was reached. Owned by the sandbox's task; see [`crate::sandbox`].

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use manta_agent_proto::{Identity, Network, Program};
use manta_api::{SandboxId, SandboxState};
use manta_host::Cgroup;
use manta_host::disk::clone_file;
use manta_host::net::{GUEST, NetSlot};
use manta_host::process::Credentials;
use manta_vmm::{Exit, MicroVm, Origin, Place, VmmError};
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::agent::{End, Session};
use crate::artifacts::by_descriptor;
use crate::dirs::remove_dir;
use crate::error::{EngineError, chain};
use crate::exec::{self, ExecSpec};
use crate::guest;
use crate::shared::Shared;
use crate::snapshots::{Stored, Subject};
use crate::timing::{Clock, Timings};

/// A dead VMM's sockets close this long, at most, before its end is seen.
const DYING: Duration = Duration::from_millis(500);

/// For one command that a guest is exercised with.
const EXERCISE_LIMIT: Duration = Duration::from_secs(30);

/// How Linux begins its last words.
const PANIC: &str = "Kernel panic - not syncing";

/// A sandbox's own disk, in its directory.
const DISK: &str = "disk.ext4";

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
        self.start_guest(id, shared, leave, clock).await
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
        let disk = Arc::new(disk);
        let disk_path = by_descriptor(&disk);
        self.disk = Some(disk);
        clock.passed("disk");
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
        self.vm = Some(vm);
        clock.passed("spawn");
        info!(sandbox_id = %id, stages = %clock.timings(), "prepared");
        Ok(())
    }

    /// From a VMM that waits to an adopted guest; as [`Self::bring_up`].
    async fn start_guest(
        &mut self,
        id: &SandboxId,
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
            let session = guest::connect(&vm, Some(identity), config).await?;
            clock.passed("adopt");
            Ok(session)
        };
        let up = tokio::select! {
            up = tokio::time::timeout(config.agent_wait_timeout, up) => up,
            () = leave.cancelled() => return Err(left(id, shared)),
        };
        let session = match up {
            Ok(Ok(session)) => session,
            Ok(Err(error)) => return Err(self.explain(error, &*vm, shared).await),
            Err(_) => {
                let reason = format!("no answer within {} ms", config.agent_wait_timeout.as_millis());
                return Err(self.explain(boot("waiting for the agent")(reason), &*vm, shared).await);
            }
        };
        self.session = Some(session);
        info!(sandbox_id = %id, stages = %clock.timings(), "created");
        Ok(())
    }

    /// Has the adopted guest do once what it will be asked for, so that it need not be slow then.
    pub(crate) async fn exercise(
        &self,
        id: &SandboxId,
        programs: &[Program],
        shared: &Shared,
        leave: &CancellationToken,
    ) -> Result<(), EngineError> {
        let Some(session) = &self.session else { return Err(no_guest()) };
        for program in programs {
            let spec = ExecSpec {
                program: program.clone(),
                cwd: None,
                env: Vec::new(),
                stdin: Bytes::new(),
                timeout: Some(EXERCISE_LIMIT),
            };
            exec::run(id, session, spec, &shared.config, leave, &Clock::start()).await?;
        }
        Ok(())
    }

    /// Lets the adopted guest rest until [`Self::rouse`]; it uses no processor meanwhile.
    pub(crate) async fn rest(&self) -> Result<(), EngineError> {
        let Some(vm) = &self.vm else { return Err(no_guest()) };
        vm.rest().await.map_err(|error| boot("letting the guest rest")(chain(&error)))
    }

    /// From a guest that rests to one with the right time and fresh random numbers; as [`Self::bring_up`].
    pub(crate) async fn rouse(
        &self,
        id: &SandboxId,
        shared: &Shared,
        leave: &CancellationToken,
        clock: &Clock,
    ) -> Result<(), EngineError> {
        let (Some(vm), Some(session)) = (&self.vm, &self.session) else { return Err(no_guest()) };
        let limit = shared.config.agent_call_timeout;
        // What is said to the agent waits for it: both ways are gone at once.
        let roused = async {
            let wake = async { vm.wake().await.map_err(|error| boot("waking the guest")(chain(&error))) };
            tokio::try_join!(wake, guest::readopt(session, &shared.config))
        };
        let roused = tokio::select! {
            roused = tokio::time::timeout(limit, roused) => roused,
            () = leave.cancelled() => return Err(left(id, shared)),
        };
        match roused {
            Ok(Ok(_)) => {
                clock.passed("rouse");
                Ok(())
            }
            Ok(Err(error)) => Err(self.explain(error, &**vm, shared).await),
            Err(_) => {
                let reason = format!("no answer within {} ms", limit.as_millis());
                Err(self.explain(boot("waking the guest")(reason), &**vm, shared).await)
            }
        }
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
        Some(Subject { vm: self.vm.clone()?, session: self.session.clone()?, disk: self.disk.clone()? })
    }

    /// The address that stands for the sandbox on the host.
    pub(crate) fn host_address(&self) -> Option<std::net::Ipv4Addr> {
        self.slot.as_ref().map(NetSlot::host_address)
    }

    /// Gives everything back; carries on past errors, which are logged. `keep_dir` leaves the
    /// directory for whoever looks into a failure. When this is done the VMM is dead and its files are gone; the
    /// slot goes behind, no longer known by anybody. Tells where the time went.
    pub(crate) async fn tear_down(&mut self, id: &SandboxId, shared: &Shared, mut keep_dir: bool) -> Timings {
        let clock = Clock::start();
        (self.session, self.disk) = (None, None);
        if let Some(vm) = self.vm.take() {
            let console = if keep_dir { vm.console().await } else { String::new() };
            if keep_dir && let Some(dir) = &self.dir {
                // A new file: whatever has that name already is the VMM's doing.
                let log = File::create_new(dir.join("console.log"));
                let _ = log.and_then(|mut log| log.write_all(console.as_bytes()));
            }
            if let Err(error) = vm.kill().await {
                error!(sandbox_id = %id, error = chain(&error), "the VMM could not be killed");
                self.abandon_slot(shared);
                keep_dir = true;
            }
            // Waits for a VMM that is still there.
            drop(spawn_blocking(move || drop(vm)));
        }
        clock.passed("kill");
        if let Some(dir) = self.dir.take() {
            let group = self.cgroup.take();
            let put_away = spawn_blocking(move || {
                if let Some(Err(error)) = group.map(Cgroup::destroy) {
                    error!(error = chain(&error), "a sandbox's cgroup could not be removed");
                }
                let removed = if keep_dir {
                    warn!(dir = %dir.display(), "a sandbox's directory is kept until the next start");
                    Ok(())
                } else {
                    remove_dir(&dir)
                };
                // What is left is not its user's any more, who will be the next VMM's.
                if keep_dir || removed.is_err() {
                    chown(&dir, Some(0), Some(0))?;
                }
                removed
            });
            if let Ok(Err(error)) = put_away.await {
                error!(sandbox_id = %id, %error, "the sandbox's directory could not be put away");
            }
        }
        clock.passed("files");
        if let Some(slot) = self.slot.take() {
            shared.tasks.spawn(shared.slots.release(slot));
        }
        clock.timings()
    }

    /// How the VMM ended, and why, if this host's limits ended it.
    pub(crate) fn with_cause(&self, how: String, shared: &Shared) -> String {
        let cause = self.cgroup.as_ref().and_then(|group| shared.limits.cause_of_death(group));
        cause.map_or(how.clone(), |cause| format!("{how}; {cause}"))
    }

    /// Adds how the VMM ended, if it did, or else what the guest's console says.
    async fn explain(&self, error: EngineError, vm: &dyn MicroVm, shared: &Shared) -> EngineError {
        let EngineError::BootFailed { stage, mut reason, .. } = error else { return error };
        // A dead VMM's sockets close a moment before its pidfd tells how it ended.
        let exit = tokio::time::timeout(DYING, vm.exited()).await.ok();
        let ended = exit.is_some();
        let console = match exit {
            Some(exit) => {
                let status = format!("; the VMM ended: {}", exit.status);
                reason.push_str(&self.with_cause(status, shared));
                exit.console
            }
            None => vm.console().await,
        };
        reason.push_str(&quote(&console));
        EngineError::BootFailed { stage, reason, ended }
    }

    /// A VMM that cannot be killed may still use the slot: cut it off, and never give it to another.
    fn abandon_slot(&mut self, shared: &Shared) {
        if let Some(slot) = self.slot.take() {
            shared.slots.abandon(slot);
        }
    }
}

impl Drop for Resources {
    /// The safety net for a task that was dropped on the way; the guards inside do the rest.
    fn drop(&mut self) {
        if let Some(dir) = self.dir.take() {
            warn!(dir = %dir.display(), "a sandbox was dropped without being taken apart");
            drop(self.vm.take());
            let _ = remove_dir(&dir);
        }
    }
}

fn make_disk(dir: &Path, original: &Path, owner: &Credentials, shared: &Shared) -> Result<File, String> {
    fs::create_dir(dir).map_err(|error| format!("cannot make {}: {error}", dir.display()))?;
    let disk = dir.join(DISK);
    clone_file(original, &disk, shared.config.clone_mode).map_err(|error| chain(&error))?;
    let opened = File::open(&disk).map_err(|error| format!("cannot open {}: {error}", disk.display()))?;
    for path in [dir, &disk] {
        chown(path, Some(owner.uid), Some(owner.gid))
            .map_err(|error| format!("cannot give {} to its VMM: {error}", path.display()))?;
    }
    fs::set_permissions(dir, fs::Permissions::from_mode(0o700))
        .map_err(|error| format!("cannot protect {}: {error}", dir.display()))?;
    Ok(opened)
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
    move |reason| EngineError::BootFailed { stage, reason, ended: false }
}

/// A step was asked for before the one it needs: a defect of ours.
fn no_guest() -> EngineError {
    EngineError::Host { stage: "looking for the guest", reason: "there is none".to_owned() }
}
