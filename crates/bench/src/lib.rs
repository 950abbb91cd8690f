//! The measuring loops of `manta bench` (create → exec → destroy) and `manta bench-restore`
//! (restore → exec → destroy), one sandbox after another, against a running server. What is measured
//! and how is docs/benchmark.md. Knows the server only by its HTTP interface.

mod create;
pub mod restore;

mod args;
mod conditions;
mod error;
mod failure;
mod interrupt;
mod iteration;
mod percentiles;
mod progress;
mod report;
mod session;
mod summary;

pub use args::CommonArgs;
pub use conditions::{Client, Conditions, LoadAverage};
pub use create::{BenchArgs, Outcome, Sample, main, run};
pub use error::BenchError;
pub use failure::{Failure, Stage};
pub use percentiles::Percentiles;
pub use session::EndedEarly;
