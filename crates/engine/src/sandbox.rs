//! One sandbox: a task that owns its resources, and the handle others talk to it through.
//! The life it leads is drawn in [`crate::lifecycle`].

mod ready;

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use manta_api::{Event, EventKind, SandboxId, SandboxInfo, SandboxState};
use tokio::sync::{Mutex, mpsc, oneshot, watch};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use crate::admission::Place;
use crate::agent::{ExecOutput, excerpt};
use crate::caller::Caller;
use crate::ending::Ending;
use crate::error::EngineError;
use crate::exec::{self, ExecSpec};
use crate::failpoint::{Failpoint, reached};
use crate::lifecycle::takes_commands;
use crate::lifetime::Lifetime;
use crate::resources::{Death, Resources, STANDS_STILL, Start};
use crate::shared::Shared;
use crate::snapshots::{Order, Stored, take};
use crate::timing::{Clock, Operation, Timings};
use crate::wish::Wish;

/// A session that ends sooner than this after it was begun anew is not begun once more. A connection that is lost
/// does not end one: that takes an agent that could not be reached for a while, or was too slow to park.
const RECONNECT_INTERVAL: Duration = Duration::from_secs(5);

/// For commands and snapshots to notice that their sandbox is going.
const DOOMED_GRACE: Duration = Duration::from_secs(2);
/// Most commands and snapshots at once in one sandbox.
const MAX_JOBS: usize = manta_agent_proto::MAX_STREAMS;

/// Who waits for an outcome.
pub(crate) type Answer<T> = oneshot::Sender<Result<T, EngineError>>;
/// Called with what ended a sandbox when it is gone.
pub(crate) type Ended = Box<dyn FnOnce(Ending) + Send>;

/// What somebody wants of a running sandbox.
enum Ask {
    Exec(Caller, Box<ExecSpec>, Clock, Answer<ExecOutput>),
    Snapshot(Order, Answer<Arc<Stored>>),
    Extend(Duration, Answer<SandboxInfo>),
}

impl Ask {
    fn refuse(self, error: EngineError) {
        // Who asked may be gone.
        match self {
            Self::Exec(_, _, _, answer) => drop(answer.send(Err(error))),
            Self::Snapshot(_, answer) => drop(answer.send(Err(error))),
            Self::Extend(_, answer) => drop(answer.send(Err(error))),
        }
    }
}

/// Who waits for a new sandbox.
#[derive(Debug)]
pub(crate) struct Creator {
    pub(crate) answer: Answer<()>,
    pub(crate) start: Start,
    pub(crate) clock: Clock,
    pub(crate) wish: Wish,
}

/// Talks to a sandbox's task.
#[derive(Debug, Clone)]
pub(crate) struct Handle {
    asks: mpsc::Sender<Ask>,
    info: watch::Receiver<SandboxInfo>,
    leave: CancellationToken,
    requested: Arc<OnceLock<Caller>>,
    /// Where the time went when it was destroyed; there before its state is [`SandboxState::Stopped`].
    destroyed: Arc<OnceLock<Timings>>,
    own: bool,
}

impl Handle {
    /// Starts the task of a new sandbox; `creator` gets the outcome, `ended` is called when it is gone.
    pub(crate) fn start(
        info: SandboxInfo,
        resources: Resources,
        shared: Shared,
        place: Place,
        creator: Creator,
        ended: Ended,
    ) -> Self {
        let (sandbox_id, snapshot_id) = (Some(info.id.clone()), info.snapshot_id.clone());
        let maker = creator.wish.caller.clone();
        let who = maker.who();
        shared.events.emit(Event { who, snapshot_id, ..Event::new(EventKind::Created, sandbox_id) });
        let (handle, task) = Self::with_task(info, maker, resources, shared, place, Lifetime::default());
        task.shared.tasks.clone().spawn(task.live(creator, ended));
        handle
    }

    /// Starts the task of a sandbox that was taken back from a killed server, and runs.
    pub(crate) fn go_on(
        info: SandboxInfo,
        maker: Caller,
        lifetime: Lifetime,
        resources: Resources,
        shared: Shared,
        place: Place,
        ended: Ended,
    ) -> Self {
        shared.events.emit_plain(EventKind::Adopted, &info.id, &Caller::Server);
        let (handle, task) = Self::with_task(info, maker, resources, shared, place, lifetime);
        task.shared.tasks.clone().spawn(task.run(ended));
        handle
    }

