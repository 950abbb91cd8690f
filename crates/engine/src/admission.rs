//! Who may begin: a place among all sandboxes, and a turn to start a microVM, which few can do at once. Whoever has
//! a place waits for a turn, first come, first served, but not for ever.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use crate::error::EngineError;

/// Places and turns.
#[derive(Debug)]
pub(crate) struct Admission {
    max_sandboxes: usize,
    places: Arc<Semaphore>,
    freed: Arc<Notify>,
    turns: Arc<Semaphore>,
    wakings: Arc<Semaphore>,
    patience: Duration,
    stop: CancellationToken,
}

/// A place among all sandboxes, given back when dropped.
#[derive(Debug)]
pub(crate) struct Place {
    permit: Option<OwnedSemaphorePermit>,
    freed: Arc<Notify>,
}

impl Drop for Place {
    fn drop(&mut self) {
        drop(self.permit.take());
        self.freed.notify_one();
    }
}

impl Admission {
    /// `width` microVMs are started at once; nobody waits for that longer than `patience`, or once `stop` is
    /// cancelled.
    pub(crate) fn new(
        max_sandboxes: usize,
        width: usize,
        patience: Duration,
        stop: CancellationToken,
    ) -> Self {
        let [places, turns, wakings] =
            [max_sandboxes, width, width].map(|permits| Arc::new(Semaphore::new(permits)));
        Self { max_sandboxes, places, freed: Arc::default(), turns, wakings, patience, stop }
    }

    /// A place among all sandboxes.
    ///
    /// # Errors
    /// [`EngineError::HostFull`], [`EngineError::ShuttingDown`].
    pub(crate) fn place(&self) -> Result<Place, EngineError> {
        if self.stop.is_cancelled() {
            return Err(EngineError::ShuttingDown);
        }
        let limit = self.max_sandboxes;
        let permit = self.places.clone().try_acquire_owned().map_err(|_| EngineError::HostFull { limit })?;
        Ok(Place { permit: Some(permit), freed: self.freed.clone() })
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

    pub(crate) fn free_places(&self) -> usize {
        self.places.available_permits()
    }

    /// Whether a turn of either kind could be had at once.
    pub(crate) fn has_free_turn(&self) -> bool {
        self.turns.available_permits() > 0 && self.wakings.available_permits() > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_turn_is_waited_for_and_not_for_ever() {
        let stop = CancellationToken::new();
        let admission = Admission::new(2, 1, Duration::from_secs(30), stop.clone());
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
        assert!(matches!(admission.place(), Err(EngineError::ShuttingDown)));
    }

    #[tokio::test]
    async fn places_are_as_many_as_there_are() {
        let admission = Admission::new(1, 1, Duration::from_secs(1), CancellationToken::new());
        let place = admission.place().unwrap();
        assert_eq!(admission.free_places(), 0);
        assert!(matches!(admission.place(), Err(EngineError::HostFull { limit: 1 })));
        drop(place);
        assert_eq!(admission.free_places(), 1);
    }
}
