//! The table of sandboxes: those that exist, and what became of those that did.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use manta_api::{SandboxId, SandboxInfo, SandboxState};
use tokio::sync::Notify;

use crate::ending::Ending;
use crate::sandbox::{Ended, Handle};

/// Destroyed sandboxes remembered, so that who asks for one is told what became of it.
const REMEMBERED: usize = 10_000;

#[derive(Debug, Default)]
pub(crate) struct Table {
    entries: Mutex<Entries>,
    /// What became of an expected one is known.
    settled: Notify,
}

#[derive(Debug, Default)]
struct Entries {
    sandboxes: HashMap<SandboxId, Handle>,
    /// To be taken back from a killed server, as they were shown last.
    expected: HashMap<SandboxId, SandboxInfo>,
    destroyed: HashMap<SandboxId, Ending>,
    destroyed_order: VecDeque<SandboxId>,
}

impl Table {
    /// Adds the sandbox that `start` starts, and hands it what to call when it is gone: it must be in the
    /// table before that.
    pub(crate) fn insert(self: &Arc<Self>, id: &SandboxId, start: impl FnOnce(Ended) -> Handle) -> Handle {
        let (table, ended) = (self.clone(), id.clone());
        let mut entries = self.lock();
        let handle = start(Box::new(move |ending| table.ended(&ended, ending)));
        entries.sandboxes.insert(id.clone(), handle.clone());
        self.settle(entries, id);
        handle
    }

    /// Says what may be taken back. Each is put in, or remembered, or given up.
    pub(crate) fn expect(&self, infos: impl Iterator<Item = SandboxInfo>) {
        self.lock().expected = infos.map(|info| (info.id.clone(), info)).collect();
    }

    /// Nothing is expected any more.
    pub(crate) fn expect_no_more(&self) {
        self.lock().expected.clear();
        self.settled.notify_waiters();
    }

    /// Completes when this one is not expected any more.
    pub(crate) async fn settled(&self, id: &SandboxId) {
        loop {
            let changed = self.settled.notified();
            if !self.lock().expected.contains_key(id) {
                return;
            }
            changed.await;
        }
    }

    fn settle(&self, mut entries: MutexGuard<'_, Entries>, id: &SandboxId) {
        if entries.expected.remove(id).is_some() {
            drop(entries);
            self.settled.notify_waiters();
        }
    }

    pub(crate) fn get(&self, id: &SandboxId) -> Option<Handle> {
        self.lock().sandboxes.get(id).cloned()
    }

    /// What became of a sandbox that is gone, if that was not too long ago.
    pub(crate) fn ending(&self, id: &SandboxId) -> Option<Ending> {
        self.lock().destroyed.get(id).cloned()
    }

    /// What became of sandboxes of earlier servers, oldest first.
    pub(crate) fn remembering(endings: Vec<(SandboxId, Ending)>) -> Arc<Self> {
        let table = Arc::new(Self::default());
        endings.into_iter().for_each(|(id, ending)| table.remember(&id, ending));
        table
    }

    /// A sandbox is gone: its guest is dead, its files are removed.
    fn ended(&self, id: &SandboxId, ending: Ending) {
        self.lock().sandboxes.remove(id);
        self.remember(id, ending);
    }

    /// What became of a sandbox that is not in the table.
    pub(crate) fn remember(&self, id: &SandboxId, ending: Ending) {
        let mut entries = self.lock();
        if entries.destroyed.insert(id.clone(), ending).is_none() {
            entries.destroyed_order.push_back(id.clone());
        }
        if entries.destroyed_order.len() > REMEMBERED
            && let Some(oldest) = entries.destroyed_order.pop_front()
        {
            entries.destroyed.remove(&oldest);
        }
        self.settle(entries, id);
    }

    /// How many there are, or are expected.
    pub(crate) fn len(&self) -> usize {
        let entries = self.lock();
        entries.sandboxes.len() + entries.expected.len()
    }

    /// The state of each, in no order.
    pub(crate) fn states(&self) -> Vec<SandboxState> {
        let entries = self.lock();
        let expected = entries.expected.values().map(|info| info.state);
        entries.sandboxes.values().map(Handle::state).chain(expected).collect()
    }

    /// All but the server's own, oldest first.
    pub(crate) fn infos(&self) -> Vec<SandboxInfo> {
        let entries = self.lock();
        let others = entries.sandboxes.values().filter(|handle| !handle.is_own());
        let mut infos: Vec<_> = others.map(Handle::info).chain(entries.expected.values().cloned()).collect();
        drop(entries);
        infos.sort_by(|a, b| (a.created_unix_s, &a.id).cmp(&(b.created_unix_s, &b.id)));
        infos
    }

    fn lock(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
