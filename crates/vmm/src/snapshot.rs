//! Files of a snapshot on their way into place: out of the hands of a VMM, which is not trusted, and made
//! final. Does not know what is in them. Blocking: not for the event loop.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{getegid, geteuid};

use crate::dir::VmDir;
use crate::error::VmmError;
use crate::sys::has_writer;

/// Name in the VM's directory under which a VMM writes its processors and devices.
pub(crate) const STATE: &str = "snapshot.state";

/// Many times what any VMM needs for processors and devices, bytes.
pub(crate) const MAX_STATE: u64 = 16 << 20;

/// A process that is being forked here has open what is open here, up to its exec: milliseconds, of which
/// nothing tells the end.
const FORK_TIMEOUT: Duration = Duration::from_secs(1);
const FORK_PAUSE: Duration = Duration::from_millis(5);

/// Copies the file `name`, which the VMM wrote in its directory, to `to`, which must not exist, and removes
/// it there. The copy is nobody else's at any time.
///
/// # Errors
/// [`VmmError::Save`]; also when `name` is no regular file or larger than `max_len` bytes.
pub(crate) fn copy_out(dir: &VmDir, name: &str, to: &Path, max_len: u64) -> Result<(), VmmError> {
    let copy = || {
        let from = open_regular(&dir.short_path(name))?;
        let mut copy = create(to)?;
        let copied = io::copy(&mut from.take(max_len + 1), &mut copy)?;
        if copied > max_len { Err(io::ErrorKind::FileTooLarge.into()) } else { dir.remove(name) }
    };
    copy().map_err(save(to))
}

/// Moves the file `name`, which the VMM wrote in its directory, to `to` on the same file system. It becomes
/// the server's, so that no VMM can open it to write; one that kept it open still can write, up to
/// [`ensure_final`].
///
/// # Errors
/// [`VmmError::Save`]; also when it is no regular file or not of `len` bytes.
pub(crate) fn move_out(dir: &VmDir, name: &str, to: &Path, len: u64) -> Result<(), VmmError> {
    let take = || {
        fs::rename(dir.short_path(name), to)?;
        // Looked at only here, where the VMM cannot exchange it any more.
        let file = open_regular(to)?;
        let found = file.metadata()?;
        if found.len() != len || found.nlink() != 1 {
            let what = "not of the size it should have, or linked from elsewhere";
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
        // In this order: the owner could change the permissions again.
        fchown(&file, Some(geteuid().as_raw()), Some(getegid().as_raw()))?;
        file.set_permissions(Permissions::from_mode(0o600))
    };
    take().map_err(save(to))
}

/// A new file for the server alone.
pub(crate) fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

/// Makes a file read-only, and readable for VMMs.
///
/// # Errors
/// [`VmmError::Save`].
pub(crate) fn finish(path: &Path) -> Result<(), VmmError> {
    let finish = || {
        let file = open_regular(path)?;
        file.set_permissions(Permissions::from_mode(0o444))
    };
    finish().map_err(save(path))
}

/// Makes sure that a file which was moved out and finished has `len` bytes and never changes again: that the
/// VMM has it neither open nor mapped for writing. An honest one has closed it when it says that it is done.
///
/// # Errors
/// When it is not so. Waits for a second before it says so: see [`FORK_TIMEOUT`].
pub(crate) fn ensure_final(file: &File, len: u64) -> io::Result<()> {
    let start = Instant::now();
    while has_writer(file)? {
        if start.elapsed() > FORK_TIMEOUT {
            return Err(io::Error::new(io::ErrorKind::ResourceBusy, "the VMM still has it open"));
        }
        thread::sleep(FORK_PAUSE);
    }
    if file.metadata()?.len() == len {
        Ok(())
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidData, "not of the size it should have"))
    }
}

/// For `map_err`.
pub(crate) fn save<E: Into<io::Error>>(path: &Path) -> impl Fn(E) -> VmmError {
    move |source| VmmError::Save { path: path.to_owned(), source: source.into() }
}

/// Neither follows a link nor waits for the writer of a pipe.
fn open_regular(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "not a regular file"));
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn what_the_vmm_wrote_is_taken_out_of_its_hands() {
        let root = tempfile::tempdir().unwrap();
        let vm = root.path().join("vm");
        fs::create_dir(&vm).unwrap();
        let dir = VmDir::open(&vm).unwrap();
        let [copy, moved] = ["copy", "moved"].map(|name| root.path().join(name));
        fs::write(vm.join("a"), "12345").unwrap();
        fs::write(vm.join("b"), "12345").unwrap();
        copy_out(&dir, "a", &copy, 5).unwrap();
        move_out(&dir, "b", &moved, 5).unwrap();
        assert_eq!(fs::read_dir(&vm).unwrap().count(), 0);
        for file in [&copy, &moved] {
            assert_eq!(fs::metadata(file).unwrap().mode() & 0o777, 0o600);
            finish(file).unwrap();
            assert_eq!(fs::metadata(file).unwrap().mode() & 0o777, 0o444);
            assert_eq!(fs::read(file).unwrap(), b"12345");
        }
        fs::write(vm.join("a"), "67890").unwrap();
        assert!(copy_out(&dir, "a", &copy, 5).is_err(), "a copy never overwrites");
        assert_eq!(fs::read(&copy).unwrap(), b"12345");
    }

    #[test]
    fn what_is_no_plain_file_of_its_size_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let vm = root.path().join("vm");
        fs::create_dir(&vm).unwrap();
        let dir = VmDir::open(&vm).unwrap();
        fs::write(root.path().join("secret"), "12345").unwrap();
        symlink("../secret", vm.join("link")).unwrap();
        fs::write(vm.join("twice"), "12345").unwrap();
        fs::hard_link(vm.join("twice"), vm.join("again")).unwrap();
        assert!(move_out(&dir, "twice", &root.path().join("taken"), 5).is_err());
        fs::create_dir(vm.join("dir")).unwrap();
        fs::write(vm.join("long"), "123456").unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, vm.join("pipe"), rustix::fs::Mode::RUSR).unwrap();
        for (n, name) in ["link", "dir", "long", "pipe", "missing"].into_iter().enumerate() {
            let to = root.path().join(n.to_string());
            let error = copy_out(&dir, name, &to, 5).unwrap_err();
            assert!(matches!(&error, VmmError::Save { path, .. } if *path == to), "{name}: {error:?}");
            let to = root.path().join(format!("moved-{n}"));
            assert!(move_out(&dir, name, &to, 5).is_err(), "{name}");
        }
        assert_eq!(fs::read(root.path().join("secret")).unwrap(), b"12345");
    }
}