    fn with_task(
        info: SandboxInfo,
        maker: Caller,
        resources: Resources,
        shared: Shared,
        place: Place,
        lifetime: Lifetime,
    ) -> (Self, Task) {
        let id = info.id.clone();
        let (asks, queue) = mpsc::channel(64);
        let (publish, info_receiver) = watch::channel(info);
        let leave = shared.stop.child_token();
        let (destroyed, requested) = (Arc::default(), Arc::default());
        let own = matches!(maker, Caller::Server);
        let task = Task {
            id,
            info: publish,
            resources,
            jobs: TaskTracker::new(),
            saving: Arc::default(),
            doomed: CancellationToken::new(),
            queue,
            leave: leave.clone(),
            maker,
            requested: Arc::clone(&requested),
            lifetime,
            shared,
            place: Some(place),
            destroyed: Arc::clone(&destroyed),
        };
        (Self { asks, info: info_receiver, leave, requested, destroyed, own }, task)
    }

    pub(crate) fn info(&self) -> SandboxInfo {
        self.info.borrow().clone()
    }

    pub(crate) fn state(&self) -> SandboxState {
        self.info.borrow().state
    }

    /// Whether the server made it for itself: nobody else sees it, or gets at it.
    pub(crate) fn is_own(&self) -> bool {
        self.own
    }

    /// Has the sandbox taken apart, whatever it is doing, unless disarmed.
    pub(crate) fn leave_on_drop(&self) -> DropGuard {
        self.leave.clone().drop_guard()
    }

    /// Runs a command. Dropping this kills it.
    pub(crate) async fn exec(
        &self,
        caller: Caller,
        spec: ExecSpec,
        clock: Clock,
    ) -> Result<ExecOutput, EngineError> {
        self.ask(|answer| Ask::Exec(caller, Box::new(spec), clock, answer)).await
    }

    /// Saves the sandbox. Dropping this before it is done leaves no snapshot.
    pub(crate) async fn snapshot(&self, order: Order) -> Result<Arc<Stored>, EngineError> {
        self.ask(|answer| Ask::Snapshot(order, answer)).await
    }

    /// Has it live for `limit` from now on.
    pub(crate) async fn extend(&self, limit: Duration) -> Result<SandboxInfo, EngineError> {
        self.ask(|answer| Ask::Extend(limit, answer)).await
    }

    async fn ask<T>(&self, ask: impl FnOnce(Answer<T>) -> Ask) -> Result<T, EngineError> {
        let (answer, answered) = oneshot::channel();
        if self.asks.send(ask(answer)).await.is_err() {
            return Err(not_running(&self.info.borrow()));
        }
        answered.await.unwrap_or_else(|_| Err(not_running(&self.info.borrow())))
    }

    /// Completes when its guest is dead and its files are gone; tells where the time went.
    pub(crate) async fn destroy(&self, caller: &Caller) -> Timings {
        // The first one counts.
        let _ = self.requested.set(caller.clone());
        self.leave.cancel();
        let mut info = self.info.clone();
        // An error means that the task is gone, and the sandbox with it.
        let _ = info.wait_for(|info| info.state == SandboxState::Stopped).await;
        self.destroyed.get().cloned().unwrap_or_default()
    }
}

struct Task {
    id: SandboxId,
    info: watch::Sender<SandboxInfo>,
    resources: Resources,
    /// Commands and snapshots under way.
    jobs: TaskTracker,
    /// Held by the snapshot under way.
    saving: Arc<Mutex<()>>,
    /// Ends running commands when the sandbox goes.
    doomed: CancellationToken,
    queue: mpsc::Receiver<Ask>,
    /// Somebody wants the sandbox gone.
    leave: CancellationToken,
    /// Whose it is.
    maker: Caller,
    /// Who asked for its end, and did not just hang up.
    requested: Arc<OnceLock<Caller>>,
    lifetime: Lifetime,
    shared: Shared,
    /// Its place among all sandboxes; a failed one keeps it until it is destroyed.
    place: Option<Place>,
    destroyed: Arc<OnceLock<Timings>>,
}

impl Task {
    async fn live(mut self, creator: Creator, ended: Ended) {
        let Creator { answer: created, start, clock, wish } = creator;
        match self.become_ready(&start, wish.lifetime, &clock).await {
            Ok(info) => {
                self.info.send_replace(info);
                if !created.is_closed() {
                    self.shared.events.emit_plain(EventKind::Ready, &self.id, &self.maker);
                }
                // A creator that is gone has cancelled `leave`.
                let _ = created.send(Ok(()));
                self.run(ended).await;
            }
            Err(error) => {
                warn!(sandbox_id = %self.id, %error, "not created");
                let keep = self.shared.config.keep_failed && matches!(error, EngineError::BootFailed { .. });
                let ending = self.ending();
                self.end(keep, Clock::start(), ending, ended).await;
                // Whoever is told may try again at once.
                drop(self.place.take());
                let _ = created.send(Err(error));
            }
        }
    }

