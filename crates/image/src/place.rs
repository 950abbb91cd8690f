//! Puts a finished artifact where the server looks for it: complete, or not at all.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use manta_host::disk::{CloneMode, clone_file};
use tempfile::NamedTempFile;

use crate::error::{ImageError, cannot};

/// Puts a copy of `source` at `target` unless it is there already; says whether it had to. A VM that uses the
/// file before keeps the old one. The copy has the original's time, by which, and by its size, it is
/// recognised.
pub(crate) fn put(source: &Path, target: &Path, mode: u32) -> Result<bool, ImageError> {
    let meta = fs::metadata(source).map_err(cannot("read", source))?;
    let modified = meta.modified().map_err(cannot("read the time of", source))?;
    let same = |there: fs::Metadata| {
        there.len() == meta.len() && there.modified().is_ok_and(|time| time == modified)
    };
    if fs::metadata(target).is_ok_and(same) {
        return Ok(false);
    }
    let dir = parent(target);
    let scratch =
        tempfile::Builder::new().prefix(".new-").tempdir_in(dir).map_err(cannot("write in", dir))?;
    let copy = scratch.path().join("copy");
    clone_file(source, &copy, CloneMode::Auto)
        .map_err(|source| ImageError::Copy { path: target.to_owned(), source })?;
    File::open(&copy)
        .and_then(|copy| {
            copy.set_permissions(Permissions::from_mode(mode))?;
            copy.set_modified(modified)?;
            copy.sync_all()
        })
        .and_then(|()| fs::rename(&copy, target))
        .map_err(cannot("put into place", target))?;
    Ok(true)
}

/// A temporary file that can be renamed to `target`, and that everyone may read.
pub(crate) fn beside(target: &Path) -> Result<NamedTempFile, ImageError> {
    let dir = parent(target);
    let mut builder = tempfile::Builder::new();
    builder.prefix(".new-").permissions(Permissions::from_mode(0o644));
    builder.tempfile_in(dir).map_err(cannot("write in", dir))
}

fn parent(target: &Path) -> &Path {
    target.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

#[cfg(test)]
mod tests {
    use std::io::{Seek, SeekFrom, Write};
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
