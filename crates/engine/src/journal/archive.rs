//! Reads the events that are in the journal, beside the thread that writes it. Blocking reads of some milliseconds at
//! most, each in a thread of its own.

use std::path::Path;
use std::sync::Arc;

use manta_api::{Event, EventKind, SandboxId};
use rusqlite::types::Value;
use rusqlite::{Connection, OpenFlags, OptionalExtension as _, params_from_iter};
use tokio::sync::Mutex;
use tokio::task::spawn_blocking;
use tracing::warn;

use super::db::{FILE, json};
use super::error::JournalError;
use crate::events::unix_ms;

/// Events of one sandbox, and of none: two walks along the index, each of which looks at nothing else.
pub(super) const OF_ONE: &str = "
    SELECT seq, event FROM events WHERE sandbox_id = ?4 AND seq >= ?1 AND seq < ?2
    UNION ALL
    SELECT seq, event FROM events WHERE sandbox_id IS NULL AND seq >= ?1 AND seq < ?2
    ORDER BY seq LIMIT ?3
";

/// The events in the journal. Clones share the way there.
#[derive(Debug, Clone)]
pub(crate) struct Archive(Arc<Mutex<Connection>>);

/// Some events, in order.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Page {
    pub(crate) events: Vec<Arc<Event>>,
    /// Where to go on.
    pub(crate) next: u64,
}

/// Which events.
#[derive(Debug, Clone)]
pub(crate) struct Wanted {
    /// The first.
    pub(crate) from: u64,
    /// The first that is not wanted.
    pub(crate) below: u64,
    /// Of this sandbox only.
    pub(crate) of: Option<SandboxId>,
    /// Whether `from` was asked for: then it is told what is not kept of that.
    pub(crate) exactly: bool,
    /// Most of them at once.
    pub(crate) most: usize,
}

impl Archive {
    pub(super) fn open(work_dir: &Path) -> Result<Self, JournalError> {
        let path = work_dir.join(FILE);
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY;
        let connection = Connection::open_with_flags(&path, flags)
            .map_err(|source| JournalError::Open { path, source: source.into() })?;
        Ok(Self(Arc::new(Mutex::new(connection))))
    }

    /// Looks at some events. Where there should be more than there are, one of kind [`EventKind::Lost`] stands for
    /// them. What cannot be read is lost, too.
    pub(crate) async fn read(&self, wanted: Wanted) -> Page {
        let (from, below) = (wanted.from, wanted.below);
        // Whoever has to wait takes up no thread meanwhile.
        let connection = self.0.clone().lock_owned().await;
        let read = spawn_blocking(move || read(&connection, &wanted));
        let reason = match read.await {
            Ok(Ok(page)) => return page,
            Ok(Err(error)) => crate::error::chain(&error),
            Err(panicked) => panicked.to_string(),
        };
        warn!(reason, "events cannot be read from the journal");
        Page { events: vec![lost(Some(below - from), below - 1)], next: below }
    }
}

fn read(connection: &Connection, wanted: &Wanted) -> rusqlite::Result<Page> {
    let Wanted { mut from, below, of, exactly, most } = wanted.clone();
    let mut events = Vec::new();
    // Of one moment, whatever is written or removed meanwhile.
    let moment = connection.unchecked_transaction()?;
    let oldest: Option<u64> =
        moment.prepare_cached("SELECT min(seq) FROM events")?.query_row([], |row| row.get(0))?;
    let oldest = oldest.filter(|oldest| *oldest < below).unwrap_or(below);
    if from < oldest {
        if exactly {
            events.push(lost(Some(oldest - from), oldest - 1));
        }
        from = oldest;
    }
    let sql = match of {
        None => "SELECT seq, event FROM events WHERE seq >= ?1 AND seq < ?2 ORDER BY seq LIMIT ?3",
        Some(_) => OF_ONE,
    };
    let integer = |number: u64| Value::Integer(i64::try_from(number).unwrap_or(i64::MAX));
    let numbers = [from, below, most as u64].map(integer);
    let parameters = numbers.into_iter().chain(of.map(|id| Value::Text(id.to_string())));
    let mut found = 0;
    let mut last = from;
    {
        let mut statement = moment.prepare_cached(sql)?;
        let mut rows = statement.query(params_from_iter(parameters))?;
        while let Some(row) = rows.next()? {
            (last, found) = (row.get(0)?, found + 1);
            events.push(Arc::new(json(1, &row.get::<_, String>(1)?)?));
        }
    }
    if found == most {
        return Ok(Page { events, next: last + 1 });
    }
    let newest: Option<u64> = moment
        .prepare_cached("SELECT seq FROM events WHERE seq < ?1 ORDER BY seq DESC LIMIT 1")?
        .query_row([below], |row| row.get(0))
        .optional()?;
    let written_below = newest.map_or(from, |newest| (newest + 1).max(from));
    if written_below < below {
        events.push(lost(Some(below - written_below), below - 1));
    }
    Ok(Page { events, next: below })
}

/// Stands for events that are not kept: so many, if known, up to number `last`.
pub(crate) fn lost(count: Option<u64>, last: u64) -> Arc<Event> {
    let lost = Event::new(EventKind::Lost, None);
    Arc::new(Event { seq: last, unix_ms: unix_ms(), lost: count, ..lost })
}
