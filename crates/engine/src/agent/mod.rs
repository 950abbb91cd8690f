//! The host's end of the agent channel: sessions, requests, commands and their output.
//!
//! The guest is hostile. Whatever it sends, memory is bounded by the credit we granted, and
//! anything out of order ends the session, which ends the sandbox.

mod error;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod keeper;
mod link;
mod output;
mod session;
mod silence;
mod streams;
#[cfg(test)]
mod tests;
mod transit;

pub(crate) use error::{AgentError, End, excerpt};
pub(crate) use link::LINKS;
pub use output::{ExecOutput, Output};
pub(crate) use session::Session;
pub(crate) use transit::Redial;
