//! One key and a set of them. Pure: no files, no clock.
//!
//! A key is 160 random bits, so a plain SHA-256 of it is enough to keep: a slow hash makes guessing dear where there
//! is something to guess, a password; here it would cost each request its time and nobody else anything.

use std::fmt::Write as _;
use std::sync::Arc;

use manta_engine::{Caller, KeyHolder, KeyLimits, SERVER};
use manta_host::random::random_bytes;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use thiserror::Error;

/// Before the random part, so that people and scanners of repositories know one when they see it.
const PREFIX: &str = "manta_";
/// Random bytes of a key: 160 bits.
const SECRET_BYTES: usize = 20;
/// Before the random part of an id.
const ID_PREFIX: &str = "key-";
const ID_BYTES: usize = 6;
/// Longest name, bytes.
const NAME_MAX: usize = 64;
/// Characters of a key that are kept to tell keys apart: 16 of its 160 bits.
const LAST: usize = 4;

/// A key itself. Shown once, kept nowhere.
pub(crate) struct Secret(String);

impl Secret {
    /// A new one.
    ///
    /// # Errors
    /// When the kernel has no random bytes.
    pub(crate) fn new() -> std::io::Result<Self> {
        Ok(Self(format!("{PREFIX}{}", hex(&random_bytes::<SECRET_BYTES>()?))))
    }

    /// For the one who asked for it.
    pub(crate) fn reveal(&self) -> &str {
        &self.0
    }
}

/// SHA-256 of a key, in the file in hexadecimal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub(crate) struct Digest([u8; 32]);

impl Digest {
    fn of(key: &[u8]) -> Self {
        Self(Sha256::digest(key).into())
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        hex(&digest.0)
    }
}

impl TryFrom<String> for Digest {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        const WRONG: &str = "not a SHA-256 in hexadecimal";
        let mut digest = [0; 32];
        if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(WRONG);
        }
        for (n, byte) in digest.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&text[2 * n..2 * n + 2], 16).map_err(|_| WRONG)?;
        }
        Ok(Self(digest))
    }
}

/// What is kept of a key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct KeyRecord {
    /// `key-` and 12 hexadecimal digits.
    pub(crate) id: String,
    /// As its owner calls it; no other key has it.
    pub(crate) name: String,
    sha256: Digest,
    /// The key's last characters.
    pub(crate) last4: String,
    /// Milliseconds since 1970.
    pub(crate) created_unix_ms: u64,
    /// From this moment on it is worth nothing; absent: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) expires_unix_ms: Option<u64>,
    /// What its holder may have; absent: as much as there is.
    #[serde(default, skip_serializing_if = "is_unlimited")]
    pub(crate) limits: KeyLimits,
}

fn is_unlimited(limits: &KeyLimits) -> bool {
    *limits == KeyLimits::default()
}

impl KeyRecord {
    /// The record of a new key, without limits.
    ///
    /// # Errors
    /// When the kernel has no random bytes.
    pub(crate) fn new(
        secret: &Secret,
        name: &str,
        now_unix_ms: u64,
        expires_unix_ms: Option<u64>,
    ) -> std::io::Result<Self> {
        let key = secret.reveal();
        Ok(Self {
            id: format!("{ID_PREFIX}{}", hex(&random_bytes::<ID_BYTES>()?)),
            name: name.to_owned(),
            sha256: Digest::of(key.as_bytes()),
            last4: key[key.len() - LAST..].to_owned(),
            created_unix_ms: now_unix_ms,
            expires_unix_ms,
            limits: KeyLimits::default(),
        })
    }

    /// Whether it is worth nothing any more.
    pub(crate) fn is_expired(&self, now_unix_ms: u64) -> bool {
        self.expires_unix_ms.is_some_and(|expires| expires <= now_unix_ms)
    }
}

/// Why a name cannot be a key's.
#[derive(Debug, Error)]
pub(crate) enum NameError {
    /// Characters or length.
    #[error(
        "a key's name is 1 to {NAME_MAX} letters, digits, '.', '_' or '-', does not begin with {ID_PREFIX:?}, and is \
         not {SERVER:?}"
    )]
    Form,
    /// Another key has it.
    #[error("there is a key of this name already; revoke it first, or choose another name")]
    Taken,
}

/// Keys, found by what their owners send.
///
/// Each search compares the SHA-256 of what was sent with that of each key, all of it: how long it takes tells how many
/// keys there are, and nothing of any.
#[derive(Debug, Default)]
pub(crate) struct Keys(Vec<(Digest, Holder)>);

