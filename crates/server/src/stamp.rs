//! Telling whether a file is still the one that was read, by what the file system says of it. Reads no content.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt as _;

/// Which file, as it was. A successor may have the same only if it has the same inode: who keeps the file open keeps
/// that from happening.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stamp {
    dev: u64,
    ino: u64,
    bytes: u64,
    modified_ns: (i64, i64),
    changed_ns: (i64, i64),
}

impl Stamp {
    pub(crate) fn of(found: &Metadata) -> Self {
        Self {
            dev: found.dev(),
            ino: found.ino(),
            bytes: found.len(),
            modified_ns: (found.mtime(), found.mtime_nsec()),
            changed_ns: (found.ctime(), found.ctime_nsec()),
        }
    }
}
