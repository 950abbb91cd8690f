//! Disk images as files: cloning one, and making the empty one that writable disks are clones of. Does not own
//! the files, nor decide where they lie.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::{SeekFrom as Extent, ioctl_ficlone, seek};
use rustix::io::Errno;

/// Where `mke2fs` may be; it is in none of an ordinary user's directories.
const PROGRAM_PATH: &str = "/usr/sbin:/sbin:/usr/bin:/bin";

/// Whether a copy will do where the filesystem cannot share blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CloneMode {
    /// A reflink if possible, else a sparse copy.
    Auto,
    /// A reflink or nothing.
    ReflinkRequired,
}

/// How a file was cloned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CloneMethod {
    /// The blocks are shared until one of the files is written to (`FICLONE`).
    Reflink,
    /// The data was copied, the holes were not.
    SparseCopy,
}

/// What can go wrong with disk images.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The original could not be opened or inspected.
    #[error("cannot read {path}")]
    Source {
        /// The original.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file could not be created.
    #[error("cannot create {path}")]
    Create {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A reflink is required, and the filesystem cannot make it.
    #[error("cannot clone {from} to {to} without copying: the filesystem has no reflinks")]
    NoReflink {
        /// The original.
        from: PathBuf,
        /// The clone.
        to: PathBuf,
        /// What it said.
        #[source]
        source: Errno,
    },
    /// Cloning failed otherwise, such as by a full disk.
    #[error("cannot clone {from} to {to}")]
    Clone {
        /// The original.
        from: PathBuf,
        /// The clone.
        to: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// `mke2fs` could not be run.
    #[error("cannot run mke2fs (package e2fsprogs)")]
    RunMkfs(#[source] io::Error),
    /// `mke2fs` failed.
    #[error("mke2fs could not format {path}: {message}")]
    Mkfs {
        /// The image.
        path: PathBuf,
        /// What it printed.
        message: String,
    },
    /// The finished image could not be put in place.
    #[error("cannot put {path} in place")]
    Finish {
        /// The image.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Clones the file `from` to `to`, which must not exist and is readable by its owner only; it has the size and
/// the holes of the original.
///
/// # Errors
/// As [`DiskError`] says; `to` does not exist then, unless it did before.
pub fn clone_file(from: &Path, to: &Path, mode: CloneMode) -> Result<CloneMethod, DiskError> {
    let read = |source| DiskError::Source { path: from.to_owned(), source };
    let original = File::open(from).map_err(read)?;
    let len = original.metadata().map_err(read)?.len();
    let clone = create(to)?;
    let result = match (ioctl_ficlone(&clone, &original), mode) {
        (Ok(()), _) => Ok(CloneMethod::Reflink),
        (Err(Errno::OPNOTSUPP | Errno::XDEV | Errno::INVAL | Errno::NOTTY), CloneMode::Auto) => {
            match copy_data(&original, &clone, len) {
                Ok(()) => Ok(CloneMethod::SparseCopy),
                Err(source) => Err(DiskError::Clone { from: from.to_owned(), to: to.to_owned(), source }),
            }
        }
        (Err(source @ (Errno::OPNOTSUPP | Errno::XDEV | Errno::INVAL | Errno::NOTTY)), _) => {
            Err(DiskError::NoReflink { from: from.to_owned(), to: to.to_owned(), source })
        }
        (Err(error), _) => {
            Err(DiskError::Clone { from: from.to_owned(), to: to.to_owned(), source: error.into() })
        }
    };
    if result.is_err() {
        remove(to);
    }
    result
}

/// Whether files in `dir` can be cloned by reflink: tried, with two files that are removed again.
///
/// # Errors
/// When files cannot be made there.
pub fn reflink_supported(dir: &Path) -> Result<bool, DiskError> {
    let [from, to] = ["a", "b"].map(|end| dir.join(format!(".reflink-probe-{}-{end}", std::process::id())));
    remove(&from);
    remove(&to);
    drop(create(&from)?);
    let result = clone_file(&from, &to, CloneMode::ReflinkRequired);
    remove(&from);
    match result {
        Ok(_) => {
            remove(&to);
            Ok(true)
        }
        Err(DiskError::NoReflink { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Makes sure that `path` is an empty ext4 image of `size_mib`: made by `mke2fs` unless a file of that size is
/// there. It is sparse, has no journal (what a sandbox wrote before a crash of its host is gone anyway) and
/// no blocks reserved for root.
///
/// # Errors
/// As [`DiskError`] says; an image that was there is unchanged then.
pub fn ensure_empty_ext4(path: &Path, size_mib: u64) -> Result<(), DiskError> {
    let bytes = size_mib * 1024 * 1024;
    if fs::metadata(path).is_ok_and(|metadata| metadata.is_file() && metadata.len() == bytes) {
        return Ok(());
    }
    let mut unfinished = path.as_os_str().to_owned();
    unfinished.push(".unfinished");
    let unfinished = PathBuf::from(unfinished);
    remove(&unfinished);
    let file = create(&unfinished)?;
    let finish = |source| DiskError::Finish { path: path.to_owned(), source };
    let result = file.set_len(bytes).map_err(finish).and_then(|()| mke2fs(&unfinished)).and_then(|()| {
        // The content before the name: after a power cut there is a whole image or none.
        file.sync_all().and_then(|()| fs::rename(&unfinished, path)).map_err(finish)
    });
    if result.is_err() {
        remove(&unfinished);
    }
    result
}

fn mke2fs(image: &Path) -> Result<(), DiskError> {
    let output = Command::new("mke2fs")
        .args(["-q", "-F", "-t", "ext4", "-O", "^has_journal", "-m", "0"])
        .args(["-E", "lazy_itable_init=1,nodiscard,root_owner=0:0"])
        .arg(image)
        .env("PATH", PROGRAM_PATH)
        .stdin(Stdio::null())
        .output()
        .map_err(DiskError::RunMkfs)?;
    if output.status.success() {
        return Ok(());
    }
    let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(DiskError::Mkfs { path: image.to_owned(), message })
}

/// Copies what is data, leaves holes where the original has them, and gives `to` its length.
fn copy_data(mut from: &File, mut to: &File, len: u64) -> io::Result<()> {
    to.set_len(len)?;
    let mut end = 0;
    loop {
        let start = match seek(from, Extent::Data(end)) {
            Ok(start) => start,
            // No data after here.
            Err(Errno::NXIO) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        end = seek(from, Extent::Hole(start))?;
        from.seek(SeekFrom::Start(start))?;
        to.seek(SeekFrom::Start(start))?;
        // By copy_file_range(2) where it works.
        let copied = io::copy(&mut from.take(end - start), &mut to)?;
        if copied != end - start {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

fn create(path: &Path) -> Result<File, DiskError> {
    let create = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    create.map_err(|source| DiskError::Create { path: path.to_owned(), source })
}

/// For files of ours that may not be there.
fn remove(path: &Path) {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(path = %path.display(), %error, "cannot remove a file");
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn a_clone_has_the_data_and_the_holes() {
        let dir = tempfile::tempdir().unwrap();
        let [from, to] = ["from", "to"].map(|name| dir.path().join(name));
        let mut file = File::create(&from).unwrap();
        file.set_len(64 << 20).unwrap();
        file.seek(SeekFrom::Start(32 << 20)).unwrap();
        file.write_all(&[7; 10_000]).unwrap();
        let method = clone_file(&from, &to, CloneMode::Auto).unwrap();
        assert_eq!(method == CloneMethod::Reflink, reflink_supported(dir.path()).unwrap());
        assert!(fs::read(&from).unwrap() == fs::read(&to).unwrap());
        let clone = fs::metadata(&to).unwrap();
        assert!(clone.blocks() * 512 < 1 << 20, "{} blocks", clone.blocks());
        assert_eq!(clone.mode() & 0o777, 0o600);
    }

    #[test]
    fn a_clone_never_overwrites() {
        let dir = tempfile::tempdir().unwrap();
        let [from, to] = ["from", "to"].map(|name| dir.path().join(name));
        fs::write(&from, "new").unwrap();
        fs::write(&to, "old").unwrap();
        assert!(matches!(clone_file(&from, &to, CloneMode::Auto), Err(DiskError::Create { .. })));
        assert_eq!(fs::read(&to).unwrap(), b"old");
    }

    #[test]
    fn a_required_reflink_is_a_reflink_or_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let [from, to] = ["from", "to"].map(|name| dir.path().join(name));
        fs::write(&from, "data").unwrap();
        let result = clone_file(&from, &to, CloneMode::ReflinkRequired);
        if reflink_supported(dir.path()).unwrap() {
            assert_eq!(result.unwrap(), CloneMethod::Reflink);
        } else {
            assert!(matches!(result, Err(DiskError::NoReflink { .. })));
            assert!(!to.exists());
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1 + usize::from(to.exists()));
    }

    #[test]
    fn an_empty_ext4_is_made_once_per_size() {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("empty.ext4");
        ensure_empty_ext4(&image, 256).unwrap();
        let made = fs::metadata(&image).unwrap();
        assert_eq!(made.len(), 256 << 20);
        assert!(made.blocks() * 512 < 4 << 20, "{} blocks", made.blocks());
        // The magic number of the superblock, ext4's documentation 4.1.
        assert_eq!(fs::read(&image).unwrap()[1024 + 0x38..][..2], [0x53, 0xef]);
        ensure_empty_ext4(&image, 256).unwrap();
        assert_eq!(fs::metadata(&image).unwrap().ino(), made.ino());
        ensure_empty_ext4(&image, 128).unwrap();
        assert_eq!(fs::metadata(&image).unwrap().len(), 128 << 20);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_failed_format_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("empty.ext4");
        assert!(matches!(ensure_empty_ext4(&image, 0), Err(DiskError::Mkfs { .. })));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
