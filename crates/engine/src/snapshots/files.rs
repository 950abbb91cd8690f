//! The files of a snapshot's directory: their names, whether they are as they were written, and how they
//! reach the medium.

use std::fs::{self, File, Metadata, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use manta_api::{SnapshotBytes, SnapshotId};
use rustix::fs::OFlags;
use thiserror::Error;

use super::hash::hash_to_end;
use super::manifest::{Files, Hashed, Measured};

pub(super) const MANIFEST: &str = "manifest.json";
pub(super) const STATE: &str = "state";
pub(super) const MEMORY: &str = "memory";
pub(super) const DISK: &str = "disk.ext4";

const NEW: &str = ".new-";
const DEAD: &str = ".dead-";

/// What is wrong with which file.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("its file {file} {why}")]
pub(crate) struct Damage {
    pub(crate) file: &'static str,
    /// Follows the name in a sentence.
    pub(crate) why: String,
    /// It can be seen to be of no use; what could not be looked at may be fine another day.
    pub(crate) for_good: bool,
}

/// Where snapshot `id` is made.
pub(super) fn new_dir(parent: &Path, id: &SnapshotId) -> PathBuf {
    parent.join(format!("{NEW}{id}"))
}

/// Whether a directory's name says that it is half made or half removed.
pub(super) fn is_leftover(name: &str) -> bool {
    name.starts_with(NEW) || name.starts_with(DEAD)
}

/// Opens a regular file to read it. No link is followed, and nothing that blocks is waited for.
pub(super) fn open_regular(path: &Path) -> io::Result<File> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = OpenOptions::new().read(true).custom_flags(flags.bits().cast_signed()).open(path)?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(io::Error::other("not a regular file")) }
}

/// Makes the three files of the finished snapshot in `dir` read-only, brings them to the medium, and measures
/// them. The error names the file.
pub(super) fn seal(dir: &Path) -> Result<Files, (PathBuf, io::Error)> {
    let seal_one = |name: &str| {
        let path = dir.join(name);
        let sealed = open_regular(&path).and_then(|file| {
            file.set_permissions(Permissions::from_mode(0o444))?;
            file.sync_all()?;
            Ok((file.metadata()?.len(), file))
        });
        sealed.map_err(|error| (path, error))
    };
    let (bytes, state) = seal_one(STATE)?;
    let sha256 = hash_to_end(&state).map_err(|error| (dir.join(STATE), error))?;
    let (memory, _) = seal_one(MEMORY)?;
    let (disk, _) = seal_one(DISK)?;
    Ok(Files {
        state: Hashed { bytes, sha256 },
        memory: Measured { bytes: memory },
        disk: Measured { bytes: disk },
    })
}

/// That all three are regular files of the right length. Cheap.
pub(super) fn check_sizes(dir: &Path, files: &Files) -> Result<(), Damage> {
    for (file, bytes) in [(STATE, files.state.bytes), (MEMORY, files.memory.bytes), (DISK, files.disk.bytes)]
    {
        let damage = |why| Damage { file, why, for_good: true };
        let found = fs::symlink_metadata(dir.join(file)).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => damage("is missing".to_owned()),
            _ => Damage { file, why: format!("cannot be looked at: {error}"), for_good: false },
        })?;
        if !found.is_file() {
            return Err(damage("is not a regular file".to_owned()));
        }
        if found.len() != bytes {
            return Err(damage(format!("has {} bytes instead of {bytes}", found.len())));
        }
    }
    Ok(())
}

/// That the state is what was written. Reads it.
pub(super) fn check_state(dir: &Path, files: &Files) -> Result<(), Damage> {
    let damage = |why, for_good| Damage { file: STATE, why, for_good };
    let hash = open_regular(&dir.join(STATE)).and_then(hash_to_end);
    match hash {
        Ok(hash) if hash == files.state.sha256 => Ok(()),
        Ok(_) => Err(damage("is not what was written: its SHA-256 differs".to_owned(), true)),
        Err(error) => Err(damage(format!("cannot be read: {error}"), false)),
    }
}

/// What the three files take on the disk; 0 for one that is missing.
pub(super) fn bytes_on_disk(dir: &Path) -> SnapshotBytes {
    let of = |name| fs::symlink_metadata(dir.join(name)).map_or(0, |found| allocated(&found));
    SnapshotBytes { state: of(STATE), memory: of(MEMORY), disk: of(DISK) }
}

/// What a directory and the files in it take on the disk, bytes, as far as they can be looked at.
pub(super) fn dir_bytes(path: &Path) -> u64 {
    let inside = fs::read_dir(path).into_iter().flatten().flatten().filter_map(|entry| entry.metadata().ok());
    inside.chain(fs::symlink_metadata(path)).map(|found| allocated(&found)).sum()
}

fn allocated(found: &Metadata) -> u64 {
    found.blocks() * 512
}

/// Brings the names in a directory to the medium.
pub(super) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Renames the directory `dir` of `parent` for removal, which it survives no crash; gives its name then.
pub(super) fn bury(parent: &Path, dir: &Path, id: &SnapshotId) -> io::Result<PathBuf> {
    let dead = parent.join(format!("{DEAD}{id}"));
    fs::rename(dir, &dead)?;
    Ok(dead)
}
