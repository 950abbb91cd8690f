//! The event log: what happened to sandboxes, numbered. Whoever emits an event neither waits nor writes anywhere: the
//! last [`KEPT`] are in memory, readers come for theirs, each at its own pace, and are told what they missed. One of
//! them writes the server's log, one the journal, where the others find what is older. What an event is, is in
//! [`manta_api::Event`].

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use manta_api::{Event, EventKind, SandboxId};
use tokio::sync::watch;
use tracing::{debug, info, warn};

use crate::caller::Caller;
use crate::journal::{Archive, Journal, Page, Wanted, lost, written};

/// Events kept in memory: some 200 bytes each.
const KEPT: usize = 1_000;
/// Most that are looked at while the log is locked: some microseconds.
const BATCH: usize = 256;
/// What happens within this time is written to the journal together.
const LINGER: Duration = Duration::from_millis(20);
/// After they could not be written.
const RETRY: Duration = Duration::from_secs(1);

/// The log, shared by who emits.
#[derive(Debug, Clone)]
pub(crate) struct Events {
    ring: Arc<watch::Sender<Ring>>,
    /// Where older ones are.
    archive: Option<Archive>,
}

/// Reads the log from some place on.
#[derive(Debug)]
pub struct EventReader {
    ring: watch::Receiver<Ring>,
    /// Number of the next event to look at.
    next: u64,
    /// The first that is not wanted.
    until: u64,
    of: Option<SandboxId>,
    /// Whether a number was asked for.
    exactly: bool,
    archive: Option<Archive>,
}

#[derive(Debug)]
struct Ring {
    kept: VecDeque<Arc<Event>>,
    /// How many of them at most.
    room: usize,
    /// Number of the next one.
    next: u64,
    closed: bool,
}

impl Events {
    /// The next one has number `next`; those before are in the archive.
    pub(crate) fn new(next: u64, archive: Archive) -> Self {
        Self { archive: Some(archive), ..Self::with_room(KEPT, next) }
    }

    fn with_room(room: usize, next: u64) -> Self {
        let ring = Ring { kept: VecDeque::with_capacity(room), room, next, closed: false };
        Self { ring: Arc::new(watch::Sender::new(ring)), archive: None }
    }

    /// Numbers and dates an event, and keeps it.
    pub(crate) fn emit(&self, mut event: Event) {
        self.ring.send_modify(|ring| {
            event.seq = ring.next;
            event.unix_ms = unix_ms();
            ring.next += 1;
            if ring.kept.len() == ring.room {
                ring.kept.pop_front();
            }
            ring.kept.push_back(Arc::new(event));
        });
    }

    /// One that has nothing more to say than what happened to which sandbox, and by whom.
    pub(crate) fn emit_plain(&self, event: EventKind, sandbox_id: &SandboxId, caller: &Caller) {
        self.emit(Event { who: caller.who(), ..Event::new(event, Some(sandbox_id.clone())) });
    }

    /// No more events come: readers end when they have read what there is.
    pub(crate) fn close(&self) {
        self.ring.send_modify(|ring| ring.closed = true);
    }

    /// Reads what came after number `since`, or all that is kept; with `follow` also what is still to come; of one
    /// sandbox, if it is named.
    pub(crate) fn reader(&self, since: Option<u64>, follow: bool, of: Option<SandboxId>) -> EventReader {
        let ring = self.ring.subscribe();
        let (first, end) = {
            let ring = ring.borrow();
            (ring.first(), ring.next)
        };
        let oldest = if self.archive.is_some() { 1 } else { first };
        let next = since.map_or(oldest, |since| since.saturating_add(1));
        let (until, exactly) = (if follow { u64::MAX } else { end }, since.is_some());
        EventReader { ring, next, until, of, exactly, archive: self.archive.clone() }
    }

    /// Reads all that is still to come, from memory alone.
    fn tail(&self) -> EventReader {
        let ring = self.ring.subscribe();
        let next = ring.borrow().first();
        EventReader { ring, next, until: u64::MAX, of: None, exactly: true, archive: None }
    }

