//! A whole run: ask the server who it is, warm up, measure, report.

use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Duration;

use manta_client::{Client, ClientError};
use thiserror::Error;

use crate::conditions::load_average;
use crate::interrupt::{Interrupt, Signals};
use crate::iteration::{chain, iterate};
use crate::progress::Progress;
use crate::summary::Summary;
use crate::{BenchArgs, Conditions, EndedEarly, Failure, Outcome, Sample};

/// A server that needs longer to say who it is, is not fit to be measured.
const HEALTH_TIMEOUT: Duration = Duration::from_secs(5);

/// Why there is no outcome at all. Failed iterations are no errors: they are in the outcome.
#[derive(Debug, Error)]
pub enum BenchError {
    /// `--endpoint` is not an address.
    #[error("--endpoint")]
    Endpoint(#[source] ClientError),
    /// Nobody listens there, or does not answer.
    #[error("no server answers at {endpoint}")]
    Unreachable {
        /// The address.
        endpoint: String,
        /// Why.
        source: ClientError,
    },
    /// Something answers, but not as a Manta server of this version does.
    #[error("what answers at {endpoint} cannot be measured")]
    Health {
        /// The address.
        endpoint: String,
        /// What it answered.
        source: ClientError,
    },
    /// Ctrl-C cannot be caught, and sandboxes would be left behind by it.
    #[error("cannot catch signals")]
    Signals(#[source] io::Error),
}

impl BenchError {
    /// What to do about it, where that is known.
    #[must_use]
    pub fn advice(&self) -> Option<&'static str> {
        match self {
            Self::Unreachable { .. } => Some(
                "start a server with `cargo xtask up` or `manta server`, or name another with --endpoint",
            ),
            Self::Health { .. } => Some("name a Manta server of this version with --endpoint"),
            Self::Endpoint(_) | Self::Signals(_) => None,
        }
    }
}

/// `manta bench`: runs, prints the JSON object on standard output and all else on standard error,
/// and gives the exit status of [`Outcome::exit_status`], or 1 if there is no outcome.
///
/// Starts a runtime of its own, with one thread: the loop and its connection take turns on it, so
/// that no hop between threads is measured. Must not be called from within a runtime.
#[must_use]
pub fn main(args: BenchArgs) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail("cannot start the runtime", &error),
    };
    let outcome = match runtime.block_on(run(args)) {
        Ok(outcome) => outcome,
        Err(error) => {
            let status = fail("no measurement", &error);
            error.advice().into_iter().for_each(|advice| eprintln!("{advice}"));
            return status;
        }
    };
    // A look-up of the host's name may still hang in a thread of its own.
    runtime.shutdown_background();
    eprint!("{}", Summary(&outcome));
    let mut out = io::stdout().lock();
    let written = serde_json::to_writer_pretty(&mut out, &outcome).map_err(io::Error::from);
    match written.and_then(|()| writeln!(out)).and_then(|()| out.flush()) {
        Ok(()) => ExitCode::from(outcome.exit_status()),
        Err(error) => fail("cannot write the result", &error),
    }
}

fn fail(what: &str, error: &dyn std::error::Error) -> ExitCode {
    eprintln!("{what}: {}", chain(error));
    ExitCode::FAILURE
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
    let (signals, interrupt) = Signals::catch().map_err(BenchError::Signals)?;
    let progress = Progress::new(u64::from(args.warmup) + u64::from(args.iterations));
    let told = || {
        progress.say("interrupted: the sandbox under way is destroyed first (once more to leave it behind)");
    };
    tokio::select! {
        outcome = measure(&args, &interrupt, &progress) => outcome,
        never = signals.forward(told) => match never {},
    }
}

async fn measure(
    args: &BenchArgs,
    interrupt: &Interrupt,
    progress: &Progress,
) -> Result<Outcome, BenchError> {
    let client = Client::new(&args.endpoint, args.timeout).map_err(BenchError::Endpoint)?;
    let health = client.with_timeout(HEALTH_TIMEOUT.min(args.timeout)).health().await.map_err(|source| {
        let endpoint = client.endpoint();
        match source {
            ClientError::Connect { .. } | ClientError::Timeout { .. } => {
                BenchError::Unreachable { endpoint, source }
            }
            source => BenchError::Health { endpoint, source },
        }
    })?;
    for degraded in &health.degraded {
        progress.say(&format!("WARNING: the server is degraded: {degraded}"));
    }
    let mut conditions = Conditions::now(args, health);

    let mut warm_up = Phase::new("warm-up");
    let mut measured = Phase::new("run");
    let mut ended_early = warm_up.run(&client, args, args.warmup, interrupt, progress).await;
    if ended_early.is_none() {
        ended_early = measured.run(&client, args, args.iterations, interrupt, progress).await;
    }
    progress.end();
    conditions.client.load_average_end = load_average();
    let Phase { samples, failures, .. } = measured;
    Ok(Outcome::new(args.iterations, samples, failures, warm_up.failures, ended_early, conditions))
}

/// Some iterations, and what they gave.
struct Phase {
    name: &'static str,
    samples: Vec<Sample>,
    failures: Vec<Failure>,
}

impl Phase {
    fn new(name: &'static str) -> Self {
        Self { name, samples: Vec::new(), failures: Vec::new() }
    }

    async fn run(
        &mut self,
        client: &Client,
        args: &BenchArgs,
        iterations: u32,
        interrupt: &Interrupt,
        progress: &Progress,
    ) -> Option<EndedEarly> {
        progress.phase(self.name);
        for iteration in 1..=iterations {
            if interrupt.is_set() {
                return Some(EndedEarly::Interrupted);
            }
            match iterate(client, &args.cmd, iteration, interrupt).await {
                Ok(Some(sample)) => self.samples.push(sample),
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
