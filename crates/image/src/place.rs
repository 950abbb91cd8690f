//! Puts a finished artifact where the server looks for it: complete, or not at all.

use std::fs::{self, File, Permissions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use rustix::fs::{SeekFrom as HoleSeek, ioctl_ficlone, seek};
use rustix::io::Errno;
use tempfile::NamedTempFile;

use crate::error::{ImageError, cannot};

/// Puts a copy of `source` at `target` unless it is there already; says whether it had to. A VM that uses the file
/// before keeps the old one. The copy has the original's time, by which, and by its size, it is recognised.
pub(crate) fn put(source: &Path, target: &Path, mode: u32) -> Result<bool, ImageError> {
    let from = File::open(source).map_err(cannot("read", source))?;
    let meta = from.metadata().map_err(cannot("read", source))?;
    let modified = meta.modified().map_err(cannot("read the time of", source))?;
    let same = |there: fs::Metadata| {
        there.len() == meta.len() && there.modified().is_ok_and(|time| time == modified)
    };
    if fs::metadata(target).is_ok_and(same) {
        return Ok(false);
    }
    let to = beside(target)?;
    copy_sparse(&from, to.as_file(), meta.len())
        .and_then(|()| to.as_file().set_permissions(Permissions::from_mode(mode)))
        .and_then(|()| to.as_file().set_modified(modified))
        .and_then(|()| to.as_file().sync_all())
        .map_err(cannot("write a copy for", target))?;
    to.persist(target).map_err(|error| cannot("put into place", target)(error.error))?;
    Ok(true)
}

/// A temporary file that can be renamed to `target`.
pub(crate) fn beside(target: &Path) -> Result<NamedTempFile, ImageError> {
    let dir = target.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    tempfile::Builder::new().prefix(".new-").tempfile_in(dir).map_err(cannot("write in", dir))
}

/// Shares the data where the file system can; else copies it, and leaves holes holes.
fn copy_sparse(mut from: &File, mut to: &File, length: u64) -> io::Result<()> {
    if ioctl_ficlone(to, from).is_ok() {
        return Ok(());
    }
    to.set_len(length)?;
    let mut offset = 0;
    loop {
        let start = match seek(from, HoleSeek::Data(offset)) {
            Ok(start) => start,
            // No data from here on.
            Err(Errno::NXIO) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let end = seek(from, HoleSeek::Hole(start))?;
        from.seek(SeekFrom::Start(start))?;
        to.seek(SeekFrom::Start(start))?;
        io::copy(&mut io::Read::take(from, end - start), &mut to)?;
        offset = end;
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn a_copy_has_the_same_bytes_and_holes_and_is_made_once() {
        let dir = tempfile::tempdir().unwrap();
        let (source, target) = (dir.path().join("source"), dir.path().join("target"));
        let mut file = File::create(&source).unwrap();
        file.write_all(&[1; 10_000]).unwrap();
        file.seek(SeekFrom::Start(16 << 20)).unwrap();
        file.write_all(&[2; 10_000]).unwrap();
        file.set_len(32 << 20).unwrap();

        assert!(put(&source, &target, 0o644).unwrap());
        assert_eq!(fs::read(&target).unwrap(), fs::read(&source).unwrap());
        let meta = fs::metadata(&target).unwrap();
        assert!(meta.blocks() * 512 < 1 << 20, "{} blocks", meta.blocks());
        assert_eq!(meta.mode() & 0o777, 0o644);
        assert!(!put(&source, &target, 0o644).unwrap());

        fs::write(&source, "something else").unwrap();
        assert!(put(&source, &target, 0o644).unwrap());
        assert_eq!(fs::read(&target).unwrap(), b"something else");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[test]
    fn a_changed_copy_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let (source, target) = (dir.path().join("source"), dir.path().join("target"));
        fs::write(&source, "right").unwrap();
        put(&source, &target, 0o644).unwrap();
        fs::write(&target, "wrong").unwrap();
        assert!(put(&source, &target, 0o644).unwrap());
        assert_eq!(fs::read(&target).unwrap(), b"right");
    }
}
