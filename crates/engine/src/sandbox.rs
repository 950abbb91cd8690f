//! One sandbox: a task that owns its resources, and the handle others talk to it through.
//! The life it leads is drawn in [`crate::lifecycle`].

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use manta_agent_proto::{Exec, Program};
use manta_api::{SandboxId, SandboxInfo, SandboxState};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use crate::agent::{AgentError, ExecOutput, Output, Session};
use crate::engine::Shared;
use crate::error::EngineError;
use crate::lifecycle::takes_commands;
use crate::resources::Resources;

/// A command to run.
#[derive(Debug, Clone)]
pub struct ExecSpec {
    /// What to run.
    pub program: Program,
    /// Working directory.
    pub cwd: Option<String>,
    /// Additional environment.
    pub env: Vec<(String, String)>,
    /// Standard input.
    pub stdin: Bytes,
    /// Killed after this long; the engine's default when absent.
    pub timeout: Option<Duration>,
}

/// A connection that is lost sooner than this after it was made is not made again.
const RECONNECT_INTERVAL: Duration = Duration::from_secs(5);

type Answer<T> = oneshot::Sender<Result<T, EngineError>>;

/// What the task is asked.
enum Command {
    Exec(Box<ExecSpec>, Answer<ExecOutput>),
    Destroy(oneshot::Sender<()>),
}

/// Talks to a sandbox's task.
#[derive(Debug, Clone)]
pub(crate) struct Handle {
    commands: mpsc::Sender<Command>,
    info: watch::Receiver<SandboxInfo>,
}

impl Handle {
    /// Starts the task of a new sandbox; `created` gets the outcome. When nobody waits for it any
    /// more, what was begun is taken apart.
    pub(crate) fn start(
        info: SandboxInfo,
        shared: Shared,
        permit: OwnedSemaphorePermit,
        created: Answer<()>,
    ) -> Self {
        let (commands, queue) = mpsc::channel(64);
        let id = info.id.clone();
        let (publish, info_receiver) = watch::channel(info);
        let task = Task {
            id,
            info: publish,
            resources: Resources::default(),
            execs: TaskTracker::new(),
            doomed: CancellationToken::new(),
            queue,
            shared,
            permit: Some(permit),
            connected: Instant::now(),
        };
        let tracker = task.shared.tasks.clone();
        tracker.spawn(task.live(created));
        Self { commands, info: info_receiver }
    }

    pub(crate) fn info(&self) -> SandboxInfo {
        self.info.borrow().clone()
    }

    /// Runs a command. Dropping this kills it.
    pub(crate) async fn exec(&self, spec: ExecSpec) -> Result<ExecOutput, EngineError> {
        let (answer, answered) = oneshot::channel();
        if self.commands.send(Command::Exec(Box::new(spec), answer)).await.is_err() {
            return Err(self.not_running());
        }
        answered.await.unwrap_or_else(|_| Err(self.not_running()))
    }

    /// Completes when the sandbox and all it used are gone.
    pub(crate) async fn destroy(&self) {
        let (done, gone) = oneshot::channel();
        if self.commands.send(Command::Destroy(done)).await.is_ok() {
            let _ = gone.await;
        }
    }

    fn not_running(&self) -> EngineError {
        not_running(&self.info.borrow())
    }
}

struct Task {
    id: SandboxId,
    info: watch::Sender<SandboxInfo>,
    resources: Resources,
    execs: TaskTracker,
    /// Ends running commands when the sandbox goes.
    doomed: CancellationToken,
    queue: mpsc::Receiver<Command>,
    shared: Shared,
    permit: Option<OwnedSemaphorePermit>,
    /// When the connection to the agent was last made.
    connected: Instant,
}

