//! VMMs started ahead of time: each in its slot, with its disk, waiting to load the golden snapshot. What they wait
//! for is made in the background, one at a time, so that it does not hold up those who wait for a sandbox.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use manta_api::SandboxId;
use tokio::sync::Notify;
use tracing::warn;

use crate::error::EngineError;
use crate::resources::{Resources, Start};
use crate::shared::{Shared, random};
use crate::snapshots::Stored;

/// The pool.
#[derive(Debug)]
pub(crate) struct PreparedVms {
    target: usize,
    state: Mutex<State>,
    refill: Notify,
}

#[derive(Debug, Default)]
struct State {
    of: Option<Arc<Stored>>,
    waiting: VecDeque<Prepared>,
}

/// A VMM that waits, and the sandbox it will be.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(crate) id: SandboxId,
    pub(crate) resources: Resources,
    of: Arc<Stored>,
}

impl PreparedVms {
    pub(crate) fn new(target: usize) -> Arc<Self> {
        Arc::new(Self { target, state: Mutex::default(), refill: Notify::new() })
    }

    /// Has VMMs wait for this snapshot from now on, or no more of them.
    pub(crate) fn set(&self, of: Option<Arc<Stored>>) {
        self.state().of = of;
        self.refill.notify_one();
    }

    /// One that waits for this snapshot and is alive, if there is one.
    pub(crate) async fn claim(&self, of: &Arc<Stored>, shared: &Shared) -> Option<Prepared> {
        loop {
            let prepared = self.state().waiting.pop_front();
            self.refill.notify_one();
            let prepared = prepared?;
            if Arc::ptr_eq(&prepared.of, of) && prepared.resources.is_alive().await {
                return Some(prepared);
            }
            prepared.discard(shared);
        }
    }

    /// Keeps the pool full until the engine stops, then takes apart what waits. A failure waits for the next
    /// claim; it does not spin.
    pub(crate) async fn keep_full(self: Arc<Self>, shared: Shared) {
        while !shared.stop.is_cancelled() {
            let (wanted, outdated) = {
                let mut state = self.state();
                let of = state.of.clone();
                let (current, outdated): (VecDeque<_>, VecDeque<_>) = std::mem::take(&mut state.waiting)
                    .into_iter()
                    .partition(|prepared| of.as_ref().is_some_and(|of| Arc::ptr_eq(of, &prepared.of)));
                state.waiting = current;
                (of.filter(|_| state.waiting.len() < self.target), outdated)
            };
            outdated.into_iter().for_each(|prepared| prepared.discard(&shared));
            if let Some(of) = wanted {
                match Prepared::make(of, &shared).await {
                    Ok(prepared) => {
                        self.state().waiting.push_back(prepared);
                        continue;
                    }
                    Err(error) => warn!(%error, "cannot start a VMM ahead of time"),
                }
            }
            tokio::select! {
                () = self.refill.notified() => {}
                () = shared.stop.cancelled() => {}
            }
        }
        let waiting = std::mem::take(&mut self.state().waiting);
        waiting.into_iter().for_each(|prepared| prepared.discard(&shared));
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Prepared {
    async fn make(of: Arc<Stored>, shared: &Shared) -> Result<Self, EngineError> {
        let id = SandboxId::from_random(random()?);
        let mut resources = Resources::default();
        let prepared = resources.prepare(&id, &Start::Restore(of.clone()), shared, &shared.stop).await;
        let prepared_vm = Self { id, resources, of };
        match prepared {
            Ok(()) => Ok(prepared_vm),
            Err(error) => {
                prepared_vm.discard(shared);
                Err(error)
            }
        }
    }

    /// Takes it apart, in the background.
    fn discard(mut self, shared: &Shared) {
        let owner = shared.clone();
        shared.tasks.spawn(async move { self.resources.tear_down(&self.id, &owner, false).await });
    }
}
