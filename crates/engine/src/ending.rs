//! Why a sandbox is gone: for its last event, and for whoever asks for it later.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What ended a sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    /// Somebody asked for it.
    Requested,
    /// Its lifetime ended.
    Expired,
    /// Its microVM or agent failed, and why; then somebody asked for it, or its lifetime ended.
    Crashed(String),
    /// Whoever asked for it hung up before it was ready.
    Abandoned,
    /// It could not be made.
    NotCreated,
    /// The server went.
    Shutdown,
    /// The server was killed, and the next one could not take it back, for this reason.
    Lost(String),
}

impl Ending {
    /// In one word, for programs.
    pub(crate) fn as_str(&self) -> &'static str {
        match self {
            Self::Requested => "requested",
            Self::Expired => "expired",
            Self::Crashed(_) => "crashed",
            Self::Abandoned => "abandoned",
            Self::NotCreated => "not_created",
            Self::Shutdown => "shutdown",
            Self::Lost(_) => "lost",
        }
    }
}

/// What it did.
impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Requested => f.write_str("was destroyed by request"),
            Self::Expired => f.write_str("expired: its lifetime ended"),
            Self::Crashed(reason) => write!(f, "crashed: {reason}"),
            Self::Abandoned => f.write_str("was given up, since whoever asked for it hung up"),
            Self::NotCreated => f.write_str("could not be created"),
            Self::Shutdown => f.write_str("was destroyed at the server's shutdown"),
            Self::Lost(reason) => write!(f, "was lost when the server was killed: {reason}"),
        }
    }
}
