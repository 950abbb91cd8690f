//! The journal's file: its schema, and what is written and read in it. Blocking; who may call when is
//! [`super::writer`]'s affair.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use manta_api::{Event, EventKind, SandboxId};
use rusqlite::types::Type;
use rusqlite::{Connection, ErrorCode, OpenFlags, TransactionBehavior, params};
use tracing::warn;

use super::error::JournalError;
use super::row::Row;
use crate::ending::Ending;
use crate::snapshots::{Machine, hash_text};

/// Below the work directory.
pub(super) const FILE: &str = "journal.db";
/// Tells our files from those of other programs (SQLite's `application_id`): "Mnta".
const APPLICATION: u32 = 0x4d6e_7461;
/// For somebody who looks at the file with another program.
const BUSY: Duration = Duration::from_millis(50);
/// Endings that are kept.
pub(super) const ENDINGS: u64 = 10_000;
/// Events that are kept,
pub(super) const EVENTS: u64 = 100_000;
/// and so many more, at most, before the oldest are removed.
const EVENTS_STEP: u64 = 1_000;
/// Numbers that a server which was killed may have given to events that it had not written yet.
pub(super) const UNWRITTEN: u64 = 10_000;

/// Each makes a journal of its number into one of the next.
const MIGRATIONS: [&str; 2] = [
    "
    CREATE TABLE machines (id TEXT PRIMARY KEY, machine TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE sandboxes (id TEXT PRIMARY KEY, machine_id TEXT NOT NULL, entry TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE endings (n INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, ending TEXT NOT NULL);
    CREATE TABLE events (seq INTEGER PRIMARY KEY, sandbox_id TEXT, event TEXT NOT NULL);
    CREATE INDEX events_of ON events (sandbox_id, seq) WHERE sandbox_id IS NOT NULL;
    CREATE TABLE server (ended_well INTEGER NOT NULL);
    INSERT INTO server VALUES (1);
",
    "
    DROP INDEX events_of;
    CREATE INDEX events_of ON events (sandbox_id, seq);
",
];

/// One change.
#[derive(Debug, Clone)]
pub(super) enum Change {
    Put(Box<Row>),
    /// Nothing is left of it; what is told of it from now on.
    Remove(SandboxId, Option<Ending>),
    Events(Vec<Arc<Event>>),
    /// The server ends by itself.
    EndWell,
}

/// What the last server left.
#[derive(Debug, Default)]
pub(crate) struct Found {
    pub(crate) rows: Vec<Row>,
    /// Oldest first.
    pub(crate) endings: Vec<(SandboxId, Ending)>,
    /// The number of the next event.
    pub(crate) next_seq: u64,
    /// A journal that could not be read was put aside; then what about it.
    pub(crate) put_aside: Option<String>,
}

#[derive(Debug)]
pub(super) struct Db {
    connection: Connection,
    /// Events written since the oldest were last removed.
    unpruned: u64,
    /// The machine last written, which most rows have.
    machine: Option<(Arc<Machine>, String)>,
}

impl Db {
    /// Opens the journal below `work_dir`, or makes it, and reads what is there. One that cannot be read is put aside
    /// when `deserted` says that no microVM lives which it could know.
    pub(super) fn open(work_dir: &Path, deserted: impl Fn() -> bool) -> Result<(Self, Found), JournalError> {
        let path = work_dir.join(FILE);
        match Self::try_open(&path, &deserted) {
            Err(JournalError::Corrupt { path, source }) if deserted() => {
                let aside = put_aside(&path).map_err(|error| open_error(&path, error))?;
                let what = format!(
                    "the journal could not be read ({source}) and was put aside as {}: the events and endings in it \
                     are lost; no sandbox was alive",
                    aside.display()
                );
                warn!("{what}");
                let (db, found) = Self::try_open(&path, || false)?;
                Ok((db, Found { put_aside: Some(what), ..found }))
            }
            opened => opened,
        }
    }

    fn try_open(path: &Path, deserted: impl Fn() -> bool) -> Result<(Self, Found), JournalError> {
        // SQLite gives its other two files the permissions of this one.
        let made = OpenOptions::new().append(true).create(true).mode(0o600).open(path);
        made.map_err(|error| open_error(path, error))?;
        let judge = |error: rusqlite::Error| judge(path, error);
        let mut connection =
            Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE).map_err(judge)?;
        set_up(&connection).map_err(judge)?;
        // Only with the machine can it have been damaged, and then nothing lives. A server that was killed has a
        // successor in a hurry, and left a whole one.
        if deserted() {
            check(&connection).map_err(judge)?;
        }
        migrate(&mut connection, path)?;
        let found = read(&mut connection).map_err(judge)?;
        Ok((Self { connection, unpruned: EVENTS_STEP, machine: None }, found))
    }

    /// All of them, or none.
    pub(super) fn commit<'a>(
        &mut self,
        changes: impl Iterator<Item = &'a Change>,
    ) -> Result<(), rusqlite::Error> {
        let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let (mut machine, mut unpruned) = (self.machine.take(), self.unpruned);
        for change in changes {
            apply(&transaction, change, &mut machine, &mut unpruned)?;
        }
        transaction.commit()?;
        (self.machine, self.unpruned) = (machine, unpruned);
        Ok(())
    }

    /// Brings all that was written into the one file. Without that nothing is lost: the next server finds it in the log.
    pub(super) fn settle(&self) {
        if let Err(error) = self.connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())) {
            warn!(error = crate::error::chain(&error), "the journal's log stays beside it");
        }
    }

    /// As a commit, without a change: whether it could be written.
    pub(super) fn probe(&mut self) -> Result<(), rusqlite::Error> {
        let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        transaction.execute("UPDATE server SET ended_well = ended_well", [])?;
        transaction.commit()
    }

    /// Leaves a commit half done.
    #[cfg(test)]
    pub(super) fn begin_and_apply<'a>(
        &mut self,
        changes: impl Iterator<Item = &'a Change>,
    ) -> Result<(), rusqlite::Error> {
        self.connection.execute_batch("BEGIN IMMEDIATE")?;
        for change in changes {
            apply(&self.connection, change, &mut None, &mut 0)?;
        }
        Ok(())
    }

    #[cfg(test)]
    pub(super) fn connection(&self) -> &Connection {
        &self.connection
    }
}

