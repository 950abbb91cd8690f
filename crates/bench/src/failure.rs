//! Why an iteration does not count, and what it may have left behind.

use manta_api::{ErrorCode, SandboxId};
use manta_client::ClientError;
use serde::Serialize;

use crate::error::chain;

/// What an iteration was doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// `POST /create`
    Create,
    /// `POST /snapshot/restore`
    Restore,
    /// `POST /exec`
    Exec,
    /// `POST /destroy`
    Destroy,
}

/// A call that failed. An iteration that failed in exec and again in destroy has two of these.
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
    /// No answer, or none that can be trusted, to a create, a restore or a destroy: what became of the
    /// sandbox is not known.
    pub may_leave_a_sandbox: bool,
    /// Nobody listens at the endpoint any more.
    #[serde(skip)]
    pub(crate) unreachable: bool,
    /// It was not the server: the call was given up at a second interrupt.
    #[serde(skip)]
    pub(crate) given_up: bool,
}

impl Failure {
    /// The server did as it was asked, and it came out wrong.
    pub(crate) fn new(iteration: u32, stage: Stage, sandbox_id: Option<&SandboxId>, error: String) -> Self {
        Self {
            iteration,
            stage,
            sandbox_id: sandbox_id.cloned(),
            code: None,
            error,
            may_leave_a_sandbox: stage != Stage::Exec,
            unreachable: false,
            given_up: false,
        }
    }

    /// The call gave no result.
    pub(crate) fn call(
        iteration: u32,
        stage: Stage,
        sandbox_id: Option<&SandboxId>,
        error: &ClientError,
    ) -> Self {
        let failure = Self::new(iteration, stage, sandbox_id, chain(error));
        let may_leave_a_sandbox = stage == Stage::Destroy || stage != Stage::Exec && may_have_acted(error);
        match error {
            ClientError::Api { body, .. } => Self { code: Some(body.code), may_leave_a_sandbox, ..failure },
            ClientError::Connect { .. } => Self { unreachable: true, may_leave_a_sandbox, ..failure },
            _ => failure,
        }
    }

    /// The call was not waited for any longer.
    pub(crate) fn given_up(iteration: u32, stage: Stage, sandbox_id: Option<&SandboxId>) -> Self {
        let which = if sandbox_id.is_some() { "the" } else { "a" };
        let error = format!("interrupted before the answer: {which} sandbox may be left behind");
        Self { given_up: true, ..Self::new(iteration, stage, sandbox_id, error) }
    }
}

/// Whether a call that failed like this may have made something all the same.
pub(crate) fn may_have_acted(error: &ClientError) -> bool {
    match error {
        // Refused, or failed and cleaned up by the server itself.
        ClientError::Api { .. } => false,
        // Nothing was sent.
        ClientError::Connect { .. } => false,
        _ => true,
    }
}
