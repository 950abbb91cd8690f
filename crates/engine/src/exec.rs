//! One command in one sandbox: from what was asked to what came of it.

use std::time::Duration;

use bytes::Bytes;
use manta_agent_proto::{Exec, ExecExit, Program};
use manta_api::{Event, EventKind, SandboxId};
use tokio_util::sync::CancellationToken;

use crate::agent::{AgentError, ExecOutput, Output, Session, excerpt};
use crate::config::EngineConfig;
use crate::error::EngineError;
use crate::metrics;
use crate::timing::Clock;

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

/// Runs a command to its end, its limit, or until `doomed`. Dropping this kills it.
pub(crate) async fn run(
    id: &SandboxId,
    session: &Session,
    spec: ExecSpec,
    config: &EngineConfig,
    doomed: &CancellationToken,
    clock: &Clock,
) -> Result<ExecOutput, EngineError> {
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
    let mut output = Output::default();
    let ran = tokio::select! {
        biased;
        ran = session.exec(exec, spec.stdin, &mut output) => Some(Some(ran)),
        () = doomed.cancelled() => None,
        () = session.overdue(deadline) => Some(None),
    };
    let in_guest = match &ran {
        Some(Some(Ok(exit))) => Duration::from_micros(exit.duration_us),
        _ => Duration::ZERO,
    };
    clock.passed_with("agent", "run", in_guest);
    metrics::exec_output(output.stdout.len() + output.stderr.len());
    let (id, output) = (id.clone(), Box::new(output));
    match ran {
        None => Err(EngineError::Destroyed { id, output }),
        Some(None) => Err(EngineError::GuestTimeout { id, after: deadline, output }),
        Some(Some(Ok(ExecExit { timed_out: true, .. }))) => {
            Err(EngineError::ExecTimeout { after: limit, output })
        }
        Some(Some(Ok(exit))) => {
            Ok(ExecOutput { output: *output, exit_code: exit.exit_code, duration_us: exit.duration_us })
        }
        Some(Some(Err(AgentError::TooLong(reason)))) => Err(EngineError::BadRequest(reason)),
        Some(Some(Err(AgentError::Timeout(after)))) => Err(EngineError::GuestTimeout { id, after, output }),
        Some(Some(Err(AgentError::Gone(reason)))) => Err(EngineError::GuestGone { id, reason, output }),
        Some(Some(Err(error @ AgentError::LinkLost))) => {
            Err(EngineError::GuestGone { id, reason: error.to_string(), output })
        }
        Some(Some(Err(AgentError::Refused(words)))) => {
            let reason = format!("its agent refused the command: {}", excerpt(&words));
            Err(EngineError::GuestGone { id, reason, output })
        }
    }
}

/// What the event log says of a command that ended, or of one whose client hung up: never what it was, or printed.
pub(crate) fn event(
    id: &SandboxId,
    who: Option<String>,
    took: Duration,
    outcome: Option<&Result<ExecOutput, EngineError>>,
) -> Event {
    let (exit_code, reason) = match outcome {
        Some(Ok(ran)) => (Some(ran.exit_code), None),
        Some(Err(EngineError::Destroyed { .. })) => (None, Some("sandbox_destroyed")),
        Some(Err(EngineError::ExecTimeout { .. })) => (None, Some("exec_timeout")),
        Some(Err(EngineError::GuestTimeout { .. })) => (None, Some("guest_timeout")),
        Some(Err(EngineError::GuestGone { .. })) => (None, Some("guest_gone")),
        Some(Err(_)) => (None, Some("refused")),
        None => (None, Some("hung_up")),
    };
    let duration_us = u64::try_from(took.as_micros()).ok();
    let reason = reason.map(str::to_owned);
    Event { who, duration_us, exit_code, reason, ..Event::new(EventKind::Exec, Some(id.clone())) }
}
