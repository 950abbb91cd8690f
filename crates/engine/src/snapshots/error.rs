//! What can go wrong with stored snapshots, by what the caller can do about it.

use std::io;
use std::path::{Path, PathBuf};

use manta_api::SnapshotId;
use thiserror::Error;

use super::files::Damage;
use super::name::SnapshotName;
use crate::error::{EngineError, chain};

/// A request to the store that failed.
#[derive(Debug, Error)]
pub(crate) enum StoreError {
    /// No such snapshot; perhaps it was deleted.
    #[error("there is no snapshot {0}")]
    NotFound(SnapshotId),
    /// Another one has the name, or is being made under it.
    #[error("another snapshot is named {0}; delete it or choose another name")]
    NameTaken(SnapshotName),
    /// Made on a machine that differs in what matters.
    #[error("snapshot {id} cannot be restored by this server: {}", differences.join("; "))]
    Incompatible {
        /// Which.
        id: SnapshotId,
        /// A sentence each.
        differences: Vec<String>,
    },
    /// A file is not as it was written.
    #[error("snapshot {id} is damaged: {damage}")]
    Damaged {
        /// Which.
        id: SnapshotId,
        /// What is wrong.
        damage: Damage,
    },
    /// As many as allowed.
    #[error("there are as many snapshots as may be kept, {limit}; delete some")]
    TooMany {
        /// The limit.
        limit: usize,
    },
    /// As many bytes as allowed.
    #[error(
        "all snapshots together may take {limit} bytes; they take {used}, and this one up to {needed}; \
         delete some"
    )]
    TooLarge {
        /// The limit, bytes.
        limit: u64,
        /// What the others take or are promised, bytes.
        used: u64,
        /// What this one takes or, not written yet, may need, bytes.
        needed: u64,
    },
    /// The file system is too full.
    #[error(
        "the file system of {dir} has {free} bytes free; snapshots being made may need {needed}, \
         and {reserve} are kept free; delete some snapshots or make room"
    )]
    NoSpace {
        /// The store's directory.
        dir: PathBuf,
        /// Bytes that can be written.
        free: u64,
        /// Bytes that snapshots under way may need and have not written yet.
        needed: u64,
        /// Bytes that must stay free.
        reserve: u64,
    },
    /// The host failed us.
    #[error("cannot {action} {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

impl StoreError {
    pub(super) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { action, path: path.to_owned(), source }
    }
}

impl From<StoreError> for EngineError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::NotFound(id) => Self::SnapshotNotFound(id),
            StoreError::NameTaken(name) => Self::SnapshotNameTaken(name.into()),
            StoreError::Incompatible { id, differences } => Self::SnapshotIncompatible { id, differences },
            StoreError::Damaged { id, damage } => Self::SnapshotDamaged { id, reason: damage.to_string() },
            StoreError::TooMany { .. } | StoreError::TooLarge { .. } | StoreError::NoSpace { .. } => {
                Self::SnapshotStorageFull(error.to_string())
            }
            StoreError::Io { .. } => Self::Host { stage: "working on snapshots", reason: chain(&error) },
        }
    }
}
