//! The keys as a running server knows them: those of the file as it is at each request, so that a key counts when it
//! is made, and no longer when it is revoked.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use tracing::{error, info, warn};

use super::{Holder, KeyFile, KeyFileError, Keys};
use crate::stamp::Stamp;

/// The keys of one work directory. One `stat` a request, and no lock held longer than to read the file again.
#[derive(Debug)]
pub(crate) struct LiveKeys {
    path: PathBuf,
    seen: Mutex<Seen>,
}

#[derive(Debug)]
struct Seen {
    /// Which file, as it was; `None`: there was none.
    stamp: Option<Stamp>,
    /// Held open, so that the number of its inode is not given to its successor.
    _file: Option<File>,
    rule: Rule,
}

/// Who is let in.
#[derive(Debug)]
enum Rule {
    /// Everybody: there is no file of keys, and was none since the start.
    Everybody,
    /// Who sends one of these.
    Holders(Keys),
    /// Nobody: the file cannot be understood.
    Nobody,
}

/// Why somebody is not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refused {
    /// No key, or none that counts.
    Unauthorized,
    /// The keys cannot be read.
    Unreadable,
}

impl LiveKeys {
    /// Reads the keys of `work_dir`.
    ///
    /// # Errors
    /// When there is a file of keys and it cannot be understood: a server must not start without its keys.
    pub(crate) fn open(work_dir: &Path) -> Result<Self, KeyFileError> {
        let path = KeyFile::path(work_dir);
        let (stamp, file, rule) = match load(&path)? {
            Some((stamp, file, keys)) => (Some(stamp), Some(file), Rule::Holders(keys)),
            None => (None, None, Rule::Everybody),
        };
        Ok(Self { path, seen: Mutex::new(Seen { stamp, _file: file, rule }) })
    }

    /// Those of a work directory in which all were revoked, or none was ever made.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn without_keys(revoked: bool) -> Self {
        let rule = if revoked { Rule::Holders(Keys::default()) } else { Rule::Everybody };
        let path = "/proc/self/no-such-file".into();
        Self { path, seen: Mutex::new(Seen { stamp: None, _file: None, rule }) }
    }

    /// Whether there is any key. A file in which none is left has none, and lets nobody in.
    pub(crate) fn is_empty(&self) -> bool {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        !matches!(&seen.rule, Rule::Holders(keys) if !keys.is_empty())
    }

    /// Whether a request without a key is turned away, as things are now.
    pub(crate) fn required(&self) -> bool {
        self.admit(None).is_err()
    }

    /// Lets in who sent this key, or nothing; gives the key and its holder, if one is needed.
    ///
    /// # Errors
    /// Who is not let in is not told why.
    pub(crate) fn admit(&self, sent: Option<&[u8]>) -> Result<Option<Holder>, Refused> {
        let stamp = match fs::metadata(&self.path) {
            Ok(found) => Some(Stamp::of(&found)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                error!(path = %self.path.display(), %error, "cannot look at the keys: nobody is let in");
                return Err(Refused::Unreadable);
            }
        };
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.stamp != stamp {
            *seen = self.look_again(stamp);
        }
        match &seen.rule {
            Rule::Everybody => Ok(None),
            Rule::Holders(keys) => sent
                .and_then(|sent| keys.find(sent, unix_ms(SystemTime::now())))
                .map(|key| Some(key.clone()))
                .ok_or(Refused::Unauthorized),
            Rule::Nobody => Err(Refused::Unreadable),
        }
    }

    /// `stamp` is what made us look: a file that cannot be understood is not read again before it changes.
    fn look_again(&self, stamp: Option<Stamp>) -> Seen {
        match load(&self.path) {
            Ok(Some((stamp, file, keys))) => {
                info!("keys read");
                Seen { stamp: Some(stamp), _file: Some(file), rule: Rule::Holders(keys) }
            }
            // It was there. That it is gone may be an accident, and must not open the door.
            Ok(None) => {
                warn!(path = %self.path.display(), "the keys are gone: nobody is let in until the next start");
                Seen { stamp: None, _file: None, rule: Rule::Holders(Keys::default()) }
            }
            Err(error) => {
                let reason = std::error::Error::source(&error).map(ToString::to_string);
                error!(%error, reason, "the keys cannot be read: nobody is let in");
                // One that could not be read, for want of descriptors perhaps, is.
                let stamp = stamp.filter(|_| !matches!(error, KeyFileError::Io { .. }));
                Seen { stamp, _file: None, rule: Rule::Nobody }
            }
        }
    }
}

