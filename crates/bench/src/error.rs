//! Why a benchmark has nothing to report. Failed iterations are no errors: they are in the outcome.

use std::error::Error;
use std::io;

use manta_client::ClientError;
use thiserror::Error;

use crate::restore::FixtureError;

/// Why there is no outcome at all.
#[derive(Debug, Error)]
pub enum BenchError {
    /// `--endpoint` is not an address.
    #[error("--endpoint")]
    Endpoint(#[source] ClientError),
    /// `--api-key` cannot be sent.
    #[error("--api-key")]
    ApiKey(#[source] ClientError),
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
    /// There is no snapshot to restore.
    #[error("cannot prepare the snapshot")]
    Fixture(#[from] FixtureError),
    /// One of the other sandboxes, `--live`, cannot be had.
    #[error("--live: no sandbox")]
    Others(#[source] ClientError),
    /// Ctrl-C or SIGTERM before the loop.
    #[error("interrupted before the first iteration")]
    Interrupted,
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
            Self::Endpoint(_)
            | Self::ApiKey(_)
            | Self::Signals(_)
            | Self::Fixture(_)
            | Self::Others(_)
            | Self::Interrupted => None,
        }
    }

    /// 130 after an interrupt, else 1.
    #[must_use]
    pub fn exit_status(&self) -> u8 {
        match self {
            Self::Interrupted => 130,
            _ => 1,
        }
    }
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