    /// From a running guest to nothing.
    async fn run(mut self, ended: Ended) {
        self.serve().await;
        let (clock, ending) = (Clock::start(), self.ending());
        if ending == Ending::Expired {
            self.shared.events.emit_plain(EventKind::Expired, &self.id, &Caller::Server);
        }
        self.resources.ends(ending.clone()).await;
        reached(Failpoint::DestroyJournaled);
        self.drain(&ending).await;
        self.end(false, clock, ending, ended).await;
    }

    /// To a running guest; whoever asks for a command meanwhile is refused.
    async fn bring_up(&mut self, start: &Start, clock: &Clock) -> Result<(), EngineError> {
        let id = self.id.clone();
        let (shared, leave) = (self.shared.clone(), self.leave.clone());
        // Never dropped on the way: a step that runs off this task would go on without an owner.
        let mut up = std::pin::pin!(self.resources.bring_up(&id, start, &shared, &leave, clock));
        loop {
            tokio::select! {
                outcome = &mut up => return outcome,
                Some(ask) = self.queue.recv() => ask.refuse(not_running(&self.info.borrow())),
            }
        }
    }

    /// Serves until the sandbox is to go.
    async fn serve(&mut self) {
        let mut reconnected: Option<Instant> = None;
        loop {
            let death = {
                // Gone before anything is taken apart: they hold the microVM.
                let mut death = std::pin::pin!(self.resources.death());
                let mut still = std::pin::pin!(self.resources.stood_still(&self.jobs, &self.shared));
                loop {
                    tokio::select! {
                        () = self.leave.cancelled() => return,
                        () = self.lifetime.ended() => return,
                        death = &mut death => break death,
                        () = &mut still => break Death::Vmm(STANDS_STILL.to_owned()),
                        Some(ask) = self.queue.recv() => self.begin(ask),
                    }
                }
            };
            let reason = match death {
                Death::Vmm(reason) => self.resources.with_cause(reason, &self.shared),
                // Only now and then, or an agent that keeps hanging up would keep us busy.
                Death::Session(end)
                    if end.offence || reconnected.is_some_and(|at| at.elapsed() < RECONNECT_INTERVAL) =>
                {
                    end.reason
                }
                Death::Session(end) => match self.reconnect().await {
                    None => return,
                    Some(Ok(())) => {
                        warn!(sandbox_id = %self.id, end.reason, "the session with the agent was lost and begun anew");
                        reconnected = Some(Instant::now());
                        continue;
                    }
                    Some(Err(error)) => format!("{}; another session: {error}", end.reason),
                },
            };
            self.fail(reason).await;
        }
    }

    /// None when the sandbox is to go meanwhile.
    async fn reconnect(&mut self) -> Option<Result<(), String>> {
        tokio::select! {
            connected = self.resources.reconnect(&self.shared) => Some(connected),
            () = self.leave.cancelled() => None,
            () = self.lifetime.ended() => None,
        }
    }

    /// What ends it, when it is to go.
    fn ending(&self) -> Ending {
        let info = self.info.borrow();
        if info.state == SandboxState::Failed {
            Ending::Crashed(excerpt(info.reason.as_deref().unwrap_or_default()))
        } else if self.requested.get().is_some() {
            Ending::Requested
        } else if self.shared.stop.is_cancelled() {
            Ending::Shutdown
        } else if self.leave.is_cancelled() {
            Ending::Abandoned
        } else if self.lifetime.has_ended() {
            Ending::Expired
        } else {
            Ending::NotCreated
        }
    }

    /// Who ends it, when it is to go.
    fn who_ends(&self, ending: &Ending) -> Option<String> {
        match (ending, self.requested.get()) {
            (Ending::Requested | Ending::Crashed(_), Some(caller)) => caller.who(),
            (Ending::Abandoned, _) => self.maker.who(),
            _ => Caller::Server.who(),
        }
    }

