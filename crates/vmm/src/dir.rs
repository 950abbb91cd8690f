//! A VM's directory, by descriptor: opens the VM's files and makes and connects Unix sockets in it.
//!
//! A Unix socket's path may have 107 bytes (`unix(7)`), a work directory more; so sockets are addressed through
//! `/proc/self/fd`. A directory or image may also lie where the VMM's user may not search; so QEMU's images are
//! opened here and passed on as descriptors.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener as StdUnixListener;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, Uid, chownat, fchmod, fstat, open, openat};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with};
use tokio::net::UnixStream;

use crate::error::VmmError;
use crate::vmm::{SnapshotFiles, VmSpec};

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 8;

#[derive(Debug)]
pub(crate) struct VmDir {
    path: PathBuf,
    fd: OwnedFd,
}

impl VmDir {
    pub(crate) fn open(path: &Path) -> Result<Self, VmmError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = open(path, flags, Mode::empty()).map_err(|source| VmmError::Open {
            what: "VM directory",
            path: path.to_owned(),
            source,
        })?;
        Ok(Self { path: path.to_owned(), fd })
    }

    /// As the caller named it, for messages.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// A path of bounded length to a file in the directory.
    pub(crate) fn short_path(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}/{name}", self.fd.as_raw_fd()))
    }

    /// Removes a file from the directory, but not what it may be a link to.
    pub(crate) fn remove(&self, name: &str) -> io::Result<()> {
        std::fs::remove_file(self.short_path(name))
    }

    /// A listening socket that only `owner` (and root) can connect to; the server's own user if none.
    pub(crate) fn listen(&self, name: &str, owner: Option<u32>) -> Result<OwnedFd, VmmError> {
        let path = self.short_path(name);
        let make = || {
            let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
            // The file that bind makes takes the socket's mode: at no moment is it open to others.
            fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
            bind(&socket, &SocketAddrUnix::new(&path)?)?;
            if let Some(uid) = owner {
                chownat(CWD, &path, Some(Uid::from_raw(uid)), None::<Gid>, AtFlags::SYMLINK_NOFOLLOW)?;
            }
            listen(&socket, BACKLOG)?;
            Ok(socket)
        };
        make().map_err(|source: io::Error| VmmError::Listen {
            name: name.to_owned(),
            dir: self.path.clone(),
            source,
        })
    }

    /// As [`Self::listen`], to accept connections in this process.
    pub(crate) fn listen_here(
        &self,
        name: &str,
        owner: Option<u32>,
    ) -> Result<tokio::net::UnixListener, VmmError> {
        let listener = StdUnixListener::from(self.listen(name, owner)?);
        listener
            .set_nonblocking(true)
            .and_then(|()| tokio::net::UnixListener::from_std(listener))
            .map_err(|source| VmmError::Listen { name: name.to_owned(), dir: self.path.clone(), source })
    }

    /// Does not follow a link, which a VMM could have put there to reach a socket that it may not.
    pub(crate) async fn connect(&self, name: &str) -> io::Result<UnixStream> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let socket = openat(&self.fd, name, flags, Mode::empty())?;
        if FileType::from_raw_mode(fstat(&socket)?.st_mode) != FileType::Socket {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "not a socket"));
        }
        UnixStream::connect(format!("/proc/self/fd/{}", socket.as_raw_fd())).await
    }

    pub(crate) fn connect_error(&self, name: &str, source: io::Error) -> VmmError {
        VmmError::Connect { name: name.to_owned(), dir: self.path.clone(), source }
    }
}

/// The descriptors under which QEMU finds the VM's files. Fixed, since a snapshot remembers the paths of disks.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Image {
    Kernel = 10,
    Initramfs = 11,
    Rootfs = 12,
    Disk = 13,
    /// Of the snapshot a VM is restored from.
    State = 14,
    Memory = 15,
}

impl Image {
    /// The path by which the VMM process opens it.
    pub(crate) fn path(self) -> String {
        format!("/proc/self/fd/{}", self as RawFd)
    }

    /// Opens all of a VM's files, for `Spawn::fds`.
    pub(crate) fn open_all(spec: &VmSpec) -> Result<Vec<(OwnedFd, RawFd)>, VmmError> {
        [
            (Self::Kernel, "kernel", &spec.kernel, OFlags::RDONLY),
            (Self::Initramfs, "initramfs", &spec.initramfs, OFlags::RDONLY),
            (Self::Rootfs, "rootfs", &spec.rootfs, OFlags::RDONLY),
            (Self::Disk, "disk", &spec.disk, OFlags::RDWR),
        ]
        .into_iter()
        .map(|(image, what, path, access)| Ok((open_image(what, path, access)?, image as RawFd)))
        .collect()
    }

    /// Opens the files a VM is restored from, for `Spawn::fds`: its state, then its memory.
    pub(crate) fn open_snapshot(files: &SnapshotFiles) -> Result<[(OwnedFd, RawFd); 2], VmmError> {
        let state = open_image("snapshot's state", &files.state, OFlags::RDONLY)?;
        let memory = open_image("snapshot's memory", &files.memory, OFlags::RDONLY)?;
        Ok([(state, Self::State as RawFd), (memory, Self::Memory as RawFd)])
    }
}

pub(crate) fn open_image(what: &'static str, path: &Path, access: OFlags) -> Result<OwnedFd, VmmError> {
    open(path, access | OFlags::CLOEXEC, Mode::empty()).map_err(|source| VmmError::Open {
        what,
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use rustix::net::{Shutdown, shutdown};

    use super::*;

    #[tokio::test]
    async fn a_socket_is_connected_to_but_not_by_way_of_a_link() {
        let root = tempfile::tempdir().unwrap();
        let [vm, other] = ["vm", "other"].map(|name| root.path().join(name));
        for path in [&vm, &other] {
            std::fs::create_dir(path).unwrap();
        }
        let (vm, other) = (VmDir::open(&vm).unwrap(), VmDir::open(&other).unwrap());
        let _listening = other.listen_here("socket", None).unwrap();
        other.connect("socket").await.unwrap();

        symlink("../other/socket", vm.path().join("link")).unwrap();
        std::fs::write(vm.path().join("file"), "").unwrap();
        // Not only closed: a child of another test may still have a copy, on its way to exec.
        shutdown(vm.listen("ended", None).unwrap(), Shutdown::Both).unwrap();
        for (name, kind) in [
            ("link", io::ErrorKind::InvalidData),
            ("file", io::ErrorKind::InvalidData),
            ("ended", io::ErrorKind::ConnectionRefused),
            ("missing", io::ErrorKind::NotFound),
        ] {
            assert_eq!(vm.connect(name).await.unwrap_err().kind(), kind, "{name}");
        }
    }
}
