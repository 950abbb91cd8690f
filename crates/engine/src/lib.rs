//! Sandboxes: made, used and destroyed. Knows microVMs, host resources and the agent; knows no HTTP.
//!
//! [`Engine`] is the way in. One task owns each sandbox ([`sandbox`]); which request is allowed in
//! which state is one pure function ([`lifecycle`]).

mod admission;
mod agent;
mod artifacts;
mod caller;
mod config;
mod confine;
mod dirs;
mod ending;
mod engine;
mod error;
mod events;
mod exec;
mod failpoint;
mod fingerprint;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
mod guest;
mod journal;
mod lifecycle;
mod lifetime;
mod limits;
mod metrics;
mod net_rules;
mod places;
mod pool;
mod recovery;
mod resources;
mod sandbox;
mod shared;
mod slots;
mod snapshots;
mod table;
mod template;
mod timing;
mod wish;

pub use self::metrics::describe as describe_metrics;
pub use agent::{ExecOutput, Output};
pub use caller::{Caller, KeyHolder, KeyLimits, Rate, SERVER};
pub use config::{CgroupMode, EngineConfig, VMM_OVERHEAD_MIB, sandbox_mib};
pub use ending::Ending;
pub use engine::{Engine, ShutdownReport};
pub use error::{EngineError, StartError};
pub use events::EventReader;
pub use exec::ExecSpec;
pub use failpoint::{Armed as ArmedFailpoint, VARIABLE as FAILPOINT_VARIABLE, failpoints};
pub use lifetime::LONGEST_LIFETIME;
pub use pool::{PoolStatus, Pools};
pub use snapshots::{
    GcReport, LockedSnapshotDir, OfflineError, RemovedSnapshot, SavedMachine, SavedSnapshot, SnapshotDir,
};
pub use timing::{PoolUse, Timed, Timings};
