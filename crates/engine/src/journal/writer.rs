//! The thread that writes the journal, and the way to it. Changes that come while it writes go into the next commit
//! together. Whoever hands one over waits for nothing, unless it wants to know that it is written.
//!
//! A change that cannot be written is refused if somebody is to be told; else it is kept, the newest of each sandbox,
//! and written when that can be done again.

use std::collections::HashMap;
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use manta_api::{Event, SandboxId};
use tokio::sync::{oneshot, watch};
use tracing::{error, info};

use super::archive::Archive;
use super::db::{Change, Db, Found};
use super::error::{JournalError, Unwritable};
use super::row::Row;
use crate::ending::Ending;

/// How often a journal that cannot be written is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// Most changes in one commit.
const BATCH: usize = 1024;

/// The journal, open. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Journal(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    orders: Mutex<Option<Sender<Order>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
    /// Why it cannot be written, when it cannot.
    trouble: watch::Receiver<Option<Unwritable>>,
}

/// Completes when a change is written.
pub(crate) type Written = oneshot::Receiver<Result<(), Unwritable>>;

struct Order {
    change: Change,
    /// Who wants to know.
    done: Option<oneshot::Sender<Result<(), Unwritable>>>,
    /// Whether it is as good as never asked for, when it cannot be written now.
    or_nothing: bool,
}

impl Journal {
    /// Opens the journal below `work_dir`; see [`Db::open`]. Blocking.
    pub(crate) fn open(
        work_dir: &Path,
        deserted: impl Fn() -> bool,
    ) -> Result<(Self, Archive, Found), JournalError> {
        let (db, found) = Db::open(work_dir, deserted)?;
        let archive = Archive::open(work_dir)?;
        let (orders, queue) = channel();
        let (tell, trouble) = watch::channel(None);
        let thread = std::thread::Builder::new()
            .name("journal".to_owned())
            .spawn(move || Writer { db, tell, owed: HashMap::new() }.write(&queue))
            .map_err(|source| JournalError::Open { path: work_dir.to_owned(), source: source.into() })?;
        let (orders, thread) = (Mutex::new(Some(orders)), Mutex::new(Some(thread)));
        Ok((Self(Arc::new(Inner { orders, thread, trouble })), archive, found))
    }

    /// That it could be written when it was last tried: for whoever is about to begin something.
    ///
    /// # Errors
    /// [`Unwritable`].
    pub(crate) fn ensure_writable(&self) -> Result<(), Unwritable> {
        self.0.trouble.borrow().clone().map_or(Ok(()), Err)
    }

    /// Writes what a sandbox is now; if that cannot be done, nothing is to come of it.
    pub(super) fn put_or_nothing(&self, row: Row) -> Written {
        self.order(Change::Put(Box::new(row)), true)
    }

    /// Writes what a sandbox is now, later if need be. The answer tells of the first try.
    pub(super) fn put(&self, row: Row) -> Written {
        self.order(Change::Put(Box::new(row)), false)
    }

    /// Nothing is left of a sandbox, and what became of it, if anybody may ask; as [`Self::put`].
    pub(crate) fn remove(&self, id: SandboxId, ending: Option<Ending>) -> Written {
        self.order(Change::Remove(id, ending), false)
    }

    /// Writes events, all or none.
    pub(crate) fn events(&self, events: Vec<Arc<Event>>) -> Written {
        self.order(Change::Events(events), true)
    }

    /// Writes what is left, and that the server ended by itself; then no more. Blocking.
    pub(crate) fn close(&self) {
        drop(self.order(Change::EndWell, false));
        drop(lock(&self.0.orders).take());
        if let Some(thread) = lock(&self.0.thread).take()
            && thread.join().is_err()
        {
            error!("the thread that writes the journal panicked");
        }
    }

    fn order(&self, change: Change, or_nothing: bool) -> Written {
        let (done, written) = oneshot::channel();
        if let Some(orders) = &*lock(&self.0.orders) {
            // Without the thread there is no answer, which whoever waits takes for what it is.
            let _ = orders.send(Order { change, done: Some(done), or_nothing });
        }
        written
    }
}

/// The answer, when it has come.
///
/// # Errors
/// [`Unwritable`].
pub(crate) async fn written(written: Written) -> Result<(), Unwritable> {
    written.await.unwrap_or_else(|_| Err(Unwritable("it is closed".to_owned())))
}

struct Writer {
    db: Db,
    tell: watch::Sender<Option<Unwritable>>,
    /// What could not be written and is not given up: the newest of each sandbox.
    owed: HashMap<SandboxId, Change>,
}

impl Writer {
    fn write(mut self, queue: &Receiver<Order>) {
        loop {
            let in_trouble = self.tell.borrow().is_some();
            let first = if in_trouble {
                match queue.recv_timeout(RETRY) {
                    Ok(order) => Some(order),
                    Err(RecvTimeoutError::Timeout) => None,
                    Err(RecvTimeoutError::Disconnected) => break,
                }
            } else {
                match queue.recv() {
                    Ok(order) => Some(order),
                    Err(_) => break,
                }
            };
            let mut orders: Vec<_> = first.into_iter().collect();
            orders.extend(queue.try_iter().take(BATCH));
            self.commit(orders);
        }
        self.db.settle();
    }

    fn commit(&mut self, orders: Vec<Order>) {
        let changes = self.owed.values().chain(orders.iter().map(|order| &order.change));
        let committed =
            if orders.is_empty() && self.owed.is_empty() { self.db.probe() } else { self.db.commit(changes) };
        match committed {
            Ok(()) => {
                self.owed.clear();
                if self.tell.borrow().is_some() {
                    info!("the journal can be written again");
                    self.tell.send_replace(None);
                }
                for order in orders {
                    answer(order.done, Ok(()));
                }
            }
            Err(error) => {
                let trouble = Unwritable(crate::error::chain(&error));
                if self.tell.borrow().is_none() {
                    error!(error = crate::error::chain(&error), "the journal cannot be written");
                }
                // Before the answers, so that who has one finds it so.
                self.tell.send_replace(Some(trouble.clone()));
                for Order { change, done, or_nothing } in orders {
                    if !or_nothing {
                        self.owe(change);
                    }
                    answer(done, Err(trouble.clone()));
                }
            }
        }
    }

    fn owe(&mut self, change: Change) {
        let id = match &change {
            Change::Put(row) => row.id.clone(),
            Change::Remove(id, _) => id.clone(),
            // The next server takes it that this one was killed, and loses nothing by that.
            Change::Events(_) | Change::EndWell => return,
        };
        self.owed.insert(id, change);
    }
}

fn answer(done: Option<oneshot::Sender<Result<(), Unwritable>>>, outcome: Result<(), Unwritable>) {
    if let Some(done) = done {
        let _ = done.send(outcome); // who asked may not want to know
    }
}

/// A panic elsewhere cannot leave these values half-changed.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
