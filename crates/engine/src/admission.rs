//! Who may begin: a place among all sandboxes, within the limits of the host and of the caller's key, and a turn to
//! start a microVM, which few can do at once. Whoever has a place waits for a turn, first come, first served, but not
//! for ever.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use manta_host::facts;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use crate::caller::Caller;
use crate::error::EngineError;
use crate::places::{Places, Taken};

/// Descriptors that a new sandbox must find free: it takes some thirty on its way, and keeps a dozen.
const SPARE_DESCRIPTORS: u64 = 64;

/// Places and turns.
#[derive(Debug)]
pub(crate) struct Admission {
    places: Arc<Places>,
    room: DiskRoom,
    freed: Arc<Notify>,
    turns: Arc<Semaphore>,
    wakings: Arc<Semaphore>,
    patience: Duration,
    stop: CancellationToken,
}

/// Where sandboxes keep what they write, and what of it stays free.
#[derive(Debug)]
pub(crate) struct DiskRoom {
    pub(crate) dir: PathBuf,
    /// Below this many free bytes nothing new is made.
    pub(crate) reserve_bytes: u64,
}

/// A place among all sandboxes, given back when dropped.
#[derive(Debug)]
pub(crate) struct Place {
    taken: Option<Taken>,
    freed: Arc<Notify>,
}

impl Drop for Place {
    fn drop(&mut self) {
        drop(self.taken.take());
        self.freed.notify_one();
    }
}

/// Does `work` in its turn. That is over after `limit`, whether or not the work is done: from then on it rather waits
/// than works, and guests that never answer do not hold up others.
pub(crate) async fn in_turn<T>(
    turn: OwnedSemaphorePermit,
    limit: Duration,
    work: impl Future<Output = T>,
) -> T {
    let mut work = std::pin::pin!(work);
    if let Ok(done) = tokio::time::timeout(limit, work.as_mut()).await {
        return done;
    }
    drop(turn);
    work.await
}

/// Without descriptors what is begun fails half-way.
fn check_descriptors() -> Result<(), EngineError> {
    let Some(limit) = facts::open_files().soft else { return Ok(()) };
    match facts::open_files_at_least() {
        Ok(open) if open + SPARE_DESCRIPTORS <= limit => Ok(()),
        _ => Err(EngineError::HostDescriptorsFull { limit }),
    }
}

impl Admission {
    /// `width` microVMs are started at once; nobody waits for that longer than `patience`, or once `stop` is
    /// cancelled.
    pub(crate) fn new(
        places: Places,
        room: DiskRoom,
        width: usize,
        patience: Duration,
        stop: CancellationToken,
    ) -> Self {
        let [turns, wakings] = [width, width].map(|permits| Arc::new(Semaphore::new(permits)));
        Self { places: Arc::new(places), room, freed: Arc::default(), turns, wakings, patience, stop }
    }

    /// A place for somebody who asks for a sandbox: before anything is done for them. Nothing waits, and nothing is
    /// left of a refusal.
    ///
    /// # Errors
    /// [`EngineError::ShuttingDown`], or which limit is reached: [`EngineError::HostFull`],
    /// [`EngineError::HostMemoryFull`], [`EngineError::HostDiskFull`], [`EngineError::HostDescriptorsFull`],
    /// [`EngineError::KeySandboxLimit`], [`EngineError::KeyRateLimit`].
    pub(crate) fn enter(&self, caller: &Caller) -> Result<Place, EngineError> {
        if !matches!(caller, Caller::Server) {
            self.check_disk()?;
            check_descriptors()?;
        }
        self.take(caller, true)
    }

    /// A place for somebody who had one and lost it with a sandbox that did not come up.
    ///
    /// # Errors
    /// As [`Self::enter`], but for the rate, which counts what somebody asks for.
    pub(crate) fn enter_again(&self, caller: &Caller) -> Result<Place, EngineError> {
        self.take(caller, false)
    }

    /// A place for a sandbox that exists already and has `mib` of memory, whatever the limits are.
    pub(crate) fn place_that_was_taken(&self, maker: &Caller, mib: u64) -> Place {
        Place { taken: Some(Places::take_back(&self.places, maker, mib)), freed: self.freed.clone() }
    }

    fn take(&self, caller: &Caller, asked: bool) -> Result<Place, EngineError> {
        if self.stop.is_cancelled() {
            return Err(EngineError::ShuttingDown);
        }
        let taken = Places::take(&self.places, caller, asked)?;
        Ok(Place { taken: Some(taken), freed: self.freed.clone() })
    }

