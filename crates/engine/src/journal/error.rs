//! Why the journal cannot be used.

use std::path::PathBuf;

use thiserror::Error;

/// Why a server cannot start with the journal that is there.
#[derive(Debug, Error)]
pub(crate) enum JournalError {
    /// The file cannot be made, opened or written.
    #[error(
        "cannot write the journal {path}: sandboxes that nobody remembers could not be taken back or removed"
    )]
    Open {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// It is of a later version of Manta.
    #[error(
        "the journal {path} is of a newer manta (schema {found}; this one knows {known}): start that one, or, if no \
         sandbox is worth keeping, stop it with SIGTERM first, which leaves none, and remove {path}*"
    )]
    Newer {
        /// Which.
        path: PathBuf,
        /// Its version.
        found: u32,
        /// The latest known.
        known: u32,
    },
    /// It says nothing that makes sense.
    #[error(
        "the journal {path} cannot be read, and microVMs of the work directory are alive: restore the file, or remove \
         {path}*, and the next start removes the sandboxes"
    )]
    Corrupt {
        /// Which.
        path: PathBuf,
        /// Where it stopped.
        #[source]
        source: rusqlite::Error,
    },
}

/// The journal cannot be written now: nothing new may be begun.
#[derive(Debug, Clone, Error)]
#[error("the journal cannot be written: {0}")]
pub(crate) struct Unwritable(pub(crate) String);