    /// Writes each event to the server's log, until there are no more.
    pub(crate) async fn log(self) {
        let mut reader = self.tail();
        // It must not keep the log open that it waits for.
        drop(self);
        while let Some(events) = reader.next().await {
            events.iter().for_each(|event| log(event));
        }
    }

    /// Writes each event to the journal, some at a time, until there are no more. While that cannot be written they
    /// wait in memory, as long as they are kept there; of the others it is written how many they were.
    pub(crate) async fn write(self, journal: Journal) {
        let mut reader = self.tail();
        drop(self);
        while let Some(events) = reader.next().await {
            while let Err(error) = written(journal.events(events.clone())).await {
                if reader.is_closed() {
                    warn!(%error, "the last events are not in the journal");
                    return;
                }
                tokio::select! {
                    () = tokio::time::sleep(RETRY) => {}
                    () = reader.closed() => {}
                }
            }
            if !reader.is_closed() {
                tokio::time::sleep(LINGER).await;
            }
        }
    }
}

impl EventReader {
    /// The next events, in order and at least one; none when no more are wanted, or to come.
    ///
    /// Where some are missing an event of kind [`EventKind::Lost`] stands for them.
    pub async fn next(&mut self) -> Option<Vec<Arc<Event>>> {
        loop {
            if let Some(Page { events, next }) = self.older().await {
                self.next = next;
                if !events.is_empty() {
                    return Some(events);
                }
                continue;
            }
            let (events, at_end, closed) = {
                let ring = self.ring.borrow_and_update();
                let events = ring.read(&mut self.next, self.until, self.of.as_ref());
                (events, self.next >= ring.next, ring.closed)
            };
            if !events.is_empty() {
                return Some(events);
            }
            if self.next >= self.until || (at_end && closed) {
                return None;
            }
            if at_end {
                self.ring.changed().await.ok()?;
            }
        }
    }

    /// What is not in memory any more, if the next one is not.
    async fn older(&self) -> Option<Page> {
        let archive = self.archive.as_ref()?;
        let below = self.ring.borrow().first().min(self.until);
        if self.next >= below {
            return None;
        }
        let (of, exactly) = (self.of.clone(), self.exactly);
        Some(archive.read(Wanted { from: self.next, below, of, exactly, most: BATCH }).await)
    }

    fn is_closed(&self) -> bool {
        self.ring.borrow().closed
    }

    async fn closed(&self) {
        // An error means that there is nobody left to emit.
        let _ = self.ring.clone().wait_for(|ring| ring.closed).await;
    }
}

impl Ring {
    /// Number of the oldest that is kept, or would be.
    fn first(&self) -> u64 {
        self.next - self.kept.len() as u64
    }

    /// Looks at some from `next` on, and moves it.
    fn read(&self, next: &mut u64, until: u64, of: Option<&SandboxId>) -> Vec<Arc<Event>> {
        let first = self.first();
        let mut events = Vec::new();
        if *next > self.next {
            // A number of an earlier server's.
            events.push(lost(None, first - 1));
            *next = first;
        } else if *next < first {
            events.push(lost(Some(first - *next), first - 1));
            *next = first;
        }
        let skipped = usize::try_from(*next - first).unwrap_or(usize::MAX);
        let wanted = usize::try_from(until.saturating_sub(*next)).unwrap_or(usize::MAX).min(BATCH);
        for event in self.kept.iter().skip(skipped).take(wanted) {
            *next = event.seq + 1;
            if of.is_none() || event.sandbox_id.as_ref() == of {
                events.push(event.clone());
            }
        }
        events
    }
}

fn log(event: &Event) {
    macro_rules! line {
        ($level:ident) => {
            $level!(
                target: "manta::events",
                seq = event.seq,
                event = event.event.as_str(),
                sandbox_id = event.sandbox_id.as_ref().map(display),
                who = event.who.as_deref(),
                snapshot_id = event.snapshot_id.as_ref().map(display),
                duration_us = event.duration_us,
                exit_code = event.exit_code,
                reason = event.reason.as_deref(),
                lost = event.lost,
            )
        };
    }
    match event.event {
        EventKind::Exec => line!(debug),
        _ => line!(info),
    }
}