impl Task {
    async fn live(mut self, mut created: Answer<()>) {
        let stop = self.shared.stop.clone();
        let outcome = tokio::select! {
            outcome = self.resources.bring_up(&self.id, &self.shared) => Some(outcome),
            () = created.closed() => None,
            () = stop.cancelled() => Some(Err(EngineError::ShuttingDown)),
        };
        let mut waiters = Vec::new();
        match outcome {
            Some(Ok(())) => {
                let (pid, address) = (self.resources.pid(), self.resources.host_address());
                self.info.send_modify(|info| {
                    info.state = SandboxState::Running;
                    info.pid = pid;
                    info.host_address = address.unwrap_or(info.host_address);
                });
                if created.send(Ok(())).is_ok() {
                    waiters = self.serve().await;
                }
                self.end(false).await;
            }
            Some(Err(error)) => {
                let keep = self.shared.config.keep_failed && matches!(error, EngineError::BootFailed { .. });
                warn!(sandbox_id = %self.id, %error, "not created");
                self.end(keep).await;
                let _ = created.send(Err(error));
            }
            None => {
                debug!(sandbox_id = %self.id, "nobody waits for this sandbox any more");
                self.end(false).await;
            }
        }
        for waiter in waiters {
            let _ = waiter.send(());
        }
        self.queue.close();
        while let Some(command) = self.queue.recv().await {
            match command {
                Command::Destroy(done) => {
                    let _ = done.send(());
                }
                Command::Exec(_, answer) => {
                    let _ = answer.send(Err(not_running(&self.info.borrow())));
                }
            }
        }
    }

    /// Serves until the sandbox is to go; returns who waits for that.
    async fn serve(&mut self) -> Vec<oneshot::Sender<()>> {
        let stop = self.shared.stop.clone();
        loop {
            let command = tokio::select! {
                command = self.queue.recv() => command,
                () = stop.cancelled() => return Vec::new(),
                death = death(&self.resources) => { self.survive(death).await; continue }
            };
            match command {
                Some(Command::Exec(spec, answer)) => self.start_exec(*spec, answer),
                Some(Command::Destroy(done)) => return self.drain(done).await,
                None => return Vec::new(),
            }
        }
    }

    fn start_exec(&self, spec: ExecSpec, mut answer: Answer<ExecOutput>) {
        let info = self.info.borrow().clone();
        let session = self.resources.session.clone();
        let Some(session) = session.filter(|_| takes_commands(info.state)) else {
            let _ = answer.send(Err(not_running(&info)));
            return;
        };
        let (shared, doomed) = (self.shared.clone(), self.doomed.clone());
        self.execs.spawn(async move {
            let mut output = Output::default();
            let ran = tokio::select! {
                biased;
                ran = run(&session, spec, &shared, &mut output) => ran,
                () = doomed.cancelled() => Err(Cut::Destroyed),
                () = answer.closed() => return,
            };
            let _ = answer.send(match ran {
                Ok((exit_code, duration_us)) => Ok(ExecOutput { output, exit_code, duration_us }),
                Err(cut) => Err(cut.into_error(info.id, Box::new(output))),
            });
        });
    }

    /// Lets running commands finish for a while; no new ones start.
    async fn drain(&mut self, first: oneshot::Sender<()>) -> Vec<oneshot::Sender<()>> {
        self.info.send_modify(|info| info.state = SandboxState::Stopping);
        let mut waiters = vec![first];
        self.execs.close();
        let execs = self.execs.clone();
        let drained = tokio::time::timeout(self.shared.config.destroy_drain, execs.wait());
        let mut drained = std::pin::pin!(drained);
        let stop = self.shared.stop.clone();
        loop {
            tokio::select! {
                _ = &mut drained => return waiters,
                () = stop.cancelled() => return waiters,
                command = self.queue.recv() => match command {
                    Some(Command::Destroy(done)) => waiters.push(done),
                    Some(Command::Exec(spec, answer)) => self.start_exec(*spec, answer), // refuses
                    None => return waiters,
                },
            }
        }
    }

    /// A lost connection can be made anew; a dead microVM cannot.
    async fn survive(&mut self, death: Death) {
        let reason = match death {
            Death::Vmm(reason) => reason,
            // Only now and then, or an agent that keeps hanging up would keep us busy.
            Death::Session(reason) if self.connected.elapsed() < RECONNECT_INTERVAL => reason,
            Death::Session(reason) => match self.resources.reconnect(&self.shared).await {
                Ok(()) => {
                    warn!(sandbox_id = %self.id, reason, "the connection to the agent was lost and made anew");
                    self.connected = Instant::now();
                    return;
                }
                Err(error) => format!("{reason}, and could not be made anew: {error}"),
            },
        };
        self.fail(reason).await;
    }