/// Milliseconds since 1970.
pub(crate) fn unix_ms(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// What is in the file now, with its stamp from before it was read.
fn load(path: &Path) -> Result<Option<(Stamp, File, Keys)>, KeyFileError> {
    let failed = |source| KeyFileError::Io { action: "read", path: path.to_owned(), source };
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let stamp = Stamp::of(&file.metadata().map_err(failed)?);
    let mut text = Vec::new();
    file.read_to_end(&mut text).map_err(failed)?;
    Ok(Some((stamp, file, KeyFile::parse(path, &text)?.into_iter().collect())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::{KeyRecord, Secret};

    fn add(dir: &Path, name: &str, expires: Option<u64>) -> Secret {
        let secret = Secret::new().unwrap();
        let mut file = KeyFile::lock(dir).unwrap();
        file.keys.push(KeyRecord::new(&secret, name, 1, expires).unwrap());
        file.save().unwrap();
        secret
    }

    fn revoke(dir: &Path, name: &str) {
        let mut file = KeyFile::lock(dir).unwrap();
        file.keys.retain(|key| key.name != name);
        file.save().unwrap();
    }

    fn admit(keys: &LiveKeys, secret: &Secret) -> Result<bool, Refused> {
        keys.admit(Some(secret.reveal().as_bytes())).map(|id| id.is_some())
    }

    #[test]
    fn keys_count_as_soon_as_they_are_made_and_no_longer_once_revoked() {
        let dir = tempfile::tempdir().unwrap();
        let keys = LiveKeys::open(dir.path()).unwrap();
        assert!(keys.admit(None).unwrap().is_none() && keys.is_empty());
        let first = add(dir.path(), "first", None);
        assert_eq!(keys.admit(None).unwrap_err(), Refused::Unauthorized);
        assert_eq!((admit(&keys, &first), keys.is_empty()), (Ok(true), false));
        let second = add(dir.path(), "second", None);
        revoke(dir.path(), "first");
        assert_eq!((admit(&keys, &first), admit(&keys, &second)), (Err(Refused::Unauthorized), Ok(true)));
        let expired = add(dir.path(), "expired", Some(1));
        assert_eq!(admit(&keys, &expired), Err(Refused::Unauthorized));
    }

    #[test]
    fn many_changes_one_right_after_the_other_are_all_seen() {
        let dir = tempfile::tempdir().unwrap();
        let keys = LiveKeys::open(dir.path()).unwrap();
        for _ in 0..50 {
            // Files of the same size, within one tick of the clock that stamps them.
            let secret = add(dir.path(), "one", None);
            assert_eq!(admit(&keys, &secret), Ok(true));
            revoke(dir.path(), "one");
        }
    }

    #[test]
    fn no_loss_of_keys_opens_the_door() {
        let dir = tempfile::tempdir().unwrap();
        let key = add(dir.path(), "one", None);
        let keys = LiveKeys::open(dir.path()).unwrap();
        fs::write(KeyFile::path(dir.path()), "not keys").unwrap();
        assert_eq!(admit(&keys, &key), Err(Refused::Unreadable));
        assert!(LiveKeys::open(dir.path()).is_err(), "a server does not start without its keys");
        fs::remove_file(KeyFile::path(dir.path())).unwrap();
        assert_eq!(keys.admit(None).unwrap_err(), Refused::Unauthorized);
        let key = add(dir.path(), "again", None);
        assert_eq!(admit(&keys, &key), Ok(true));
        revoke(dir.path(), "again");
        assert_eq!(
            (admit(&keys, &key), keys.admit(None).unwrap_err()),
            (Err(Refused::Unauthorized), Refused::Unauthorized)
        );
        let next = LiveKeys::open(dir.path()).unwrap();
        assert_eq!((next.admit(None).unwrap_err(), next.is_empty()), (Refused::Unauthorized, true));
    }
}
