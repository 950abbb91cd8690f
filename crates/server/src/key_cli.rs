//! `manta key`: makes, lists and revokes API keys. Arguments and printing; the keys are in `keys/`.

use std::io::{self, Write};
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use clap::{Args, Subcommand};
use manta_engine::{KeyLimits, Rate};
use thiserror::Error;

use crate::args::duration;
use crate::keys::{KeyFile, KeyFileError, KeyRecord, Keys, NameError, Secret, unix_ms};
use crate::table;

/// Arguments of `manta key`.
#[derive(Debug, Args)]
pub struct KeyArgs {
    /// Directory for everything the server writes
    #[arg(
        long,
        env = "MANTA_WORK_DIR",
        value_name = "MANTA_WORK_DIR",
        default_value = "/var/lib/manta",
        global = true
    )]
    work_dir: PathBuf,
    #[command(subcommand)]
    command: KeyCommand,
}

#[derive(Debug, Subcommand)]
enum KeyCommand {
    /// Make a key and print it: it is kept nowhere and cannot be shown again
    Create {
        /// What to call it
        name: String,
        /// How long it counts, such as 30d or 12h; default: until it is revoked
        #[arg(long, value_name = "DURATION", value_parser = duration)]
        expires: Option<Duration>,
        /// Most sandboxes at once with this key; default: no limit
        #[arg(long, value_name = "N")]
        max_sandboxes: Option<NonZeroU32>,
        /// Most sandboxes made per second with this key, restored ones included, and after a colon how many at once,
        /// such as 10, 0.5 or 10:100; default: no limit
        #[arg(long, value_name = "RATE[:BURST]")]
        creates_per_s: Option<Rate>,
    },
    /// List the keys, oldest first: names, ids and last characters
    List,
    /// Revoke a key: from the next request on it counts no longer
    Revoke {
        /// Its name or its id
        #[arg(value_name = "NAME|ID")]
        key: String,
    },
}

