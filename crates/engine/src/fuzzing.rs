//! What must hold for anything that an agent says, or that stands in a snapshot's files: for the fuzz targets.

pub use crate::agent::fuzzing::session;
pub use crate::snapshots::fuzzing::{manifest, snapshot_name};
