//! What must hold for anything that a client sends, or that stands in the file of keys: for the fuzz targets.

pub use crate::keys::fuzzing::{key_name, keys};
pub use crate::routes::fuzzing::{body, http, query};
