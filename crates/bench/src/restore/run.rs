//! A whole run: make the snapshot, warm up, measure, remove the snapshot and what is left of the runs.

use std::process::ExitCode;

use super::fixture::Belongings;
use super::{RestoreArgs, RestoreOutcome};
use crate::BenchError;
use crate::iteration::{Begin, Plan};
use crate::load::Load;
use crate::report::report;
use crate::session::{Session, session};

/// `manta bench-restore`: as [`crate::main`] is for `manta bench`.
#[must_use]
pub fn main(args: RestoreArgs) -> ExitCode {
    report(run(args), RestoreOutcome::summary, RestoreOutcome::exit_status)
}

/// Measures. Ctrl-C or SIGTERM ends the run in order: the sandbox under way and the snapshot are removed, and
/// the outcome has what was measured so far. A second one gives them up.
///
/// # Errors
/// Only before the first iteration: see [`BenchError`]. What was begun by then is removed.
pub async fn run(args: RestoreArgs) -> Result<RestoreOutcome, BenchError> {
    session(&args.common, async |session| measure(&args, &session).await).await
}

async fn measure(args: &RestoreArgs, session: &Session<'_>) -> Result<RestoreOutcome, BenchError> {
    session.progress.phase("fixture", 0);
    let mut belongings = Belongings::new(session);
    let measured = match belongings.make(args).await {
        Ok(fixture) => {
            let expected = args.expect_stdout.trim_end_matches('\n');
            let plan = Plan {
                begin: Begin::Restore(fixture.snapshot_id.clone()),
                cmd: args.sanity_cmd.clone(),
                expect_stdout: (!expected.is_empty()).then(|| expected.to_owned()),
            };
            Ok((fixture, session.measure(&plan, Load::ONE_BY_ONE).await))
        }
        Err(error) => Err(error),
    };
    session.progress.phase("removal", 0);
    let removal = belongings.remove().await;
    for left in &removal.failures {
        session.progress.say(&format!("WARNING: {left}"));
    }
    let (fixture, measured) = measured?;
    Ok(RestoreOutcome::new(fixture, measured, removal))
}
