//! What can go wrong with an agent, and how its session ends.

use std::time::Duration;

use thiserror::Error;

/// Why a request to the agent failed.
#[derive(Debug, Error)]
pub(crate) enum AgentError {
    /// No answer in time.
    #[error("no answer within {} ms", .0.as_millis())]
    Timeout(Duration),
    /// The link ended before the agent's hello: another one may do.
    #[error("the connection to the agent ended before its hello")]
    LinkLost,
    /// The session ended; the reason as text.
    #[error("{0}")]
    Gone(String),
    /// The agent could not do it.
    #[error("the agent refused: {}", excerpt(.0))]
    Refused(String),
    /// The request does not fit into a frame.
    #[error("the request is too long for the agent: {0}")]
    TooLong(String),
}

/// How a session ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct End {
    /// Why.
    pub(crate) reason: String,
    /// The agent did what no honest one does.
    pub(crate) offence: bool,
}

impl End {
    /// Nobody's fault.
    pub(super) fn loss(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), offence: false }
    }

    pub(super) fn offence(what: &str) -> Self {
        Self { reason: format!("the agent broke the protocol: {what}"), offence: true }
    }

    pub(super) fn closed() -> Self {
        Self::loss("the session was closed")
    }
}

/// As much of an agent's own words as is passed on.
pub(crate) fn excerpt(words: &str) -> String {
    words.chars().take(200).collect()
}
