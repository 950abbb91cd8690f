//! The measuring loops of `manta bench` (create → exec → destroy) and `manta bench-restore`
//! (restore → exec → destroy) against a running server, and what is made of their results. What is
//! measured and how is docs/benchmark.md. Knows the server only by its HTTP interface.

mod command;
mod create;
pub mod restore;
pub mod results;

mod args;
mod conditions;
mod error;
mod failure;
mod interrupt;
mod iteration;
mod load;
mod others;
mod percentiles;
mod phase;
mod pool;
mod progress;
mod report;
mod score;
mod session;
mod summary;

pub use args::CommonArgs;
pub use command::{BenchCommand, main};
pub use conditions::{Client, Conditions, LoadAverage};
pub use create::{BenchArgs, Outcome, Sample, run};
pub use error::BenchError;
pub use failure::{Failure, Stage};
pub use load::Mode;
pub use percentiles::Percentiles;
pub use phase::EndedEarly;
pub use pool::{PoolArgs, PoolGroup, PoolReport, PoolUse, StageTimes};
pub use score::score;