/// Why `manta key` failed.
#[derive(Debug, Error)]
pub enum KeyCliError {
    /// The file of keys.
    #[error(transparent)]
    File(#[from] KeyFileError),
    /// A name that cannot be.
    #[error("{0}")]
    Name(String),
    /// It would expire later than can be written.
    #[error("--expires: that is too long; leave it out for a key that does not expire")]
    Expires,
    /// Nothing to revoke.
    #[error("there is no key with the name or id {0:?}; `manta key list` lists them")]
    NotFound(String),
    /// No random bytes.
    #[error("the kernel has no random bytes")]
    Random(#[source] io::Error),
    /// Standard output could not be written.
    #[error("cannot print")]
    Print(#[source] io::Error),
}

/// Runs `manta key`.
///
/// # Errors
/// See [`KeyCliError`].
pub fn key(args: &KeyArgs) -> Result<(), KeyCliError> {
    let text = match &args.command {
        KeyCommand::Create { name, expires, max_sandboxes, creates_per_s } => {
            let limits = KeyLimits { max_sandboxes: *max_sandboxes, creates_per_s: *creates_per_s };
            create(args, name, *expires, limits)?
        }
        KeyCommand::List => {
            list(&KeyFile::read(&args.work_dir)?.unwrap_or_default(), unix_ms(SystemTime::now()))
        }
        KeyCommand::Revoke { key } => revoke(args, key)?,
    };
    io::stdout().lock().write_all(text.as_bytes()).map_err(KeyCliError::Print)
}

/// The key, on a line of its own: for `KEY=$(manta key create …)`.
fn create(
    args: &KeyArgs,
    name: &str,
    expires: Option<Duration>,
    limits: KeyLimits,
) -> Result<String, KeyCliError> {
    let now = unix_ms(SystemTime::now());
    let expires = expires.map(|after| expiry(now, after).ok_or(KeyCliError::Expires)).transpose()?;
    let mut file = KeyFile::lock(&args.work_dir)?;
    Keys::check_name(name, &file.keys).map_err(|error: NameError| KeyCliError::Name(error.to_string()))?;
    let secret = Secret::new().map_err(KeyCliError::Random)?;
    let mut record = KeyRecord::new(&secret, name, now, expires).map_err(KeyCliError::Random)?;
    record.limits = limits;
    file.keys.push(record);
    file.save()?;
    Ok(format!("{}\n", secret.reveal()))
}

fn revoke(args: &KeyArgs, wanted: &str) -> Result<String, KeyCliError> {
    let mut file = KeyFile::lock(&args.work_dir)?;
    let at = file.keys.iter().position(|key| key.name == wanted || key.id == wanted);
    let gone = file.keys.remove(at.ok_or_else(|| KeyCliError::NotFound(wanted.to_owned()))?);
    let none_left = file.keys.is_empty();
    file.save()?;
    let mut text = format!("revoked {} ({})\n", gone.name, gone.id);
    if none_left {
        let path = KeyFile::path(&args.work_dir);
        text.push_str(&format!(
            "No key is left, and nobody is let in over TCP. To serve without keys, on loopback only, remove {} and \
             start the server again.\n",
            path.display()
        ));
    }
    Ok(text)
}

fn list(keys: &[KeyRecord], now_unix_ms: u64) -> String {
    if keys.is_empty() {
        return "no keys\n".to_owned();
    }
    let rows = keys.iter().map(|key| {
        let expires = match key.expires_unix_ms {
            None => "never".to_owned(),
            Some(at) if key.is_expired(now_unix_ms) => format!("{} (expired)", table::utc(at)),
            Some(at) => table::utc(at),
        };
        [
            key.name.clone(),
            key.id.clone(),
            table::utc(key.created_unix_ms),
            expires,
            limit(key.limits.max_sandboxes),
            limit(key.limits.creates_per_s),
            format!("…{}", key.last4),
        ]
    });
    table::lines(
        std::iter::once(
            ["NAME", "ID", "CREATED", "EXPIRES", "SANDBOXES", "CREATES/S", "KEY"].map(str::to_owned),
        )
        .chain(rows),
    )
    .join("\n")
        + "\n"
}

fn limit(limit: Option<impl ToString>) -> String {
    limit.map_or_else(|| "any".to_owned(), |limit| limit.to_string())
}

/// `None` when it is later than any time that can be printed.
fn expiry(now_unix_ms: u64, after: Duration) -> Option<u64> {
    let at = now_unix_ms.checked_add(u64::try_from(after.as_millis()).ok()?)?;
    (at <= table::UTC_MAX_MS).then_some(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_has_everything_but_the_key() {
        let secret = Secret::new().unwrap();
        let mut key = KeyRecord::new(&secret, "ci", 1_795_000_000_500, None).unwrap();
        key.id = "key-0123456789ab".to_owned();
        key.last4 = "89ab".to_owned();
        let mut passing = key.clone();
        passing.name = "a-guest".to_owned();
        passing.expires_unix_ms = Some(1_795_000_060_000);
        passing.limits =
            KeyLimits { max_sandboxes: NonZeroU32::new(3), creates_per_s: "0.5:10".parse().ok() };
        let expected = "\
NAME     ID                CREATED               EXPIRES                         SANDBOXES  CREATES/S  KEY
ci       key-0123456789ab  2026-11-18T11:06:40Z  never                           any        any        …89ab
a-guest  key-0123456789ab  2026-11-18T11:06:40Z  2026-11-18T11:07:40Z (expired)  3          0.5:10     …89ab
";
        assert_eq!(list(&[key, passing], 1_795_000_060_000), expected);
        assert_eq!(list(&[], 0), "no keys\n");
    }

    #[test]
    fn a_key_cannot_outlive_the_calendar() {
        assert_eq!(expiry(1_000, Duration::from_secs(1)), Some(2_000));
        assert_eq!(expiry(0, Duration::MAX), None);
        assert_eq!(expiry(table::UTC_MAX_MS, Duration::from_millis(1)), None);
    }
}
