//! Signals that ask to stop, as something to wait for beside everything else.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use signal_hook::SigId;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::low_level::{pipe, unregister};

use crate::error::{ImageError, cannot};

/// Catches SIGINT, SIGTERM and SIGHUP until dropped. Readable from the first of them on, and never drained,
/// so that every later wait ends at once, too.
pub(crate) struct Interrupts {
    signalled: UnixStream,
    registered: Vec<SigId>,
}

impl Interrupts {
    pub(crate) fn catch() -> Result<Self, ImageError> {
        let failed = || cannot("catch signals for", "this process".as_ref());
        let (mut interrupts, write) = Self::pair().map_err(failed())?;
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            let write = write.try_clone().map_err(failed())?;
            interrupts.registered.push(pipe::register(signal, write).map_err(failed())?);
        }
        Ok(interrupts)
    }

    /// Without any signal: interrupted by writing to the other end.
    pub(crate) fn pair() -> io::Result<(Self, UnixStream)> {
        let (signalled, write) = UnixStream::pair()?;
        Ok((Self { signalled, registered: Vec::new() }, write))
    }

    /// For work that waits for nothing: to be called between its parts.
    pub(crate) fn check(&self) -> Result<(), ImageError> {
        let mut fds = [PollFd::new(&self.signalled, PollFlags::IN)];
        match poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })) {
            Ok(0) | Err(_) => Ok(()),
            Ok(_) => Err(ImageError::Interrupted),
        }
    }
}

impl AsFd for Interrupts {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.signalled.as_fd()
    }
}

impl Drop for Interrupts {
    fn drop(&mut self) {
        for id in self.registered.drain(..) {
            unregister(id);
        }
    }
}