    /// A microsecond: the file system counts its free blocks all the time.
    fn check_disk(&self) -> Result<(), EngineError> {
        let DiskRoom { dir, reserve_bytes } = &self.room;
        let found = rustix::fs::statvfs(dir).map_err(|error| EngineError::Host {
            stage: "looking for free disk space",
            reason: error.to_string(),
        })?;
        let free = found.f_bavail.saturating_mul(found.f_frsize);
        if free < *reserve_bytes {
            return Err(EngineError::HostDiskFull { free_mib: free >> 20, reserve_mib: reserve_bytes >> 20 });
        }
        Ok(())
    }

    /// Waits for a turn to start a microVM.
    ///
    /// # Errors
    /// [`EngineError::Overloaded`], [`EngineError::ShuttingDown`].
    pub(crate) async fn turn(&self) -> Result<OwnedSemaphorePermit, EngineError> {
        self.wait_for(&self.turns).await
    }

    /// Waits for a turn to wake a sandbox that waits: many at once get in each other's way, and in that of the first
    /// commands of those before them. Does not wait for those who start microVMs, which takes far longer.
    ///
    /// # Errors
    /// As [`Self::turn`].
    pub(crate) async fn waking(&self) -> Result<OwnedSemaphorePermit, EngineError> {
        self.wait_for(&self.wakings).await
    }

    async fn wait_for(&self, turns: &Arc<Semaphore>) -> Result<OwnedSemaphorePermit, EngineError> {
        tokio::select! {
            biased;
            () = self.stop.cancelled() => Err(EngineError::ShuttingDown),
            turn = turns.clone().acquire_owned() => turn.map_err(|_| EngineError::ShuttingDown),
            () = tokio::time::sleep(self.patience) => Err(EngineError::Overloaded { after: self.patience }),
        }
    }

    /// Completes when a place was given back since the last time; for one waiter.
    pub(crate) async fn place_freed(&self) {
        self.freed.notified().await;
    }

    /// How many more sandboxes the host has room for.
    pub(crate) fn free_places(&self) -> usize {
        self.places.free()
    }

    /// Memory committed to sandboxes that exist, MiB.
    pub(crate) fn committed_mib(&self) -> u64 {
        self.places.committed_mib()
    }

    /// Whether a turn of either kind could be had at once.
    pub(crate) fn has_free_turn(&self) -> bool {
        self.turns.available_permits() > 0 && self.wakings.available_permits() > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::places::HostLimits;

    fn admission(stop: &CancellationToken, reserve_bytes: u64) -> Admission {
        let places = Places::new(HostLimits { max_sandboxes: 2, max_memory_mib: u64::MAX, sandbox_mib: 1 });
        let room = DiskRoom { dir: std::env::temp_dir(), reserve_bytes };
        Admission::new(places, room, 1, Duration::from_secs(30), stop.clone())
    }

    #[tokio::test(start_paused = true)]
    async fn a_turn_is_waited_for_and_not_for_ever() {
        let stop = CancellationToken::new();
        let admission = admission(&stop, 0);
        let turn = admission.turn().await.unwrap();
        assert!(!admission.has_free_turn());
        assert!(
            matches!(admission.turn().await, Err(EngineError::Overloaded { after }) if after.as_secs() == 30)
        );
        let (second, ()) = tokio::join!(admission.turn(), async move { drop(turn) });
        let second = second.unwrap();
        let (third, ()) = tokio::join!(admission.turn(), async { stop.cancel() });
        assert!(matches!(third, Err(EngineError::ShuttingDown)));
        drop(second);
        assert!(matches!(admission.turn().await, Err(EngineError::ShuttingDown)));
        assert!(matches!(admission.enter(&Caller::Anyone), Err(EngineError::ShuttingDown)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_place_that_was_given_back_is_told_of() {
        let admission = admission(&CancellationToken::new(), 0);
        let place = admission.enter(&Caller::Anyone).unwrap();
        assert_eq!(admission.free_places(), 1);
        assert!(tokio::time::timeout(Duration::from_secs(1), admission.place_freed()).await.is_err());
        drop(place);
        assert_eq!(admission.free_places(), 2);
        admission.place_freed().await;
    }

    #[test]
    fn nothing_is_made_in_the_last_of_the_disk() {
        let admission = admission(&CancellationToken::new(), u64::MAX);
        assert!(matches!(admission.enter(&Caller::Anyone), Err(EngineError::HostDiskFull { .. })));
        assert_eq!(admission.free_places(), 2, "nothing is left of a refusal");
        admission.enter(&Caller::Server).unwrap();
    }
}