fn set_up(connection: &Connection) -> rusqlite::Result<()> {
    connection.busy_timeout(BUSY)?;
    connection.set_prepared_statement_cache_capacity(16);
    // Asks for the answer, which is the mode that it is in then.
    connection.query_row("PRAGMA journal_mode=WAL", [], |_| Ok(()))?;
    connection.pragma_update(None, "synchronous", "OFF")?;
    // In KiB, if negative. What it works on is far less; the kernel has the rest.
    connection.pragma_update(None, "cache_size", -512)?;
    connection.pragma_update(None, "temp_store", "MEMORY")
}

/// Looks at all pages: a damaged one may be one that only a later commit comes upon.
fn check(connection: &Connection) -> rusqlite::Result<()> {
    let found: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
    if found == "ok" {
        return Ok(());
    }
    let corrupt = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CORRUPT);
    Err(rusqlite::Error::SqliteFailure(corrupt, Some(found)))
}

fn migrate(connection: &mut Connection, path: &Path) -> Result<(), JournalError> {
    let judge = |error| judge(path, error);
    let version: u32 = connection.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(judge)?;
    let known = u32::try_from(MIGRATIONS.len()).unwrap_or(u32::MAX);
    if version > known {
        return Err(JournalError::Newer { path: path.to_owned(), found: version, known });
    }
    let steps = MIGRATIONS.iter().skip(version as usize);
    let migrated = || {
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        for step in steps {
            transaction.execute_batch(step)?;
        }
        transaction.pragma_update(None, "application_id", APPLICATION)?;
        transaction.pragma_update(None, "user_version", known)?;
        transaction.commit()
    };
    migrated().map_err(judge)
}

/// Reads what is there.
fn read(connection: &mut Connection) -> rusqlite::Result<Found> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let mut found = Found::default();
    {
        let sql =
            "SELECT entry, (SELECT machine FROM machines WHERE machines.id = machine_id) FROM sandboxes";
        let mut statement = transaction.prepare(sql)?;
        let rows = statement.query_map([], |row| {
            let machine: Option<String> = row.get(1)?;
            let machine = machine.map(|text| json(1, &text)).transpose()?.map(Arc::new);
            Ok(Row { machine, ..json(0, &row.get::<_, String>(0)?)? })
        })?;
        found.rows = rows.collect::<rusqlite::Result<_>>()?;
        let mut statement = transaction.prepare("SELECT id, ending FROM endings ORDER BY n")?;
        let endings = statement.query_map([], |row| {
            let id: String = row.get(0)?;
            let id = id.parse().map_err(|error| garbled(0, error))?;
            Ok((id, json(1, &row.get::<_, String>(1)?)?))
        })?;
        found.endings = endings.collect::<rusqlite::Result<_>>()?;
    }
    transaction.execute(
        "DELETE FROM machines WHERE NOT EXISTS (SELECT 1 FROM sandboxes WHERE machine_id = machines.id)",
        [],
    )?;
    let last: Option<u64> = transaction.query_row("SELECT max(seq) FROM events", [], |row| row.get(0))?;
    let ended_well: bool = transaction.query_row("SELECT ended_well FROM server", [], |row| row.get(0))?;
    found.next_seq = match last {
        Some(last) if !ended_well => {
            // Events of the last moments may have been read by somebody, and not written.
            let seq = last + UNWRITTEN;
            let lost = Event { seq, unix_ms: crate::events::unix_ms(), ..Event::new(EventKind::Lost, None) };
            insert_event(&transaction, &lost)?;
            seq + 1
        }
        last => last.unwrap_or(0) + 1,
    };
    // Also shows that it can be written.
    transaction.execute("UPDATE server SET ended_well = 1", [])?;
    transaction.commit()?;
    Ok(found)
}

