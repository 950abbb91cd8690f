//! `manta bench`: create → exec → destroy. Its flags and its JSON object.

use std::process::ExitCode;

use clap::Args;
use serde::Serialize;

use crate::args::CommonArgs;
use crate::iteration::{Begin, Lap, Plan};
use crate::report::report;
use crate::session::{Measured, exit_status, session};
use crate::summary::Summary;
use crate::{BenchError, Conditions, EndedEarly, Failure, Percentiles};

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
    /// Raw, in the order they were taken.
    pub samples: Vec<Sample>,
    /// Where and when.
    pub conditions: Conditions,
}

/// `manta bench`: runs, prints the JSON object on standard output and all else on standard error,
/// and gives the exit status of [`Outcome::exit_status`], or of the error if there is no outcome.
///
/// Starts a runtime of its own and must not be called from within one.
#[must_use]
pub fn main(args: BenchArgs) -> ExitCode {
    report(run(args), Outcome::summary, Outcome::exit_status)
}

/// Measures. Ctrl-C or SIGTERM ends the run in order: the sandbox under way is destroyed, and the
/// outcome has what was measured so far. A second one gives that sandbox up.
///
/// Each failure is printed on standard error when it happens, with a progress bar if that is a
/// terminal.
///
/// # Errors
/// Only before the first iteration: see [`BenchError`].
pub async fn run(args: BenchArgs) -> Result<Outcome, BenchError> {
    // Of this command alone it is known what it prints.
    let expect_stdout = (args.cmd == DEFAULT_CMD).then(|| DEFAULT_STDOUT.to_owned());
    let plan = Plan { begin: Begin::Create, cmd: args.cmd, expect_stdout };
    session(&args.common, async |session| Ok(Outcome::new(session.measure(&plan).await))).await
}

impl Outcome {
    pub(crate) fn new(measured: Measured) -> Self {
        let of = |part: fn(&Lap) -> u64| Percentiles::of(measured.laps.iter().map(part));
        Self {
            iterations_requested: measured.requested,
            iterations_success: measured.success(),
            tti: of(Lap::tti_ns),
            iterations_failed: measured.failed(),
            ended_early: measured.ended_early,
            create: of(|lap| lap.begin_ns),
            exec: of(|lap| lap.exec_ns),
            destroy: of(|lap| lap.destroy_ns),
            samples: measured.laps.iter().map(Sample::from).collect(),
            failures: measured.failures,
            warmup_failures: measured.warmup_failures,
            conditions: measured.conditions,
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
            failures: ("failures", &self.failures),
            warmup_failures: &self.warmup_failures,
            ended_early: self.ended_early,
        };
        summary.to_string()
    }
}

impl From<&Lap> for Sample {
    fn from(lap: &Lap) -> Self {
        Self {
            iteration: lap.iteration,
            tti_ns: lap.tti_ns(),
            create_ns: lap.begin_ns,
            exec_ns: lap.exec_ns,
            destroy_ns: lap.destroy_ns,
        }
    }
}
