//! One iteration: create → exec → the timer stops → destroy. A sandbox whose id is known is always
//! asked to go, whatever happened before.

use std::error::Error;
use std::time::Instant;

use manta_api::{ErrorCode, ExecRequest, ExecResponse, OutputEncoding, SandboxId};
use manta_client::{Client, ClientError};
use serde::Serialize;

use crate::args::DEFAULT_CMD;
use crate::interrupt::Interrupt;

const EXCERPT_CHARS: usize = 200;

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

/// What an iteration was doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// `POST /create`
    Create,
    /// `POST /exec`
    Exec,
    /// `POST /destroy`
    Destroy,
}

/// Why an iteration does not count. One that failed in exec and again in destroy has two of these.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Failure {
    /// Which one, from 1; warm-up iterations have numbers of their own.
    pub iteration: u32,
    /// What failed.
    pub stage: Stage,
    /// The sandbox, once it had an id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sandbox_id: Option<SandboxId>,
    /// The server's code, if it answered with one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<ErrorCode>,
    /// The whole story, causes included.
    pub error: String,
    /// No answer, or none that can be trusted, to a create or a destroy: what became of the sandbox
    /// is not known.
    pub may_leave_a_sandbox: bool,
    /// Nobody listens at the endpoint any more.
    #[serde(skip)]
    pub(crate) unreachable: bool,
}

impl Failure {
    fn new(iteration: u32, stage: Stage, sandbox_id: Option<&SandboxId>, error: String) -> Self {
        let may_leave_a_sandbox = stage != Stage::Exec;
        let sandbox_id = sandbox_id.cloned();
        Self { iteration, stage, sandbox_id, code: None, error, may_leave_a_sandbox, unreachable: false }
    }

    fn call(iteration: u32, stage: Stage, sandbox_id: Option<&SandboxId>, error: &ClientError) -> Self {
        let failure = Self::new(iteration, stage, sandbox_id, chain(error));
        match error {
            // Refused, or failed and cleaned up by the server itself.
            ClientError::Api { body, .. } => {
                Self { code: Some(body.code), may_leave_a_sandbox: stage == Stage::Destroy, ..failure }
            }
            // Nothing was sent.
            ClientError::Connect { .. } => {
                Self { unreachable: true, may_leave_a_sandbox: stage == Stage::Destroy, ..failure }
            }
            _ => failure,
        }
    }
}

/// Runs one iteration. `Ok(None)`: interrupted, and nothing is left of it.
///
/// After the first interrupt a create and a destroy are still waited for, since the sandbox can only
/// be destroyed once its id is known; an exec is not. After the second nothing is.
pub(crate) async fn iterate(
    client: &Client,
    cmd: &str,
    iteration: u32,
    interrupt: &Interrupt,
) -> Result<Option<Sample>, Vec<Failure>> {
    let start = Instant::now();
    let created = interrupt.unless(2, client.create()).await;
    let create_ns = nanoseconds(start);
    let id = match created {
        Some(Ok(created)) => created.sandbox_id,
        Some(Err(error)) => return Err(vec![Failure::call(iteration, Stage::Create, None, &error)]),
        None => {
            let error = "interrupted before the answer: a sandbox may be left behind".to_owned();
            return Err(vec![Failure::new(iteration, Stage::Create, None, error)]);
        }
    };

    let request = shell(&id, cmd);
    let executed = interrupt.unless(1, client.exec(&request)).await;
    let tti_ns = nanoseconds(start);
    let mut failures = Vec::new();
    match &executed {
        Some(Ok(answer)) => {
            if let Some(error) = judge(cmd, answer) {
                failures.push(Failure::new(iteration, Stage::Exec, Some(&id), error));
            }
        }
        Some(Err(error)) => failures.push(Failure::call(iteration, Stage::Exec, Some(&id), error)),
        None => {}
    }

    let start = Instant::now();
    let destroyed = interrupt.unless(2, client.destroy(&id)).await;
    let destroy_ns = nanoseconds(start);
    match destroyed {
        Some(Ok(_)) => {}
        Some(Err(error)) => failures.push(Failure::call(iteration, Stage::Destroy, Some(&id), &error)),
        None => {
            let error = "interrupted before the answer: the sandbox may be left behind".to_owned();
            failures.push(Failure::new(iteration, Stage::Destroy, Some(&id), error));
        }
    }

    if !failures.is_empty() {
        return Err(failures);
    }
    let exec_ns = tti_ns - create_ns;
    Ok(executed.map(|_| Sample { iteration, tti_ns, create_ns, exec_ns, destroy_ns }))
}

/// What is wrong with the answer of an exec, if anything is.
fn judge(cmd: &str, answer: &ExecResponse) -> Option<String> {
    if answer.exit_code != 0 {
        let stderr: String = answer.stderr.chars().take(EXCERPT_CHARS).collect();
        return Some(format!("the command exited with {}, saying {stderr:?}", answer.exit_code));
    }
    // Of this command alone it is known what it prints. Lost output with exit code 0 is a known
    // failure of systems like this one.
    if cmd == DEFAULT_CMD && answer.stdout != "benchmark\n" {
        let stdout: String = answer.stdout.chars().take(EXCERPT_CHARS).collect();
        return Some(format!("the command printed {stdout:?} and not \"benchmark\\n\""));
    }
    None
}

fn shell(id: &SandboxId, cmd: &str) -> ExecRequest {
    ExecRequest {
        sandbox_id: id.clone(),
        cmd: Some(cmd.to_owned()),
        argv: None,
        use_shell: None,
        timeout_ms: None,
        cwd: None,
        env: Default::default(),
        stdin: None,
        encoding: OutputEncoding::Utf8,
    }
}

fn nanoseconds(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

/// An error and its causes on one line.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut line = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        line.push_str(": ");
        line.push_str(&cause.to_string());
        next = cause.source();
    }
    line
}
