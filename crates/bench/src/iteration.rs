//! One iteration: a sandbox is created or restored → exec → the timer stops → destroy. A sandbox
//! whose id is known is always asked to go, whatever happened before.

use std::time::{Duration, Instant};

use manta_api::{ExecRequest, ExecResponse, OutputEncoding, SandboxId, SnapshotId};
use manta_client::{Client, Created};

use crate::failure::{Failure, Stage};
use crate::interrupt::Interrupt;
use crate::{PoolUse, StageTimes};

const EXCERPT_CHARS: usize = 200;

/// What every iteration of a run does.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) begin: Begin,
    /// Must exit with 0.
    pub(crate) cmd: String,
    /// What it must print; newlines after it do not matter. Lost output with exit code 0 is a known failure
    /// of systems like this one.
    pub(crate) expect_stdout: Option<String>,
}

/// Where an iteration's sandbox comes from.
#[derive(Debug, Clone)]
pub(crate) enum Begin {
    /// `POST /create`
    Create,
    /// `POST /snapshot/restore`
    Restore(SnapshotId),
}

/// What one successful iteration took.
#[derive(Debug, Clone)]
pub(crate) struct Lap {
    /// Which one, from 1.
    pub(crate) iteration: u32,
    /// When the create or restore was sent, after the first launch of the run.
    pub(crate) started_ns: u64,
    /// From sending the create or restore to having its answer.
    pub(crate) begin_ns: u64,
    /// From then to having the answer of `POST /exec`.
    pub(crate) exec_ns: u64,
    /// `POST /destroy`.
    pub(crate) destroy_ns: u64,
    /// Where the sandbox came from.
    pub(crate) pool: PoolUse,
    /// The server's account of the create or restore.
    pub(crate) server_timing: Option<StageTimes>,
}

impl Lap {
    /// From sending the create or restore to having the answer of `POST /exec`.
    pub(crate) fn tti_ns(&self) -> u64 {
        self.begin_ns + self.exec_ns
    }
}

/// Runs one iteration. `Ok(None)`: interrupted, and nothing is left of it.
///
/// After the first interrupt a create, a restore and a destroy are still waited for, since the sandbox can
/// only be destroyed once its id is known; an exec is not. After the second nothing is.
pub(crate) async fn iterate(
    client: &Client,
    plan: &Plan,
    iteration: u32,
    run_began: Instant,
    interrupt: &Interrupt,
) -> Result<Option<Lap>, Vec<Failure>> {
    let start = Instant::now();
    let started_ns = nanoseconds(start - run_began);
    let (stage, begun) = match &plan.begin {
        Begin::Create => (Stage::Create, interrupt.unless(2, client.create()).await),
        Begin::Restore(id) => (Stage::Restore, interrupt.unless(2, client.restore(id)).await),
    };
    let begin_ns = nanoseconds(start.elapsed());
    let Created { sandbox_id: id, server_timing } = match begun {
        Some(Ok(created)) => created,
        Some(Err(error)) => return Err(vec![Failure::call(iteration, stage, None, &error)]),
        None => return Err(vec![Failure::given_up(iteration, stage, None)]),
    };

    let request = shell(&id, &plan.cmd);
    let executed = interrupt.unless(1, client.exec(&request)).await;
    let tti_ns = nanoseconds(start.elapsed());
    let mut failures = Vec::new();
    match &executed {
        Some(Ok(answer)) => {
            if let Some(error) = judge(answer, plan.expect_stdout.as_deref()) {
                failures.push(Failure::new(iteration, Stage::Exec, Some(&id), error));
            }
        }
        Some(Err(error)) => failures.push(Failure::call(iteration, Stage::Exec, Some(&id), error)),
        None => {}
    }

    let start = Instant::now();
    let destroyed = interrupt.unless(2, client.destroy(&id)).await;
    let destroy_ns = nanoseconds(start.elapsed());
    match destroyed {
        Some(Ok(_)) => {}
        Some(Err(error)) => failures.push(Failure::call(iteration, Stage::Destroy, Some(&id), &error)),
        None => failures.push(Failure::given_up(iteration, Stage::Destroy, Some(&id))),
    }

    if !failures.is_empty() {
        return Err(failures);
    }
    let exec_ns = tti_ns - begin_ns;
    let pool = PoolUse::of(server_timing.as_ref());
    let server_timing = server_timing.as_ref().map(StageTimes::of);
    Ok(executed.map(|_| Lap { iteration, started_ns, begin_ns, exec_ns, destroy_ns, pool, server_timing }))
}

/// What is wrong with the answer of an exec, if anything is.
pub(crate) fn judge(answer: &ExecResponse, expect_stdout: Option<&str>) -> Option<String> {
    let excerpt = |text: &str| text.chars().take(EXCERPT_CHARS).collect::<String>();
    if answer.exit_code != 0 {
        let stderr = excerpt(&answer.stderr);
        return Some(format!("the command exited with {}, saying {stderr:?}", answer.exit_code));
    }
    let expected = expect_stdout?;
    let rest = answer.stdout.strip_prefix(expected);
    if rest.is_some_and(|rest| rest.bytes().all(|byte| byte == b'\n')) {
        return None;
    }
    Some(format!("the command printed {:?} and not {expected:?}", excerpt(&answer.stdout)))
}

/// A command line for the shell in a sandbox, with the server's defaults.
pub(crate) fn shell(id: &SandboxId, cmd: &str) -> ExecRequest {
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

pub(crate) fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
