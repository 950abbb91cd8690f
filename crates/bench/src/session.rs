//! What both benchmarks do alike: ask the server who it is, warm up, wait for its pool if asked to, measure.

use std::time::{Duration, Instant};

use manta_api::{Health, Pools};
use manta_client::{Client, ClientError};
use tokio::time::interval;

use crate::args::CommonArgs;
use crate::conditions::load_average;
use crate::interrupt::{Interrupt, Signals};
use crate::iteration::{Lap, Plan, nanoseconds};
use crate::load::Load;
use crate::phase::{EndedEarly, Phase};
use crate::pool::is_full;
use crate::progress::Progress;
use crate::{BenchError, Conditions, Failure, PoolReport};

/// A server that needs longer to say who it is, is not fit to be measured.
const HEALTH_TIMEOUT: Duration = Duration::from_secs(5);
/// Between two questions whether the pool is full.
const POOL_INTERVAL: Duration = Duration::from_millis(100);

/// A server that answers, and a person who may interrupt.
pub(crate) struct Session<'a> {
    pub(crate) client: Client,
    pub(crate) interrupt: &'a Interrupt,
    pub(crate) progress: &'a Progress,
    args: &'a CommonArgs,
    server: Health,
}

/// What the iterations of a run gave.
#[derive(Debug)]
pub(crate) struct Measured {
    pub(crate) requested: u32,
    pub(crate) laps: Vec<Lap>,
    pub(crate) failures: Vec<Failure>,
    pub(crate) warmup_failures: Vec<Failure>,
    /// From the first launch to the end of the last iteration.
    pub(crate) wall_ns: u64,
    pub(crate) ended_early: Option<EndedEarly>,
    pub(crate) conditions: Conditions,
    /// With `--pool-aware`.
    pub(crate) pool: Option<PoolReport>,
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
    let progress = Progress::new();
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
        let client = match &args.ca_cert {
            Some(ca_cert) => Client::trusting(ca_cert, &args.endpoint, args.timeout),
            None => Client::new(&args.endpoint, args.timeout),
        };
        let mut client = client.map_err(BenchError::Endpoint)?;
        if let Some(key) = &args.api_key {
            client = client.with_api_key(key).map_err(BenchError::ApiKey)?;
        }
        let server = quick(&client, args).health().await.map_err(|source| {
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

    /// Says so if not even `most` sandboxes more find room on the server.
    pub(crate) fn warn_if_full(&self, most: u64) {
        let Health { sandboxes, max_sandboxes, .. } = self.server;
        let room = u64::try_from(max_sandboxes.saturating_sub(sandboxes)).unwrap_or(u64::MAX);
        if most > room {
            self.progress.say(&format!(
                "WARNING: up to {most} sandboxes at once are asked for, and the server has room for {room}"
            ));
        }
    }

    /// All warm-up iterations, one by one, then, with `--pool-aware`, the wait for the pool, then all measured ones, as `load` says. The first interrupt ends
    /// them in order: the sandboxes under way are destroyed. The second gives these up.
    pub(crate) async fn measure(&self, plan: &Plan, load: Load) -> Measured {
        let mut conditions = Conditions::now(self.args, &plan.cmd, self.server.clone());
        let warm_up = Phase::run(self, "warm-up", plan, self.args.warmup, Load::ONE_BY_ONE).await;
        // What ended the warm-up leaves nothing to be launched.
        let iterations = if warm_up.ended_early.is_none() { self.args.iterations } else { 0 };
        let pool_aware = self.args.pool.pool_aware;
        conditions.pools_before =
            if pool_aware && iterations > 0 { self.full_pools().await } else { self.pools().await };
        let measured = Phase::run(self, "run", plan, iterations, load).await;
        conditions.client.load_average_end = load_average();
        conditions.pools_after = self.pools().await;
        Measured {
            requested: self.args.iterations,
            pool: pool_aware.then(|| PoolReport::of(&measured.laps)),
            laps: measured.laps,
            failures: measured.failures,
            warmup_failures: warm_up.failures,
            wall_ns: nanoseconds(measured.wall),
            ended_early: warm_up.ended_early.or(measured.ended_early),
            conditions,
        }
    }

    /// The server's pools, once they are full or `--pool-wait-s` is over.
    async fn full_pools(&self) -> Option<Pools> {
        self.progress.phase("pool", 0);
        let wait_s = self.args.pool.pool_wait_s;
        let deadline = Instant::now() + Duration::from_secs(wait_s.into());
        // There is nothing to wait on: the server has to be asked.
        let mut turns = interval(POOL_INTERVAL);
        loop {
            self.interrupt.unless(1, turns.tick()).await;
            let health = self.health().await;
            let answered = health.is_some();
            let pools = health.and_then(|health| health.pools);
            // A server that did not answer is asked again; one that has no such pool is not waited for.
            let unknown = answered && pools.is_none();
            if self.interrupt.is_set() || unknown || pools.is_some_and(|pools| is_full(&pools)) {
                return pools;
            }
            if Instant::now() >= deadline {
                self.progress.say(&format!("WARNING: the server's pool is not full after {wait_s} s"));
                return pools;
            }
        }
    }

    /// The server's pools, if it says.
    async fn pools(&self) -> Option<Pools> {
        self.health().await.and_then(|health| health.pools)
    }

    /// What the server says of itself now, if it answers.
    async fn health(&self) -> Option<Health> {
        let quick = quick(&self.client, self.args);
        self.interrupt.unless(2, quick.health()).await?.ok()
    }
}

/// The client for questions that are answered at once.
fn quick(client: &Client, args: &CommonArgs) -> Client {
    client.with_timeout(HEALTH_TIMEOUT.min(args.timeout))
}

fn count(items: usize) -> u32 {
    u32::try_from(items).unwrap_or(u32::MAX)
}