    /// The microVM died: give everything back now, keep the entry with the reason.
    async fn fail(&mut self, reason: String) {
        warn!(sandbox_id = %self.id, reason, "the sandbox failed");
        self.info.send_modify(|info| {
            info.state = SandboxState::Failed;
            info.reason = Some(reason);
            info.pid = None;
        });
        // Commands see the session end by themselves, with the output they have.
        self.resources.tear_down(&self.id, &self.shared, false).await;
        self.permit = None;
    }

    async fn end(&mut self, keep_dir: bool) {
        self.info.send_modify(|info| info.state = SandboxState::Stopping);
        self.doomed.cancel();
        self.execs.close();
        self.execs.wait().await;
        self.resources.tear_down(&self.id, &self.shared, keep_dir).await;
        self.permit = None;
        self.info.send_modify(|info| {
            info.state = SandboxState::Stopped;
            info.pid = None;
        });
        self.shared.sandboxes.ended(&self.id);
    }
}

/// What ended, and why.
enum Death {
    Vmm(String),
    Session(String),
}

/// Completes when the microVM or the connection to its agent is gone; never when there is none.
async fn death(resources: &Resources) -> Death {
    let (Some(vm), Some(session)) = (&resources.vm, &resources.session) else {
        return std::future::pending().await;
    };
    tokio::select! {
        exit = vm.exited() => Death::Vmm(format!("the VMM ended with {}", exit.status)),
        reason = session.ended() => {
            // The VMM's own end explains more, and comes a moment later.
            match tokio::time::timeout(Duration::from_millis(500), vm.exited()).await {
                Ok(exit) => Death::Vmm(format!("the VMM ended with {}", exit.status)),
                Err(_) => Death::Session(reason),
            }
        }
    }
}

/// Why a command did not run to its end.
enum Cut {
    Destroyed,
    Gone(String),
    GuestTimeout(Duration),
    ExecTimeout(Duration),
    Refused(String),
}

impl Cut {
    fn into_error(self, id: SandboxId, output: Box<Output>) -> EngineError {
        match self {
            Self::Destroyed => EngineError::Destroyed { id, output },
            Self::Gone(reason) => EngineError::GuestGone { id, reason, output },
            Self::GuestTimeout(after) => EngineError::GuestTimeout { id, after, output },
            Self::ExecTimeout(after) => EngineError::ExecTimeout { after, output },
            Self::Refused(reason) => EngineError::BadRequest(reason),
        }
    }
}

/// Runs one command to its end: exit status and microseconds.
async fn run(
    session: &Session,
    spec: ExecSpec,
    shared: &Shared,
    output: &mut Output,
) -> Result<(i32, u64), Cut> {
    let config = &shared.config;
    let limit = spec.timeout.unwrap_or(config.exec_timeout);
    let exec = Exec {
        program: spec.program,
        cwd: spec.cwd,
        env: spec.env,
        timeout_ms: u64::try_from(limit.as_millis()).unwrap_or(u64::MAX),
        output_limit: config.output_limit,
        stdin: !spec.stdin.is_empty(),
    };
    // The guest enforces the limit; this is for a guest that does not.
    let deadline = limit + config.agent_call_timeout;
    match tokio::time::timeout(deadline, session.exec(exec, spec.stdin, output)).await {
        Err(_) => Err(Cut::GuestTimeout(deadline)),
        Ok(Ok(exit)) if exit.timed_out => Err(Cut::ExecTimeout(limit)),
        Ok(Ok(exit)) => Ok((exit.exit_code, exit.duration_us)),
        Ok(Err(AgentError::Gone(reason))) => Err(Cut::Gone(reason)),
        Ok(Err(AgentError::Timeout(after))) => Err(Cut::GuestTimeout(after)),
        Ok(Err(AgentError::Refused(reason))) => Err(Cut::Refused(reason)),
    }
}

fn not_running(info: &SandboxInfo) -> EngineError {
    EngineError::NotRunning { id: info.id.clone(), state: info.state, reason: info.reason.clone() }
}

/// Where sandboxes report that they are gone.
pub(crate) trait Registry: Send + Sync + std::fmt::Debug {
    /// `id` is gone, with all it used.
    fn ended(&self, id: &SandboxId);
}

/// Shared registry.
pub(crate) type SharedRegistry = Arc<dyn Registry>;
