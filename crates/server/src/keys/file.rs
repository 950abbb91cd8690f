//! `keys.json` in the work directory: format, reading, and changing it so that a crash leaves the old or the new.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::KeyRecord;

const NAME: &str = "keys.json";
/// Where it is written before it gets its name; only by the holder of the lock.
const UNFINISHED: &str = "keys.json.new";
/// What this version writes. It also reads version 1, which had no limits.
const VERSION: u32 = 2;
const OLDEST: u32 = 1;
/// That of the server: others may pass through, to what is theirs.
const WORK_DIR_MODE: u32 = 0o711;

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Content {
    version: u32,
    keys: Vec<KeyRecord>,
}

/// Of any version.
#[derive(Debug, Deserialize)]
struct Version {
    version: u32,
}

/// Why the keys could not be read or changed.
#[derive(Debug, Error)]
pub enum KeyFileError {
    /// A file operation.
    #[error("cannot {action} {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Not the file that Manta wrote.
    #[error("{path} is not a file of keys")]
    Content {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// Written by another version of Manta.
    #[error("{path} has format {found}; this version of manta knows {VERSION}")]
    Version {
        /// Which.
        path: PathBuf,
        /// Its format.
        found: u32,
    },
    /// Somebody changes it at this moment.
    #[error("another manta key is changing the keys in {0}; try again")]
    Busy(PathBuf),
}

/// The keys of a work directory, to look at or, locked, to change.
#[derive(Debug)]
pub(crate) struct KeyFile {
    dir: PathBuf,
    /// The directory, locked.
    lock: File,
    /// Oldest first; what [`KeyFile::save`] writes.
    pub(crate) keys: Vec<KeyRecord>,
}

impl KeyFile {
    /// Where it is.
    pub(crate) fn path(work_dir: &Path) -> PathBuf {
        work_dir.join(NAME)
    }

    /// The keys in it; `None` if there is no file.
    pub(crate) fn read(work_dir: &Path) -> Result<Option<Vec<KeyRecord>>, KeyFileError> {
        let path = Self::path(work_dir);
        match fs::read(&path) {
            Ok(text) => Self::parse(&path, &text).map(Some),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed("read", &path)(error)),
        }
    }

    /// What the file at `path` says, which holds `text`.
    pub(crate) fn parse(path: &Path, text: &[u8]) -> Result<Vec<KeyRecord>, KeyFileError> {
        let wrong = |source| KeyFileError::Content { path: path.to_owned(), source };
        let Version { version: found } = serde_json::from_slice(text).map_err(wrong)?;
        if !(OLDEST..=VERSION).contains(&found) {
            return Err(KeyFileError::Version { path: path.to_owned(), found });
        }
        serde_json::from_slice::<Content>(text).map(|content| content.keys).map_err(wrong)
    }

    /// Opens it to be changed by nobody else, until dropped. Makes the work directory if there is none.
    pub(crate) fn lock(work_dir: &Path) -> Result<Self, KeyFileError> {
        DirBuilder::new()
            .recursive(true)
            .mode(WORK_DIR_MODE)
            .create(work_dir)
            .map_err(failed("make directory", work_dir))?;
        // The directory itself: a file of its own would have to stay for ever.
        let lock = File::open(work_dir).map_err(failed("open", work_dir))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Err(KeyFileError::Busy(work_dir.to_owned())),
            Err(error) => return Err(failed("lock", work_dir)(error.into())),
        }
        let keys = Self::read(work_dir)?.unwrap_or_default();
        Ok(Self { dir: work_dir.to_owned(), lock, keys })
    }

    /// Writes the keys; when it returns they are on the disk.
    pub(crate) fn save(self) -> Result<(), KeyFileError> {
        let (path, unfinished) = (Self::path(&self.dir), self.dir.join(UNFINISHED));
        match fs::remove_file(&unfinished) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(failed("remove", &unfinished)(error));
            }
            _ => {}
        }
        let content = Content { version: VERSION, keys: self.keys };
        let mut text = serde_json::to_vec_pretty(&content)
            .map_err(|source| KeyFileError::Content { path: path.clone(), source })?;
        text.push(b'\n');
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&unfinished)
            .and_then(|mut file| file.write_all(&text).and_then(|()| file.sync_all()))
            .map_err(failed("write", &unfinished))?;
        fs::rename(&unfinished, &path).map_err(failed("put into place", &path))?;
        self.lock.sync_all().map_err(failed("flush", &self.dir))
    }
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> KeyFileError {
    move |source| KeyFileError::Io { action, path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use manta_engine::KeyLimits;

    use super::*;
    use crate::keys::Secret;

    #[test]
    fn what_is_saved_is_read_again_and_nobody_else_may_read_it() {
        let dir = tempfile::tempdir().unwrap();
        let work_dir = dir.path().join("not/there");
        assert!(KeyFile::read(&work_dir).unwrap().is_none());
        let key = KeyRecord::new(&Secret::new().unwrap(), "ci", 1, Some(2)).unwrap();
        // As a crash may leave it: readable by all, and half a file.
        let mut file = KeyFile::lock(&work_dir).unwrap();
        fs::write(work_dir.join(UNFINISHED), "{").unwrap();
        fs::set_permissions(work_dir.join(UNFINISHED), fs::Permissions::from_mode(0o644)).unwrap();
        file.keys.push(key.clone());
        file.save().unwrap();
        assert_eq!(KeyFile::read(&work_dir).unwrap(), Some(vec![key]));
        let mode = fs::metadata(KeyFile::path(&work_dir)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(fs::read_dir(&work_dir).unwrap().count(), 1, "nothing is left beside it");
    }

    #[test]
    fn two_do_not_change_it_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let held = KeyFile::lock(dir.path()).unwrap();
        assert!(matches!(KeyFile::lock(dir.path()), Err(KeyFileError::Busy(_))));
        drop(held);
        KeyFile::lock(dir.path()).unwrap();
    }

    #[test]
    fn a_file_from_before_there_were_limits_is_read_and_written_as_the_new_one() {
        let dir = tempfile::tempdir().unwrap();
        let old = format!(
            r#"{{"version":1,"keys":[{{"id":"key-0123456789ab","name":"ci","sha256":"{}","last4":"0123",
            "created_unix_ms":1}}]}}"#,
            "ab".repeat(32)
        );
        fs::write(KeyFile::path(dir.path()), old).unwrap();
        let mut file = KeyFile::lock(dir.path()).unwrap();
        assert_eq!(file.keys[0].limits, KeyLimits::default());
        file.keys[0].limits =
            KeyLimits { max_sandboxes: 3.try_into().ok(), creates_per_s: "0.5:3".parse().ok() };
        let keys = file.keys.clone();
        file.save().unwrap();
        assert_eq!(KeyFile::read(dir.path()).unwrap(), Some(keys));
    }

    #[test]
    fn another_format_is_told_from_a_broken_file() {
        let dir = tempfile::tempdir().unwrap();
        let read = |text: &str| {
            fs::write(KeyFile::path(dir.path()), text).unwrap();
            KeyFile::read(dir.path())
        };
        assert_eq!(read(r#"{"version":2,"keys":[]}"#).unwrap(), Some(Vec::new()));
        let newer = read(r#"{"version":3,"keys":{"of":"another kind"}}"#);
        assert!(matches!(newer, Err(KeyFileError::Version { found: 3, .. })));
        for broken in ["", "{}", "[]", r#"{"version":1}"#, r#"{"version":1,"keys":[{}]}"#] {
            assert!(matches!(read(broken), Err(KeyFileError::Content { .. })), "{broken}");
        }
    }
}
