//! The host's end of the agent channel: sessions, requests, commands and their output.
//!
//! The guest is hostile. Whatever it sends, memory is bounded by the credit we granted, and
//! anything out of order ends the session, which ends the sandbox.

mod link;
mod output;
mod session;
mod streams;

pub use output::{ExecOutput, Output};
pub(crate) use session::{AgentError, End, Session, excerpt};
