//! The measuring loop of `manta bench`: create → exec → destroy, one sandbox after another, against
//! a running server. What is measured and how is docs/benchmark.md. Knows the server only by its
//! HTTP interface.

mod args;
mod conditions;
mod interrupt;
mod iteration;
mod outcome;
mod percentiles;
mod progress;
mod run;
mod summary;

pub use args::BenchArgs;
pub use conditions::{Client, Conditions, LoadAverage};
pub use iteration::{Failure, Sample, Stage};
pub use outcome::{EndedEarly, Outcome};
pub use percentiles::Percentiles;
pub use run::{BenchError, main, run};
