//! What is made of result files: a comparison, and an image. Both need no server.

mod bootstrap;
mod compare;
mod difference;
mod plot;
mod recorded;
mod svg;

pub use compare::{CompareArgs, compare};
pub use plot::{PlotArgs, plot};
pub use recorded::ResultsError;
