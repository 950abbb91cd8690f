//! What of the event loop needs `unsafe`. Owns nothing but the safety argument.

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Registers a descriptor with the event loop, to wait until it is readable.
pub(crate) fn watch_readable(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is open, and the same descriptor, as long as it lives; the `AsyncFd` owns it, and its
    // users get it by shared reference only.
    Ok(unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?)
}