fn apply(
    connection: &Connection,
    change: &Change,
    machine: &mut Option<(Arc<Machine>, String)>,
    unpruned: &mut u64,
) -> rusqlite::Result<()> {
    match change {
        Change::Put(row) => put(connection, row, machine),
        Change::Remove(id, ending) => {
            connection.prepare_cached("DELETE FROM sandboxes WHERE id = ?1")?.execute([id.as_str()])?;
            let Some(ending) = ending else { return Ok(()) };
            connection
                .prepare_cached("INSERT OR REPLACE INTO endings (id, ending) VALUES (?1, ?2)")?
                .execute(params![id.as_str(), text(ending)?])?;
            connection
                .prepare_cached("DELETE FROM endings WHERE n <= (SELECT max(n) FROM endings) - ?1")?
                .execute([ENDINGS])?;
            Ok(())
        }
        Change::Events(events) => {
            connection.prepare_cached("UPDATE server SET ended_well = 0 WHERE ended_well = 1")?.execute([])?;
            for event in events {
                insert_event(connection, event)?;
            }
            *unpruned += events.len() as u64;
            if *unpruned >= EVENTS_STEP {
                let sql = "DELETE FROM events WHERE seq <= \
                    (SELECT seq FROM events ORDER BY seq DESC LIMIT 1 OFFSET ?1)";
                connection.prepare_cached(sql)?.execute([EVENTS])?;
                *unpruned = 0;
            }
            Ok(())
        }
        Change::EndWell => connection.execute("UPDATE server SET ended_well = 1", []).map(drop),
    }
}

fn put(
    connection: &Connection,
    row: &Row,
    known: &mut Option<(Arc<Machine>, String)>,
) -> rusqlite::Result<()> {
    let machine_id = match (known.as_ref(), &row.machine) {
        (Some((machine, id)), Some(of_row)) if machine == of_row => id.clone(),
        (_, None) => String::new(),
        (_, Some(machine)) => {
            let machine_text = text(machine.as_ref())?;
            let id = hash_text(&machine_text);
            connection
                .prepare_cached("INSERT OR IGNORE INTO machines (id, machine) VALUES (?1, ?2)")?
                .execute([&id, &machine_text])?;
            *known = Some((machine.clone(), id.clone()));
            id
        }
    };
    connection
        .prepare_cached("INSERT OR REPLACE INTO sandboxes (id, machine_id, entry) VALUES (?1, ?2, ?3)")?
        .execute(params![row.id.as_str(), machine_id, text(row)?])?;
    Ok(())
}

fn insert_event(connection: &Connection, event: &Event) -> rusqlite::Result<()> {
    connection
        .prepare_cached("INSERT OR REPLACE INTO events (seq, sandbox_id, event) VALUES (?1, ?2, ?3)")?
        .execute(params![event.seq, event.sandbox_id.as_ref().map(SandboxId::as_str), text(event)?])?;
    Ok(())
}

fn text(value: &impl serde::Serialize) -> rusqlite::Result<String> {
    serde_json::to_string(value).map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))
}

pub(super) fn json<T: serde::de::DeserializeOwned>(column: usize, text: &str) -> rusqlite::Result<T> {
    serde_json::from_str(text).map_err(|error| garbled(column, error))
}

fn garbled(column: usize, error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(column, Type::Text, error.into())
}

/// What an error at the start means: the content, or the way to it.
fn judge(path: &Path, error: rusqlite::Error) -> JournalError {
    use rusqlite::Error::{
        FromSqlConversionFailure, InvalidColumnType, QueryReturnedNoRows, SqlInputError, SqliteFailure,
    };
    let is_content = match &error {
        SqliteFailure(failure, message) => match failure.code {
            ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase => true,
            // A table that is not there.
            ErrorCode::Unknown => message.as_ref().is_some_and(|message| message.starts_with("no such")),
            _ => false,
        },
        FromSqlConversionFailure(..) | InvalidColumnType(..) | QueryReturnedNoRows | SqlInputError { .. } => {
            true
        }
        _ => false,
    };
    if is_content {
        JournalError::Corrupt { path: path.to_owned(), source: error }
    } else {
        open_error(path, error)
    }
}

fn open_error(path: &Path, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> JournalError {
    JournalError::Open { path: path.to_owned(), source: source.into() }
}

/// Renames the journal's files; an earlier one that was put aside gives way.
fn put_aside(path: &Path) -> std::io::Result<PathBuf> {
    let named = |suffix: &str| PathBuf::from(format!("{}{suffix}", path.display()));
    for suffix in ["-shm", "-wal"] {
        match std::fs::rename(named(suffix), named(&format!(".unreadable{suffix}"))) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    let aside = named(".unreadable");
    std::fs::rename(path, &aside)?;
    Ok(aside)
}
