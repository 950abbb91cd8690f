//! `manta bench`: create → exec → destroy. Its flags and its JSON object.

use std::time::Duration;

use clap::Args;
use serde::Serialize;

use crate::args::CommonArgs;
use crate::iteration::{Begin, Lap, Plan};
use crate::load::{Load, Mode};
use crate::others::Others;
use crate::session::{Measured, Session, exit_status, session};
use crate::summary::Summary;
use crate::{
    BenchError, Conditions, EndedEarly, Failure, Percentiles, PoolReport, PoolUse, StageTimes, score,
};

const DEFAULT_CMD: &str = r#"echo "benchmark""#;
const DEFAULT_STDOUT: &str = "benchmark\n";

/// Measure TTI: from sending `POST /create` to having the output of the first `POST /exec`.
///
/// Needs a running server. Prints a JSON object on standard output and a table on standard error.
#[derive(Debug, Clone, Args)]
pub struct BenchArgs {
    /// What every benchmark is told.
    #[command(flatten)]
    pub common: CommonArgs,
    /// The command of `POST /exec`, run by `/bin/sh -lc`. A run counts only if it exits with 0.
    #[arg(long, value_name = "LINE", default_value = DEFAULT_CMD)]
    pub cmd: String,
    /// When runs are launched. Warm-up runs go one by one in any case.
    #[arg(long, value_enum, default_value_t)]
    pub mode: Mode,
    /// Runs under way at once, at most [default: sequential: 1, else all]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub concurrency: Option<u32>,
    /// Other sandboxes that exist meanwhile and do nothing; made before and destroyed after, untimed.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub live: u32,
}

/// What one successful iteration took.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Sample {
    /// Which one, from 1.
    pub iteration: u32,
    /// From sending `POST /create` to having the answer of `POST /exec`; `create_ns + exec_ns`.
    pub tti_ns: u64,
    /// From sending `POST /create` to having its answer.
    pub create_ns: u64,
    /// From then to having the answer of `POST /exec`.
    pub exec_ns: u64,
    /// `POST /destroy`; no part of the TTI.
    pub destroy_ns: u64,
    /// When `POST /create` was sent, after the first launch of the run.
    pub started_ns: u64,
    /// Where the sandbox came from; without `--pool-aware` only if the server says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pool: Option<PoolUse>,
    /// The server's account of `POST /create`, if it gave one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server_timing: Option<StageTimes>,
}

/// The result file. The first seven fields are the specified ones and describe TTI.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Outcome {
    /// `--iterations`
    pub iterations_requested: u32,
    /// Those with a sample. The others, failed or not begun, are in no percentile.
    pub iterations_success: u32,
    /// TTI.
    #[serde(flatten)]
    pub tti: Percentiles,
    /// Those with at least one entry in `failures`.
    pub iterations_failed: u32,
    /// Why not all requested iterations were begun and ended, if so.
    pub ended_early: Option<EndedEarly>,
    /// `POST /create` alone, of the same iterations.
    pub create: Percentiles,
    /// `POST /exec` alone, of the same iterations.
    pub exec: Percentiles,
    /// `POST /destroy`, of the same iterations; no part of TTI.
    pub destroy: Percentiles,
    /// What went wrong in measured iterations, in order.
    pub failures: Vec<Failure>,
    /// What went wrong in warm-up iterations, in order.
    pub warmup_failures: Vec<Failure>,
    /// Raw, in the order they were launched.
    pub samples: Vec<Sample>,
    /// Where and when.
    pub conditions: Conditions,
    /// `--mode`
    pub mode: Mode,
    /// Iterations under way at once, at most.
    pub concurrency: u32,
    /// From the first launch to the end of the last iteration, failed ones and destroys included. 0 if the
    /// run ended within the warm-up.
    pub wall_ns: u64,
    /// `iterations_success` of `iterations_requested`, 0 to 1.
    pub success_rate: f64,
    /// See [`score`](crate::score()); absent if the run ended early.
    pub score: Option<f64>,
    /// `--live`
    pub live: u32,
    /// What went wrong with those other sandboxes, and which may be left.
    pub live_failures: Vec<String>,
    /// With `--pool-aware`: hits and misses apart.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pool: Option<PoolReport>,
}

/// Measures. Ctrl-C or SIGTERM ends the run in order: the sandboxes under way are destroyed, and
/// the outcome has what was measured so far. A second one gives these up.
///
/// Each failure is printed on standard error when it happens, with a progress bar if that is a
/// terminal.
///
/// # Errors
/// Only before the first iteration: see [`BenchError`].
pub async fn run(args: BenchArgs) -> Result<Outcome, BenchError> {
    session(&args.common, async |session| measure(&args, &session).await).await
}

