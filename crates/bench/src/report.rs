//! From a run to what the process shows: JSON on standard output, all else on standard error, exit status.

use std::io::{self, Write};
use std::process::ExitCode;

use serde::Serialize;

use crate::BenchError;
use crate::error::chain;
use crate::results::ResultsError;

/// Runs, prints the outcome, and gives the exit status: `exit_status`'s, or the error's if there is no
/// outcome.
///
/// Starts a runtime of its own, with one thread: the loop and its connection take turns on it, so
/// that no hop between threads is measured. Must not be called from within a runtime.
pub(crate) fn report<O: Serialize>(
    run: impl Future<Output = Result<O, BenchError>>,
    summary: fn(&O) -> String,
    exit_status: fn(&O) -> u8,
) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail("cannot start the runtime", &error),
    };
    let outcome = match runtime.block_on(run) {
        Ok(outcome) => outcome,
        Err(error) => {
            fail("no measurement", &error);
            error.advice().into_iter().for_each(|advice| eprintln!("{advice}"));
            return ExitCode::from(error.exit_status());
        }
    };
    // A look-up of the host's name may still hang in a thread of its own.
    runtime.shutdown_background();
    eprint!("{}", summary(&outcome));
    let mut out = io::stdout().lock();
    let written = serde_json::to_writer_pretty(&mut out, &outcome).map_err(io::Error::from);
    match written.and_then(|()| writeln!(out)).and_then(|()| out.flush()) {
        Ok(()) => ExitCode::from(exit_status(&outcome)),
        Err(error) => fail("cannot write the result", &error),
    }
}

/// Prints a text on standard output, or why there is none on standard error.
pub(crate) fn show(text: Result<String, ResultsError>) -> ExitCode {
    match text.map(|text| io::stdout().lock().write_all(text.as_bytes())) {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(error)) => fail("cannot write", &error),
        Err(error) => {
            eprintln!("{}", chain(&error));
            ExitCode::FAILURE
        }
    }
}

fn fail(what: &str, error: &dyn std::error::Error) -> ExitCode {
    eprintln!("{what}: {}", chain(error));
    ExitCode::FAILURE
}
