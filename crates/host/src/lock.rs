//! One server per network namespace, and one per work directory. Owns the locks only; the kernel releases both
//! at the holder's death, however it dies.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, socket_with};

/// Names of abstract sockets belong to a network namespace, as the table, the interface names and the addresses
/// of the slots do.
const SOCKET_NAME: &[u8] = b"manta-server";
const LOCK_FILE: &str = "lock";

/// The right to be the one server in this network namespace, held until dropped.
#[derive(Debug)]
pub struct ServerLock {
    _socket: OwnedFd,
}

/// The right to be the one server of a work directory, held until dropped.
#[derive(Debug)]
pub struct WorkDirLock {
    _file: File,
}

/// Why a lock could not be had.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another server is in this network namespace.
    #[error(
        "another manta server is running in this network namespace: stop it, or start this one in another"
    )]
    NetNsInUse,
    /// Another server uses the work directory.
    #[error("another manta server is using {dir}: stop it, or choose another work directory")]
    WorkDirInUse {
        /// The work directory.
        dir: PathBuf,
    },
    /// The socket that is the lock could not be made.
    #[error("cannot lock the network namespace")]
    Socket(#[source] Errno),
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

impl ServerLock {
    /// Locks the calling thread's network namespace.
    ///
    /// # Errors
    /// `NetNsInUse` when another holder is alive, in this process or another.
    pub fn acquire() -> Result<Self, LockError> {
        let socket = socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)
            .map_err(LockError::Socket)?;
        let address = SocketAddrUnix::new_abstract_name(SOCKET_NAME).map_err(LockError::Socket)?;
        match bind(&socket, &address) {
            Ok(()) => Ok(Self { _socket: socket }),
            Err(Errno::ADDRINUSE) => Err(LockError::NetNsInUse),
            Err(source) => Err(LockError::Socket(source)),
        }
    }
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
    use crate::NetNs;

    #[test]
    fn one_server_per_network_namespace() {
        let netns = NetNs::create().unwrap();
        let held = netns.run(ServerLock::acquire).unwrap().unwrap();
        assert!(matches!(netns.run(ServerLock::acquire).unwrap(), Err(LockError::NetNsInUse)));
        NetNs::create().unwrap().run(ServerLock::acquire).unwrap().unwrap();
        drop(held);
        netns.run(ServerLock::acquire).unwrap().unwrap();
    }

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
