//! API keys: what one is, the file they are kept in, and what a running server sees of that file. Who needs one is
//! said in `auth.rs`.

mod file;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod live;
mod record;

pub(crate) use file::KeyFile;
pub use file::KeyFileError;
pub(crate) use live::{LiveKeys, Refused, unix_ms};
pub(crate) use record::{Holder, KeyRecord, Keys, NameError, Secret};
