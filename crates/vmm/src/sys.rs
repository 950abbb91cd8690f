//! What of event loop and files needs `unsafe`. Owns nothing but the safety argument.

use std::ffi::c_int;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Registers a descriptor with the event loop, to wait until it is readable.
///
/// # Errors
/// When the kernel refuses, or there is no event loop.
pub fn watch_readable(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is open, and the same descriptor, as long as it lives; the `AsyncFd` owns it, and its
    // users get it by shared reference only.
    Ok(unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?)
}

/// Whether any process has the file open or mapped for writing. `file` must be open for reading only, and
/// belong to this process's user.
pub(crate) fn has_writer(file: &File) -> io::Result<bool> {
    /// `asm-generic/fcntl.h` of Linux; libc lacks it.
    const F_SETSIG: c_int = 10;
    let fcntl = |command, argument: c_int| {
        // SAFETY: both commands take a number.
        match unsafe { libc::fcntl(file.as_raw_fd(), command, argument) } {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        }
    };
    // Tells of an open that breaks the lease; the usual signal would end this process, this one does nothing.
    fcntl(F_SETSIG, libc::SIGURG)?;
    // A read lease is refused then: fcntl(2).
    match fcntl(libc::F_SETLEASE, libc::F_RDLCK) {
        Ok(()) => fcntl(libc::F_SETLEASE, libc::F_UNLCK).map(|()| false),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(true),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;
    use std::ptr;

    use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

    use super::*;
    use crate::snapshot::ensure_final;

    #[test]
    fn a_writer_is_seen_as_long_as_it_has_the_file_open_or_mapped() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, [1; 4096]).unwrap();
        let file = File::open(&path).unwrap();
        let writer = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        assert!(has_writer(&file).unwrap());
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice touches no existing memory.
        let mapped = unsafe { mmap(ptr::null_mut(), 4096, access, MapFlags::SHARED, &writer, 0) }.unwrap();
        drop(writer);
        assert!(has_writer(&file).unwrap());
        // SAFETY: mapped above; nothing points into it.
        unsafe { munmap(mapped, 4096) }.unwrap();
        // Other tests fork: not by `has_writer`, which sees their children's copies too.
        ensure_final(&file, 4096).unwrap();
        assert!(ensure_final(&file, 4095).is_err());
    }
}
