//! `manta bench-restore`: a snapshot is made, then restore → exec → destroy, then all of it is removed.

mod args;
mod fixture;
mod outcome;
mod run;

pub use args::RestoreArgs;
pub use fixture::{Fixture, FixtureError};
pub use outcome::{FailureCounts, RestoreOutcome, RestoreSample};
pub use run::{main, run};
