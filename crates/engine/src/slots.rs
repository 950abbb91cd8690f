//! Network slots: kept ready in the background, made on demand when there are none, never used for
//! two sandboxes at once. A slot given back is used again if it is certain that nothing of its sandbox is left in
//! it; else its index is free again only after it is gone.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use manta_host::net::{HostNetwork, NetError, NetSlot};
use manta_host::process::Process;
use tokio::sync::Notify;
use tokio::task::{JoinError, JoinHandle, JoinSet, spawn_blocking};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, warn};

use crate::confine::Confinement;
use crate::metrics::Pool;
use crate::pool::{PoolStatus, Stats};

/// Indices a slot can have; the address pairs of 198.18.0.0/15 would allow more.
pub(crate) const INDICES: u16 = 16_384;

/// Between attempts to take apart what could not be.
const RETRY: Duration = Duration::from_secs(1);

/// The pool.
#[derive(Debug)]
pub(crate) struct Slots {
    confinement: Confinement,
    target: usize,
    state: Mutex<State>,
    refill: Notify,
    /// One could not be taken apart.
    got_stuck: Notify,
    stats: Stats,
}

#[derive(Debug, Default)]
struct State {
    used: BTreeSet<u16>,
    /// Those that could not be taken apart; among the used.
    stuck: BTreeSet<u16>,
    /// Where the search for a free index goes on: one that cannot be made does not block the others.
    next: u16,
    ready: Vec<NetSlot>,
    /// None once the pool is closed.
    host: Option<Arc<HostNetwork>>,
}

impl State {
    /// Whether one more may wait. Twice as many as are made ahead of time: those taken have been replaced when they
    /// come back.
    fn has_room(&self, target: usize) -> bool {
        self.host.is_some() && self.ready.len() < 2 * target
    }
}

impl Slots {
    /// `used` are the numbers of slots that an earlier server made, and that may still be somebody's.
    pub(crate) fn new(
        host: Arc<HostNetwork>,
        confinement: Confinement,
        target: usize,
        used: BTreeSet<u16>,
    ) -> Arc<Self> {
        let state = State { host: Some(host), used, ..State::default() };
        Arc::new(Self {
            confinement,
            target,
            state: Mutex::new(state),
            refill: Notify::new(),
            got_stuck: Notify::new(),
            stats: Stats::of(Pool::Slots),
        })
    }

    /// A slot of one's own. Give it back with [`Self::release`].
    pub(crate) async fn acquire(self: &Arc<Self>) -> Result<NetSlot, String> {
        let ready = self.state().ready.pop();
        self.stats.claimed(ready.is_some());
        self.refill.notify_one();
        match ready {
            Some(slot) => Ok(slot),
            None => self.make().await,
        }
    }

    /// Takes back the slot of a sandbox that an earlier server made, with the namespace that `vmm` is in. Blocking.
    ///
    /// # Errors
    /// Why not; nothing of it is left on the host then.
    pub(crate) fn adopt(&self, index: u16, vmm: &Process) -> Result<NetSlot, String> {
        let host = self.state().host.clone().ok_or("the pool is closed")?;
        NetSlot::adopt(&host, index, vmm).map_err(|error| crate::error::chain(&error))
    }

    /// Removes what is left of such a slot that was not taken back, or of one that could not be taken apart, whose VMM
    /// has ended: its number is free then. Blocking.
    ///
    /// # Errors
    /// What could not be removed; it is tried again by [`Self::keep_clear`].
    pub(crate) fn discard(&self, index: u16) -> Result<(), String> {
        let host = self.state().host.clone();
        if let Some(Err(error)) = host.map(|host| NetSlot::discard(&host, index)) {
            self.is_stuck(index);
            return Err(crate::error::chain(&error));
        }
        let mut state = self.state();
        state.used.remove(&index);
        state.stuck.remove(&index);
        Ok(())
    }