async fn measure(args: &BenchArgs, session: &Session<'_>) -> Result<Outcome, BenchError> {
    // Of this command alone it is known what it prints.
    let expect_stdout = (args.cmd == DEFAULT_CMD).then(|| DEFAULT_STDOUT.to_owned());
    let plan = Plan { begin: Begin::Create, cmd: args.cmd.clone(), expect_stdout };
    let load = args.load();
    let most = u64::from(args.live) + u64::from(load.concurrency.min(args.common.iterations));
    session.warn_if_full(most);
    let mut others = Others::new(session);
    let measured = match others.make(args.live).await {
        Ok(()) => {
            let measured = session.measure(&plan, load).await;
            others.look().await;
            Ok(measured)
        }
        Err(error) => Err(error),
    };
    let live_failures = others.remove().await;
    Ok(Outcome { live: args.live, live_failures, ..Outcome::new(measured?, load) })
}

impl BenchArgs {
    fn load(&self) -> Load {
        let all = match self.mode {
            Mode::Sequential => 1,
            Mode::Staggered | Mode::Burst => self.common.iterations,
        };
        Load { mode: self.mode, concurrency: self.concurrency.unwrap_or(all) }
    }
}

impl Outcome {
    /// With no other sandboxes.
    pub(crate) fn new(measured: Measured, load: Load) -> Self {
        let of = |part: fn(&Lap) -> u64| Percentiles::of(measured.laps.iter().map(part));
        let tti = of(Lap::tti_ns);
        let success_rate = f64::from(measured.success()) / f64::from(measured.requested);
        Self {
            iterations_requested: measured.requested,
            iterations_success: measured.success(),
            tti,
            iterations_failed: measured.failed(),
            ended_early: measured.ended_early,
            create: of(|lap| lap.begin_ns),
            exec: of(|lap| lap.exec_ns),
            destroy: of(|lap| lap.destroy_ns),
            samples: measured.laps.iter().map(|lap| Sample::of(lap, measured.pool.is_some())).collect(),
            failures: measured.failures,
            warmup_failures: measured.warmup_failures,
            conditions: measured.conditions,
            mode: load.mode,
            concurrency: load.concurrency,
            wall_ns: measured.wall_ns,
            success_rate,
            score: measured.ended_early.is_none().then(|| score(&tti, success_rate)),
            live: 0,
            live_failures: Vec::new(),
            pool: measured.pool,
        }
    }

    /// 130 after an interrupt; 1 if no iteration succeeded or the server went away; else 0, also
    /// when some iterations failed: the numbers are those of the others, and the file says so.
    #[must_use]
    pub fn exit_status(&self) -> u8 {
        exit_status(self.ended_early, self.iterations_success)
    }

    pub(crate) fn summary(&self) -> String {
        let summary = Summary {
            requested: self.iterations_requested,
            success: self.iterations_success,
            failed: self.iterations_failed,
            vmm: &self.conditions.server.vmm,
            rows: &[
                ("TTI", self.tti),
                ("create", self.create),
                ("exec", self.exec),
                ("destroy", self.destroy),
            ],
            more: Some(self.pace()),
            pool: self.pool.as_ref(),
            failures: ("failures", &self.failures),
            warmup_failures: &self.warmup_failures,
            ended_early: self.ended_early,
        };
        let mut text = summary.to_string();
        self.live_failures.iter().for_each(|failure| text.push_str(&format!("\nWARNING: {failure}\n")));
        text
    }

    /// How it was launched, and what that gave.
    fn pace(&self) -> String {
        let mut line = self.mode.to_string();
        if self.concurrency > 1 {
            line.push_str(&format!(", at most {} at once", self.concurrency));
        }
        if self.live > 0 {
            line.push_str(&format!(", beside {} others", self.live));
        }
        line.push_str(&format!(": {:.2?} in all", Duration::from_nanos(self.wall_ns)));
        if let Some(score) = self.score {
            line.push_str(&format!(", score {score:.2} of 100"));
        }
        line
    }
}

impl Sample {
    fn of(lap: &Lap, pool_aware: bool) -> Self {
        Self {
            iteration: lap.iteration,
            tti_ns: lap.tti_ns(),
            create_ns: lap.begin_ns,
            exec_ns: lap.exec_ns,
            destroy_ns: lap.destroy_ns,
            started_ns: lap.started_ns,
            pool: lap.pool.told(pool_aware),
            server_timing: lap.server_timing.clone(),
        }
    }
}