/// A key that counts, and whom it stands for.
#[derive(Debug, Clone)]
pub(crate) struct Holder {
    pub(crate) record: Arc<KeyRecord>,
    pub(crate) caller: Caller,
}

impl Keys {
    /// The key that was sent, if it is one and has not expired.
    pub(crate) fn find(&self, sent: &[u8], now_unix_ms: u64) -> Option<&Holder> {
        let sent = Digest::of(sent);
        let found =
            self.0.iter().fold(
                None,
                |found, (digest, holder)| {
                    if bool::from(digest.0.ct_eq(&sent.0)) { Some(holder) } else { found }
                },
            );
        found.filter(|key| !key.record.is_expired(now_unix_ms))
    }

    /// Whether there is no key at all.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// # Errors
    /// Why `name` is not for a key beside `others`.
    pub(crate) fn check_name(name: &str, others: &[KeyRecord]) -> Result<(), NameError> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        if !(1..=NAME_MAX).contains(&name.len())
            || !name.bytes().all(plain)
            || name.starts_with(ID_PREFIX)
            || name == SERVER
        {
            return Err(NameError::Form);
        }
        if others.iter().any(|other| other.name == name) { Err(NameError::Taken) } else { Ok(()) }
    }
}

impl FromIterator<KeyRecord> for Keys {
    fn from_iter<I: IntoIterator<Item = KeyRecord>>(records: I) -> Self {
        let holder = |record: KeyRecord| {
            let caller = Arc::new(KeyHolder { name: record.name.clone(), limits: record.limits });
            (record.sha256, Holder { record: Arc::new(record), caller: Caller::Key(caller) })
        };
        Self(records.into_iter().map(holder).collect())
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_160_random_bits_and_its_record_does_not_hold_it() {
        let secret = Secret::new().unwrap();
        let random = secret.reveal().strip_prefix("manta_").unwrap();
        assert!(random.len() == 40 && random.bytes().all(|byte| byte.is_ascii_hexdigit()));
        assert_ne!(secret.reveal(), Secret::new().unwrap().reveal());
        let record = KeyRecord::new(&secret, "ci", 1, None).unwrap();
        let kept = serde_json::to_string(&record).unwrap();
        assert!(!kept.contains(&random[..36]), "{kept}");
        assert_eq!(record.last4, random[36..]);
        assert_eq!(serde_json::from_str::<KeyRecord>(&kept).unwrap(), record);
    }

    #[test]
    fn only_the_very_key_is_found_and_only_until_it_expires() {
        let (lasting, passing) = (Secret::new().unwrap(), Secret::new().unwrap());
        let records = [
            KeyRecord::new(&lasting, "lasting", 1, None).unwrap(),
            KeyRecord::new(&passing, "passing", 1, Some(100)).unwrap(),
        ];
        let keys: Keys = records.into_iter().collect();
        let found = |sent: &str, now| keys.find(sent.as_bytes(), now).map(|key| key.record.name.as_str());
        assert_eq!(found(lasting.reveal(), u64::MAX), Some("lasting"));
        assert_eq!((found(passing.reveal(), 99), found(passing.reveal(), 100)), (Some("passing"), None));
        for wrong in ["", "manta_", &lasting.reveal()[1..], &lasting.reveal().to_uppercase()] {
            assert_eq!(found(wrong, 1), None, "{wrong:?}");
        }
        let digest = String::from(Digest::of(lasting.reveal().as_bytes()));
        assert_eq!(found(&digest, 1), None, "what the file holds opens nothing");
    }

    #[test]
    fn names_are_plain_unlike_ids_and_nobody_elses() {
        let taken = [KeyRecord::new(&Secret::new().unwrap(), "ci", 1, None).unwrap()];
        for name in ["a", "CI-2.x_y", &"n".repeat(64)] {
            Keys::check_name(name, &taken).unwrap();
        }
        for name in ["", "two words", "a/b", "é", "server", "key-0123456789ab", &"n".repeat(65)] {
            assert!(matches!(Keys::check_name(name, &taken), Err(NameError::Form)), "{name:?}");
        }
        assert!(matches!(Keys::check_name("ci", &taken), Err(NameError::Taken)));
    }

    #[test]
    fn a_digest_that_is_none_is_refused() {
        for wrong in ["", "ab", &"g".repeat(64), &"é".repeat(32), &"+a".repeat(32)] {
            assert!(Digest::try_from(wrong.to_owned()).is_err(), "{wrong:?}");
        }
    }
}