    /// Makes a slot ready for another sandbox or takes it apart; its VMM has ended. What fails is tried again by
    /// [`Self::keep_clear`], and its index not used before that.
    pub(crate) fn release(self: &Arc<Self>, slot: NetSlot) -> impl Future<Output = ()> + Send + 'static {
        let slots = self.clone();
        let released = spawn_blocking(move || {
            if let Some(slot) = slots.recycle(slot) {
                slots.destroy(slot);
            }
        });
        async move {
            if let Err(error) = released.await {
                error!(%error, "taking a network slot apart panicked");
            }
        }
    }

    /// Takes a slot apart whose VMM may still be alive: its index is never used again.
    pub(crate) fn abandon(self: &Arc<Self>, slot: NetSlot) -> JoinHandle<()> {
        spawn_blocking(move || {
            let index = slot.index();
            if let Err(error) = slot.destroy() {
                error!(index, error = crate::error::chain(&error), "a network slot could not be taken apart");
            }
        })
    }

    /// Keeps the pool full until cancelled. A failure to make a slot waits for the next acquire; it does not spin.
    pub(crate) async fn keep_full(self: Arc<Self>, stop: CancellationToken) {
        loop {
            while self.state().ready.len() < self.target && !stop.is_cancelled() {
                let began = Instant::now();
                let made = self.make().await;
                self.stats.refilled(began.elapsed(), made.is_ok());
                match made {
                    Ok(slot) => self.offer(slot).await,
                    Err(error) => {
                        warn!(%error, "cannot make a network slot ahead of time");
                        break;
                    }
                }
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.refill.notified() => {}
            }
        }
    }

    /// How it does.
    pub(crate) fn status(&self) -> PoolStatus {
        let depth = self.state().ready.len();
        self.stats.status(depth, self.target)
    }

    /// Takes all waiting slots apart and makes no more; returns what they were made in.
    pub(crate) async fn close(self: &Arc<Self>) -> Option<Arc<HostNetwork>> {
        let (ready, host) = {
            let mut state = self.state();
            (std::mem::take(&mut state.ready), state.host.take())
        };
        // At once: the kernel takes as long for many as for one.
        let releases: Vec<_> = ready.into_iter().map(|slot| self.release(slot)).collect();
        let mut releases: JoinSet<()> = releases.into_iter().collect();
        while releases.join_next().await.is_some() {}
        host
    }

    async fn offer(self: &Arc<Self>, slot: NetSlot) {
        if let Some(slot) = self.shelve(slot) {
            self.release(slot).await;
        }
    }

    /// Lets a slot that is as good as new wait with the others; it comes back if there is no room for it.
    fn shelve(&self, slot: NetSlot) -> Option<NetSlot> {
        let mut state = self.state();
        if !state.has_room(self.target) {
            return Some(slot);
        }
        state.ready.push(slot);
        None
    }

    /// Makes a used slot ready; it comes back to be destroyed if it is not wanted or cannot be used again.
    fn recycle(&self, mut slot: NetSlot) -> Option<NetSlot> {
        // A VMM that is root can have changed what nobody compares.
        if self.confinement.root_because.is_some() || !self.state().has_room(self.target) {
            return Some(slot);
        }
        match slot.recycle() {
            Ok(()) => self.shelve(slot),
            Err(error) => {
                debug!(index = slot.index(), error = crate::error::chain(&error), "a slot is not used again");
                Some(slot)
            }
        }
    }

    async fn make(self: &Arc<Self>) -> Result<NetSlot, String> {
        let (index, host) = {
            let mut state = self.state();
            let host = state.host.clone().ok_or("the pool is closed")?;
            let mut free = (0..INDICES).map(|step| (state.next + step) % INDICES);
            let index =
                free.find(|index| !state.used.contains(index)).ok_or("all network slots are in use")?;
            state.used.insert(index);
            state.next = (index + 1) % INDICES;
            (index, host)
        };
        let owner = self.confinement.credentials(index).uid;
        let slots = self.clone();
        let made = spawn_blocking(move || {
            let made = NetSlot::create(&host, index, owner);
            // What it left of itself, if anything, goes first.
            if made.is_err()
                && let Err(error) = slots.discard(index)
            {
                error!(index, error, "a network slot that could not be made could not be taken apart");
            }
            made
        });
        let made: Result<Result<NetSlot, NetError>, JoinError> = made.await;
        match made {
            Ok(Ok(slot)) => Ok(slot),
            Ok(Err(error)) => Err(crate::error::chain(&error)),
            Err(error) => Err(format!("making a network slot panicked: {error}")),
        }
    }

    fn destroy(&self, slot: NetSlot) {
        let index = slot.index();
        match slot.destroy() {
            Ok(()) => {
                self.state().used.remove(&index);
            }
            Err(error) => {
                error!(index, error = crate::error::chain(&error), "a network slot could not be taken apart");
                self.is_stuck(index);
            }
        }
    }

    fn is_stuck(&self, index: u16) {
        self.state().stuck.insert(index);
        self.got_stuck.notify_one();
    }

    /// Takes apart what could not be before, until cancelled.
    pub(crate) async fn keep_clear(self: Arc<Self>, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.got_stuck.notified() => {}
            }
            while !self.state().stuck.is_empty() {
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = tokio::time::sleep(RETRY) => self.clear_stuck().await,
                }
            }
        }
    }

    /// Tries those again that could not be taken apart.
    async fn clear_stuck(self: &Arc<Self>) {
        let slots = self.clone();
        let cleared = spawn_blocking(move || {
            let stuck = slots.state().stuck.clone();
            for index in stuck {
                if let Err(error) = slots.discard(index) {
                    debug!(index, error, "a network slot still cannot be taken apart");
                }
            }
        });
        if let Err(error) = cleared.await {
            error!(%error, "taking network slots apart panicked");
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
