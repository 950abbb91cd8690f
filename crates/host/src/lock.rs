//! One server per work directory. Owns the lock only; the kernel releases it at the holder's death, however it dies.
//! The one of a network namespace is [`crate::net::ServerLock`].

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

const LOCK_FILE: &str = "lock";

/// The right to be the one server of a work directory, held until dropped.
#[derive(Debug)]
pub struct WorkDirLock {
    _file: File,
}

/// Why a lock could not be had.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another server uses the work directory.
    #[error("another manta server is using {dir}: stop it, or choose another work directory")]
    WorkDirInUse {
        /// The work directory.
        dir: PathBuf,
    },
    /// The file that is the lock could not be opened, locked or written.
    #[error("cannot lock {path}")]
    File {
        /// The lock file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl WorkDirLock {
    /// Locks the directory `dir`, which must exist, by its file `lock`; that holds our process id then, for
    /// people to read.
    ///
    /// # Errors
    /// `WorkDirInUse` when another holder is alive.
    pub fn acquire(dir: &Path) -> Result<Self, LockError> {
        let path = dir.join(LOCK_FILE);
        let error = |source| LockError::File { path: path.clone(), source };
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(false).open(&path).map_err(error)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Err(LockError::WorkDirInUse { dir: dir.to_owned() }),
            Err(source) => return Err(error(source.into())),
        }
        file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id())).map_err(error)?;
        Ok(Self { _file: file })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_server_per_work_directory() {
        let dir = tempfile::tempdir().unwrap();
        let held = WorkDirLock::acquire(dir.path()).unwrap();
        assert!(matches!(WorkDirLock::acquire(dir.path()), Err(LockError::WorkDirInUse { .. })));
        let text = std::fs::read_to_string(dir.path().join("lock")).unwrap();
        assert_eq!(text.trim(), std::process::id().to_string());
        drop(held);
        WorkDirLock::acquire(dir.path()).unwrap();
    }
}
