//! The Unix socket: who may open the file may call, so it is made for its owner alone. One that a dead server left is
//! replaced, one of a living server is not.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::os::unix::net::{UnixListener as StdListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, chmod, fstat, open};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with};
use thiserror::Error;
use tokio::net::UnixListener;

/// Connections that wait to be accepted; the kernel takes no more than net.core.somaxconn.
const BACKLOG: i32 = 1024;

/// Why there is no socket.
#[derive(Debug, Error)]
pub enum UnixSocketError {
    /// Somebody listens there.
    #[error("another server is listening on it")]
    InUse,
    /// The path leads to something else.
    #[error("there is a file there that is no socket")]
    NoSocket,
    /// It cannot be made.
    #[error("cannot {0}")]
    System(&'static str, #[source] io::Error),
}

/// The file of a listening socket; removed when dropped.
#[derive(Debug)]
pub(crate) struct UnixSocket {
    path: PathBuf,
    /// Held, so that the number of its inode is not given to another socket.
    file: OwnedFd,
}

impl UnixSocket {
    /// Listens at `path`. Connections are accepted from the listener, as long as it lives.
    pub(crate) fn listen(path: &Path) -> Result<(Self, UnixListener), UnixSocketError> {
        use UnixSocketError::System;
        let address = SocketAddrUnix::new(path)
            .map_err(|error| System("use this path (at most 107 bytes)", error.into()))?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
            .map_err(|error| System("make a socket", error.into()))?;
        match bind(&socket, &address) {
            Err(Errno::ADDRINUSE) => {
                remove_stale(path)?;
                bind(&socket, &address)
            }
            bound => bound,
        }
        .map_err(|error| System("bind it", error.into()))?;
        let file = open(path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
            .map_err(|error| System("look at it", error.into()))?;
        let made = Self { path: path.to_owned(), file };
        // Before it listens: until then nobody can connect, whatever the umask made of its mode.
        chmod(path, Mode::RUSR | Mode::WUSR)
            .map_err(|error| System("make it its owner's alone", error.into()))?;
        listen(&socket, BACKLOG).map_err(|error| System("listen on it", error.into()))?;
        let listener = UnixListener::from_std(StdListener::from(socket))
            .map_err(|error| System("wait for connections", error))?;
        Ok((made, listener))
    }
}

impl Drop for UnixSocket {
    fn drop(&mut self) {
        // Somebody may have put another there.
        let ours = match (fs::symlink_metadata(&self.path), fstat(&self.file)) {
            (Ok(found), Ok(made)) => (found.dev(), found.ino()) == (made.st_dev, made.st_ino),
            _ => false,
        };
        if ours && let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "the socket cannot be removed");
        }
    }
}

/// Removes a socket nobody listens on.
fn remove_stale(path: &Path) -> Result<(), UnixSocketError> {
    use UnixSocketError::System;
    let found = fs::symlink_metadata(path).map_err(|error| System("look at what is there", error))?;
    if !found.file_type().is_socket() {
        return Err(UnixSocketError::NoSocket);
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(|error| System("remove what a dead server left", error))
        }
        Ok(_) => Err(UnixSocketError::InUse),
        Err(error) => Err(System("tell whether another server listens on it", error)),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[tokio::test]
    async fn it_is_its_owners_alone_and_gone_in_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let (socket, listener) = UnixSocket::listen(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(matches!(UnixSocket::listen(&path), Err(UnixSocketError::InUse)));
        UnixStream::connect(&path).unwrap();
        drop((socket, listener));
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn what_a_dead_server_left_is_replaced_and_anything_else_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        drop(StdListener::bind(&path).unwrap());
        let (first, listener) = UnixSocket::listen(&path).unwrap();
        drop(listener);
        let (second, _listener) = UnixSocket::listen(&path).unwrap();
        drop(first);
        assert!(path.exists(), "only who made it removes it");
        drop(second);
        fs::write(&path, "precious").unwrap();
        assert!(matches!(UnixSocket::listen(&path), Err(UnixSocketError::NoSocket)));
        assert_eq!(fs::read(&path).unwrap(), b"precious");
    }
}
