//! What must hold for anything that a VMM says: for the fuzz targets.

pub use crate::firecracker::fuzzing::{connect, firecracker};
pub use crate::qemu::fuzzing::qmp;
