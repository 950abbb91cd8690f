//! VMMs started ahead of time: each in its slot, with its disk, waiting to load the golden snapshot. What they wait
//! for is made in the background, one at a time, so that it does not hold up those who wait for a sandbox.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tracing::warn;

use super::{Member, PoolStatus, Stats};
use crate::metrics::Pool;
use crate::shared::Shared;
use crate::snapshots::Stored;
use crate::timing::Timed;

/// The pool.
#[derive(Debug)]
pub(crate) struct PreparedVms {
    target: usize,
    state: Mutex<State>,
    refill: Notify,
    stats: Stats,
}

#[derive(Debug, Default)]
struct State {
    of: Option<Arc<Stored>>,
    waiting: VecDeque<Member>,
}

impl PreparedVms {
    pub(crate) fn new(target: usize) -> Arc<Self> {
        Arc::new(Self {
            target,
            state: Mutex::default(),
            refill: Notify::new(),
            stats: Stats::of(Pool::Vmms),
        })
    }

    /// Has VMMs wait for this snapshot from now on, or no more of them.
    pub(crate) fn set(&self, of: Option<Arc<Stored>>) {
        self.state().of = of;
        self.refill.notify_one();
    }

    /// One that waits for this snapshot and is alive, if there is one. Only the golden snapshot is waited for; to ask
    /// for another is no claim.
    pub(crate) async fn claim(&self, of: &Arc<Stored>, shared: &Shared) -> Option<Member> {
        loop {
            let member = {
                let mut state = self.state();
                if !state.of.as_ref().is_some_and(|golden| Arc::ptr_eq(golden, of)) {
                    return None;
                }
                state.waiting.pop_front()
            };
            self.refill.notify_one();
            let Some(member) = member else {
                self.stats.claimed(false);
                return None;
            };
            if Arc::ptr_eq(&member.of, of) && member.resources.is_alive().await {
                self.stats.claimed(true);
                return Some(member);
            }
            member.discard(shared);
        }
    }

    /// How it does.
    pub(crate) fn status(&self) -> PoolStatus {
        let depth = self.state().waiting.len();
        self.stats.status(depth, self.target)
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
                    .partition(|member| of.as_ref().is_some_and(|of| Arc::ptr_eq(of, &member.of)));
                state.waiting = current;
                (of.filter(|_| state.waiting.len() < self.target), outdated)
            };
            outdated.into_iter().for_each(|member| member.discard(&shared));
            if let Some(of) = wanted {
                let Timed { outcome, timings } = Member::prepare(of, &shared).await;
                self.stats.refilled(timings.total(), outcome.is_ok());
                match outcome {
                    Ok(member) => {
                        self.state().waiting.push_back(member);
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
        waiting.into_iter().for_each(|member| member.discard(&shared));
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