    /// Does what is asked, beside everything else, if the state allows it.
    fn begin(&mut self, ask: Ask) {
        let info = self.info.borrow().clone();
        let subject = self.resources.subject().filter(|_| takes_commands(info.state));
        let Some(subject) = subject else { return ask.refuse(not_running(&info)) };
        if self.jobs.len() >= MAX_JOBS && !matches!(ask, Ask::Extend(..)) {
            return ask.refuse(EngineError::SandboxBusy { id: info.id, limit: MAX_JOBS });
        }
        let (shared, doomed) = (self.shared.clone(), self.doomed.clone());
        match ask {
            Ask::Exec(caller, spec, clock, mut answer) => drop(self.jobs.spawn(async move {
                clock.passed("queue");
                let (began, session) = (Instant::now(), &subject.session);
                let outcome = tokio::select! {
                    biased;
                    () = answer.closed() => None,
                    outcome = exec::run(&info.id, session, *spec, &shared.config, &doomed, &clock) => Some(outcome),
                };
                shared.events.emit(exec::event(&info.id, caller.who(), began.elapsed(), outcome.as_ref()));
                if let Some(outcome) = outcome {
                    let _ = answer.send(outcome);
                }
            })),
            Ask::Snapshot(order, mut answer) => {
                let saving = self.saving.clone();
                self.jobs.spawn(async move {
                    let _alone = tokio::select! {
                        biased;
                        () = answer.closed() => return,
                        () = doomed.cancelled() => return,
                        alone = saving.lock() => alone,
                    };
                    order.clock.passed("queue");
                    take(&info, subject, order, &shared, &doomed, answer).await;
                });
            }
            Ask::Extend(limit, answer) => {
                let expires_unix_ms = self.lifetime.set(limit);
                let info = SandboxInfo { expires_unix_s: Some(expires_unix_ms / 1000), ..info };
                self.info.send_replace(info.clone());
                let written = self.resources.extend(info.clone(), expires_unix_ms);
                self.jobs.spawn(async move {
                    // It counts also if it cannot be written now.
                    if let Some(written) = written {
                        let _ = written.await;
                    }
                    let _ = answer.send(Ok(info));
                });
            }
        }
    }

    /// Lets running commands finish for a while, unless the server is going; no new ones start.
    async fn drain(&mut self, ending: &Ending) {
        self.info.send_modify(|info| {
            info.state = SandboxState::Stopping;
            info.reason.get_or_insert_with(|| ending.as_str().to_owned());
        });
        self.jobs.close();
        let jobs = self.jobs.clone();
        let drained = tokio::time::timeout(self.shared.config.destroy_drain, jobs.wait());
        let mut drained = std::pin::pin!(drained);
        let stop = self.shared.stop.clone();
        loop {
            tokio::select! {
                _ = &mut drained => return,
                () = stop.cancelled() => return,
                Some(ask) = self.queue.recv() => self.begin(ask), // refuses
            }
        }
    }

    /// The microVM died: give everything back now, keep the entry with the reason.
    async fn fail(&mut self, reason: String) {
        warn!(sandbox_id = %self.id, reason, "the sandbox failed");
        let excerpt = excerpt(&reason);
        reached(Failpoint::CrashNoticed);
        // Before anybody is told: what was called crashed is not taken back by a next server.
        self.resources.ends(Ending::Crashed(excerpt.clone())).await;
        reached(Failpoint::CrashJournaled);
        let crashed = Event::new(EventKind::Crashed, Some(self.id.clone()));
        self.shared.events.emit(Event { who: Caller::Server.who(), reason: Some(excerpt), ..crashed });
        self.info.send_modify(|info| {
            info.state = SandboxState::Failed;
            info.reason = Some(reason);
            info.pid = None;
        });
        // Commands see the session end by themselves, with the output they have.
        self.resources.tear_down(&self.id, &self.shared, false).await;
    }

    async fn end(&mut self, keep_dir: bool, clock: Clock, ending: Ending, ended: Ended) {
        self.info.send_modify(|info| info.state = SandboxState::Stopping);
        self.doomed.cancel();
        self.jobs.close();
        // What does not end by itself does when the guest is gone.
        if tokio::time::timeout(DOOMED_GRACE, self.jobs.wait()).await.is_err() {
            self.resources.kill().await;
            self.jobs.wait().await;
        }
        clock.passed("drain");
        self.resources.will_have_ended(&ending);
        clock.include(self.resources.tear_down(&self.id, &self.shared, keep_dir).await);
        let (who, reason) = (self.who_ends(&ending), Some(ending.as_str().to_owned()));
        let destroyed = Event::new(EventKind::Destroyed, Some(self.id.clone()));
        self.shared.events.emit(Event { who, reason, ..destroyed });
        ended(ending);
        self.queue.close();
        while let Some(ask) = self.queue.recv().await {
            ask.refuse(not_running(&self.info.borrow()));
        }
        let timings = clock.finish(Operation::Destroy, Ok(())).timings;
        info!(sandbox_id = %self.id, stages = %timings, "destroyed");
        // Nobody else sets it.
        let _ = self.destroyed.set(timings);
        // Whoever is told may ask for another at once.
        drop(self.place.take());
        self.info.send_modify(|info| {
            info.state = SandboxState::Stopped;
            info.pid = None;
        });
    }
}

fn not_running(info: &SandboxInfo) -> EngineError {
    EngineError::NotRunning { id: info.id.clone(), state: info.state, reason: info.reason.clone() }
}
