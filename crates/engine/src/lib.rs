//! Sandboxes: made, used and destroyed. Knows microVMs, host resources and the agent; knows no HTTP.
//!
//! [`Engine`] is the way in. One task owns each sandbox ([`sandbox`]); which request is allowed in
//! which state is one pure function ([`lifecycle`]).

mod agent;
mod artifacts;
mod config;
mod confine;
mod dirs;
mod engine;
mod error;
mod exec;
mod fingerprint;
mod guest;
mod lifecycle;
mod prepared;
mod resources;
mod sandbox;
mod shared;
mod slots;
mod snapshots;
mod sweep;
mod table;

pub use agent::{ExecOutput, Output};
pub use config::EngineConfig;
pub use engine::{Engine, ShutdownReport};
pub use error::{EngineError, StartError};
pub use exec::ExecSpec;
pub use snapshots::{
    GcReport, LockedSnapshotDir, OfflineError, RemovedSnapshot, SavedMachine, SavedSnapshot, SnapshotDir,
};
