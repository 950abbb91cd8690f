//! The agent: PID 1 of every guest. Boots the guest's root, then does what the host asks over a byte
//! stream (protocol: `manta-agent-proto`).
//!
//! One thread, one event loop. What runs on every exec of a freshly restored guest is kept short,
//! because under software emulation each piece of code costs its translation the first time.
//!
//! Reading order: [`boot`] makes the root; [`channel`] finds the ways to the host; [`agent`] is the
//! loop; inside it a session is what one host said hello for, with one job per running command;
//! [`Machine`] is what a clone of a snapshot is told to become.

mod adopt;
pub mod agent;
pub mod boot;
pub mod channel;
mod drain;
mod exec;
pub mod kmsg;
mod launch;
mod link;
pub mod names;
pub mod net;
mod outbox;
mod poll;
mod session;
pub mod sys;
mod uevent;

pub use adopt::{AdoptError, Machine};
pub use agent::Agent;
