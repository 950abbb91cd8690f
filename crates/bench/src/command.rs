//! `manta bench`: measures, or with a subcommand looks at what was measured.

use std::process::ExitCode;

use clap::{Args, Subcommand};

use crate::report::{report, show};
use crate::results::{CompareArgs, PlotArgs, compare, plot};
use crate::{BenchArgs, Outcome, run};

/// Measure TTI: from sending `POST /create` to having the output of the first `POST /exec`.
///
/// Needs a running server. Prints a JSON object on standard output and a table on standard error.
#[derive(Debug, Clone, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct BenchCommand {
    /// What to do with results, instead of measuring.
    #[command(subcommand)]
    pub look: Option<Look>,
    /// How to measure.
    #[command(flatten)]
    pub measure: BenchArgs,
}

/// What can be done with result files. No server is needed.
#[derive(Debug, Clone, Subcommand)]
pub enum Look {
    /// Say whether results differ, and by how much
    Compare(CompareArgs),
    /// Draw results as one SVG image
    Plot(PlotArgs),
}

/// `manta bench`: runs, prints the JSON object on standard output and all else on standard error,
/// and gives the exit status of [`Outcome::exit_status`], or of the error if there is no outcome.
/// Of a subcommand the status is 0 or, with an error, 1.
///
/// Starts a runtime of its own and must not be called from within one.
#[must_use]
pub fn main(command: BenchCommand) -> ExitCode {
    match command.look {
        None => report(run(command.measure), Outcome::summary, Outcome::exit_status),
        Some(Look::Compare(args)) => show(compare(&args)),
        Some(Look::Plot(args)) => show(plot(&args)),
    }
}
