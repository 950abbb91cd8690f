//! A network namespace, held by a file descriptor alone: no bind mount under `/run/netns`, which every later
//! copy of the mount table would have to copy too. Does not own what is inside the namespace; the kernel
//! destroys that with the last reference.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::thread;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// A network namespace. It lives as long as a clone of this, a process or a socket in it.
#[derive(Debug, Clone)]
pub struct NetNs {
    fd: Arc<OwnedFd>,
}

/// What can go wrong with a network namespace.
#[derive(Debug, thiserror::Error)]
pub enum NetNsError {
    /// No thread could be started.
    #[error("cannot start a thread to enter a network namespace")]
    Thread(#[source] io::Error),
    /// `unshare(CLONE_NEWNET)` was refused.
    #[error("cannot create a network namespace")]
    Unshare(#[source] Errno),
    /// The namespace file in `/proc` could not be opened.
    #[error("cannot open {path}")]
    Open {
        /// The namespace file.
        path: String,
        /// Why.
        #[source]
        source: Errno,
    },
    /// `fstat` of a namespace failed.
    #[error("cannot tell which network namespace it is")]
    Compare(#[source] Errno),
    /// `setns` was refused.
    #[error("cannot enter the network namespace")]
    Enter(#[source] Errno),
}

impl NetNs {
    /// Creates an empty network namespace (in it is a loopback interface, down).
    ///
    /// # Errors
    /// When a thread cannot be started, or the kernel refuses (no `CAP_SYS_ADMIN`, or
    /// `/proc/sys/user/max_net_namespaces` is reached).
    pub fn create() -> Result<Self, NetNsError> {
        on_own_thread(|| {
            crate::sys::unshare_net().map_err(NetNsError::Unshare)?;
            Self::current()
        })?
    }

    /// The network namespace of the calling thread.
    ///
    /// # Errors
    /// When `/proc` is not mounted or no file descriptor is left.
    pub fn current() -> Result<Self, NetNsError> {
        Self::open("/proc/thread-self/ns/net".to_owned())
    }

    /// The network namespace of the process `pid`.
    ///
    /// # Errors
    /// When there is no such process, or it may not be inspected.
    pub fn of_process(pid: u32) -> Result<Self, NetNsError> {
        Self::open(format!("/proc/{pid}/ns/net"))
    }

    /// Whether this and `other` are the same namespace.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn is(&self, other: &Self) -> Result<bool, NetNsError> {
        let which = |netns: &Self| {
            let stat = rustix::fs::fstat(netns).map_err(NetNsError::Compare)?;
            Ok((stat.st_dev, stat.st_ino))
        };
        Ok(which(self)? == which(other)?)
    }

    /// Runs `f` inside the namespace, on a thread of its own that ends with it. The caller's thread never
    /// changes its namespace. A panic of `f` is passed on.
    ///
    /// # Errors
    /// When the thread cannot be started or cannot enter the namespace; `f` has not run then.
    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> Result<T, NetNsError> {
        on_own_thread(|| {
            move_into_link_name_space(self.as_fd(), Some(LinkNameSpaceType::Network))
                .map_err(NetNsError::Enter)?;
            Ok(f())
        })?
    }

    fn open(path: String) -> Result<Self, NetNsError> {
        match rustix::fs::open(&path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()) {
            Ok(fd) => Ok(Self { fd: Arc::new(fd) }),
            Err(source) => Err(NetNsError::Open { path, source }),
        }
    }
}

impl AsFd for NetNs {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn on_own_thread<T: Send>(f: impl FnOnce() -> T + Send) -> Result<T, NetNsError> {
    thread::scope(|scope| {
        let thread = thread::Builder::new()
            .name("netns".to_owned())
            .spawn_scoped(scope, f)
            .map_err(NetNsError::Thread)?;
        Ok(thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })
}