/// Milliseconds since 1970.
pub(crate) fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u8) -> SandboxId {
        SandboxId::from_random([n; 10])
    }

    fn emit(events: &Events, numbers: std::ops::RangeInclusive<u8>) {
        numbers.for_each(|n| events.emit_plain(EventKind::Created, &id(n), &Caller::Anyone));
    }

    /// All that is there, as `(number, how many are lost)`.
    async fn all(mut reader: EventReader) -> Vec<(u64, Option<u64>)> {
        let mut found = Vec::new();
        while let Some(events) = reader.next().await {
            assert!(!events.is_empty() && events.len() <= BATCH + 1);
            found.extend(events.iter().map(|event| (event.seq, event.lost)));
        }
        found
    }

    #[tokio::test]
    async fn events_are_numbered_and_read_from_any_place() {
        let events = Events::with_room(10, 1);
        emit(&events, 1..=4);
        assert_eq!(all(events.reader(None, false, None)).await, [(1, None), (2, None), (3, None), (4, None)]);
        assert_eq!(all(events.reader(Some(2), false, None)).await, [(3, None), (4, None)]);
        assert_eq!(all(events.reader(Some(4), false, None)).await, []);
        assert_eq!(all(events.reader(None, false, Some(id(3)))).await, [(3, None)]);
    }

    #[tokio::test]
    async fn who_fell_behind_is_told_how_far() {
        let events = Events::with_room(2, 1);
        emit(&events, 1..=5);
        let mut slow = events.reader(None, true, Some(id(8)));
        assert_eq!(
            all(events.reader(None, false, None)).await,
            [(4, None), (5, None)],
            "nothing was promised"
        );
        assert_eq!(all(events.reader(Some(0), false, None)).await, [(3, Some(3)), (4, None), (5, None)]);
        assert_eq!(all(events.reader(Some(3), false, None)).await, [(4, None), (5, None)]);
        emit(&events, 6..=9);
        let found = slow.next().await.unwrap();
        let found: Vec<_> = found.iter().map(|event| (event.seq, event.event, event.lost)).collect();
        assert_eq!(found, [(7, EventKind::Lost, Some(4)), (8, EventKind::Created, None)]);
    }

    #[tokio::test]
    async fn a_number_of_another_server_begins_anew() {
        let events = Events::with_room(10, 1);
        emit(&events, 1..=2);
        let mut reader = events.reader(Some(700), false, None);
        let found = reader.next().await.unwrap();
        let found: Vec<_> = found.iter().map(|event| (event.seq, event.event)).collect();
        assert_eq!(found, [(0, EventKind::Lost), (1, EventKind::Created), (2, EventKind::Created)]);
        assert_eq!(reader.next().await, None);
    }

    #[tokio::test]
    async fn a_follower_gets_what_comes_until_the_log_is_closed() {
        let events = Events::with_room(1000, 1);
        emit(&events, 1..=1);
        let following = tokio::spawn(all(events.reader(None, true, None)));
        for n in 0..600_u32 {
            emit(&events, 2..=2);
            if n % 100 == 0 {
                tokio::task::yield_now().await;
            }
        }
        events.close();
        let found: Vec<_> = following.await.unwrap().into_iter().map(|(seq, _)| seq).collect();
        assert_eq!(found, (1..=601).collect::<Vec<_>>());
        assert_eq!(all(events.reader(Some(601), true, None)).await, []);
    }

    #[tokio::test]
    async fn who_does_not_follow_ends_where_it_found_the_end() {
        let events = Events::with_room(1000, 1);
        (0..300).for_each(|_| emit(&events, 1..=1));
        let mut reader = events.reader(None, false, None);
        assert_eq!(reader.next().await.unwrap().len(), BATCH);
        emit(&events, 1..=9);
        assert_eq!(reader.next().await.unwrap().len(), 300 - BATCH);
        assert_eq!(reader.next().await, None);
    }
}
