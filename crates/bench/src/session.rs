//! What both benchmarks do alike: ask the server who it is, warm up, measure.

use std::time::Duration;

use manta_api::Health;
use manta_client::{Client, ClientError};
use serde::Serialize;

use crate::args::CommonArgs;
use crate::conditions::load_average;
use crate::interrupt::{Interrupt, Signals};
use crate::iteration::{Lap, Plan, iterate};
use crate::progress::Progress;
use crate::{BenchError, Conditions, Failure};

/// A server that needs longer to say who it is, is not fit to be measured.
const HEALTH_TIMEOUT: Duration = Duration::from_secs(5);

/// A server that answers, and a person who may interrupt.
pub(crate) struct Session<'a> {
    pub(crate) client: Client,
    pub(crate) interrupt: &'a Interrupt,
    pub(crate) progress: &'a Progress,
    args: &'a CommonArgs,
    server: Health,
}

/// Why a run stopped before its last iteration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum EndedEarly {
    /// Ctrl-C or SIGTERM.
    Interrupted,
    /// Nobody listens at the endpoint any more.
    ServerUnreachable,
}

/// What the iterations of a run gave.
#[derive(Debug)]
pub(crate) struct Measured {
    pub(crate) requested: u32,
    pub(crate) laps: Vec<Lap>,
    pub(crate) failures: Vec<Failure>,
    pub(crate) warmup_failures: Vec<Failure>,
    pub(crate) ended_early: Option<EndedEarly>,
    pub(crate) conditions: Conditions,
}

impl Measured {
    pub(crate) fn success(&self) -> u32 {
        count(self.laps.len())
    }

    pub(crate) fn failed(&self) -> u32 {
        // An iteration's failures follow one another.
        count(self.failures.chunk_by(|one, next| one.iteration == next.iteration).count())
    }
}

/// 130 after an interrupt; 1 if no iteration succeeded or the server went away; else 0, also when some
/// iterations failed: the numbers are those of the others, and the result says so.
pub(crate) fn exit_status(ended_early: Option<EndedEarly>, success: u32) -> u8 {
    match ended_early {
        Some(EndedEarly::Interrupted) => 130,
        Some(EndedEarly::ServerUnreachable) => 1,
        None => u8::from(success == 0),
    }
}

/// Does `work` with the server at hand. Meanwhile neither Ctrl-C nor SIGTERM ends the process by itself.
pub(crate) async fn session<T>(
    args: &CommonArgs,
    work: impl AsyncFnOnce(Session<'_>) -> Result<T, BenchError>,
) -> Result<T, BenchError> {
    let (signals, interrupt) = Signals::catch().map_err(BenchError::Signals)?;
    let progress = Progress::new(u64::from(args.warmup) + u64::from(args.iterations));
    let told = || progress.say("interrupted: what was begun is removed first (once more to leave it behind)");
    let worked = tokio::select! {
        worked = async { work(Session::open(args, &interrupt, &progress).await?).await } => worked,
        never = signals.forward(told) => match never {},
    };
    progress.end();
    worked
}

impl<'a> Session<'a> {
    async fn open(
        args: &'a CommonArgs,
        interrupt: &'a Interrupt,
        progress: &'a Progress,
    ) -> Result<Self, BenchError> {
        let client = Client::new(&args.endpoint, args.timeout).map_err(BenchError::Endpoint)?;
        let quick = client.with_timeout(HEALTH_TIMEOUT.min(args.timeout));
        let server = quick.health().await.map_err(|source| {
            let endpoint = client.endpoint();
            match source {
                ClientError::Connect { .. } | ClientError::Timeout { .. } => {
                    BenchError::Unreachable { endpoint, source }
                }
                source => BenchError::Health { endpoint, source },
            }
        })?;
        for degraded in &server.degraded {
            progress.say(&format!("WARNING: the server is degraded: {degraded}"));
        }
        Ok(Self { client, interrupt, progress, args, server })
    }

    /// All warm-up iterations, then all measured ones. The first interrupt ends them in order: the sandbox
    /// under way is destroyed. The second gives that sandbox up.
    pub(crate) async fn measure(&self, plan: &Plan) -> Measured {
        let mut conditions = Conditions::now(self.args, &plan.cmd, self.server.clone());
        let (mut warm_up, mut measured) = (Phase::new("warm-up"), Phase::new("run"));
        let mut ended_early = warm_up.run(self, plan, self.args.warmup).await;
        if ended_early.is_none() {
            ended_early = measured.run(self, plan, self.args.iterations).await;
        }
        conditions.client.load_average_end = load_average();
        Measured {
            requested: self.args.iterations,
            laps: measured.laps,
            failures: measured.failures,
            warmup_failures: warm_up.failures,
            ended_early,
            conditions,
        }
    }
}

/// Some iterations, and what they gave.
struct Phase {
    name: &'static str,
    laps: Vec<Lap>,
    failures: Vec<Failure>,
}

impl Phase {
    fn new(name: &'static str) -> Self {
        Self { name, laps: Vec::new(), failures: Vec::new() }
    }

    async fn run(&mut self, session: &Session<'_>, plan: &Plan, iterations: u32) -> Option<EndedEarly> {
        let Session { client, interrupt, progress, .. } = session;
        progress.phase(self.name);
        for iteration in 1..=iterations {
            if interrupt.is_set() {
                return Some(EndedEarly::Interrupted);
            }
            match iterate(client, plan, iteration, interrupt).await {
                Ok(Some(lap)) => self.laps.push(lap),
                Ok(None) => return Some(EndedEarly::Interrupted),
                Err(failures) => {
                    progress.failed(self.name, &failures);
                    let unreachable = failures.iter().any(|failure| failure.unreachable);
                    self.failures.extend(failures);
                    if interrupt.is_set() {
                        return Some(EndedEarly::Interrupted);
                    } else if unreachable {
                        return Some(EndedEarly::ServerUnreachable);
                    }
                }
            }
            progress.step();
        }
        None
    }
}

fn count(items: usize) -> u32 {
    u32::try_from(items).unwrap_or(u32::MAX)
}
