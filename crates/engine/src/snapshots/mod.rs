//! Snapshots: kept on disk, and taken. Owns the directories `snapshots/` and `golden/` below the work
//! directory: one directory for each snapshot, under its id.
//!
//! ```text
//! snap-…/          complete; its files never change again
//!   manifest.json  what it is and what it depends on
//!   state          processors and devices
//!   memory         the guest's memory
//!   disk.ext4      the guest's own disk
//! .new-snap-…/     being made: renamed when complete
//! .dead-snap-…/    being removed: renamed first
//! ```
//!
//! Both renames are atomic, so that a crash leaves a snapshot or a leftover, which is never listed and is
//! removed at the next start. Only root may search these directories: VMMs get descriptors.
//!
//! The store is synchronous and knows no VMM and no sandbox: what is in the files is written by [`take()`] and
//! by the VMM. It also serves `manta snapshot`, by [`SnapshotDir`].

mod draft;
mod error;
mod files;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
pub(crate) mod golden;
mod hash;
mod machine;
mod manifest;
mod name;
mod offline;
mod scan;
mod store;
mod stored;
mod take;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

pub(crate) use draft::Draft;
pub(crate) use error::StoreError;
pub(crate) use hash::{hash_text, hash_to_end};
pub(crate) use machine::Machine;
pub(crate) use name::SnapshotName;
pub use offline::{
    GcReport, LockedSnapshotDir, OfflineError, RemovedSnapshot, SavedMachine, SavedSnapshot, SnapshotDir,
};
pub(crate) use store::{Limits, Store};
pub(crate) use stored::Stored;
pub(crate) use take::{Order, Subject, blocking, take};
#[cfg(test)]
pub(crate) use testing::stored;
