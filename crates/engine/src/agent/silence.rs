//! How long a session could not be heard: while it was parked or had no link. What runs in the guest runs on
//! meanwhile, and whoever waits for it must have as much more patience. Parking is the host's own doing; a link can
//! be lost by a guest that wants to go on for ever, and as much of that is borne as an honest agent bears.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use manta_agent_proto::LINK_PATIENCE;
use tokio::time::{Instant, sleep};

/// Why nothing can be heard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cause {
    Parked,
    Lost,
}

#[derive(Debug, Default)]
pub(super) struct Silence(Mutex<Spans>);

#[derive(Debug, Default, Clone, Copy)]
struct Spans {
    parked: Duration,
    lost: Duration,
    since: Option<(Cause, Instant)>,
}

impl Silence {
    /// It begins now, unless it has begun before.
    pub(super) fn begin(&self, cause: Cause) {
        self.lock().since.get_or_insert_with(|| (cause, Instant::now()));
    }

    pub(super) fn end(&self) {
        let mut spans = self.lock();
        *spans = spans.so_far();
        spans.since = None;
    }

    /// Completes when what begins now should have ended, if it may be heard for `limit`: later by all the time that
    /// the session is parked, and by at most [`LINK_PATIENCE`] without a link.
    pub(super) async fn overdue(&self, limit: Duration) {
        let (began, before) = (Instant::now(), self.lock().so_far());
        loop {
            let now = self.lock().so_far();
            let lost = (now.lost - before.lost).min(LINK_PATIENCE);
            let allowed = limit + (now.parked - before.parked) + lost;
            match allowed.checked_sub(began.elapsed()) {
                Some(left) if !left.is_zero() => sleep(left).await,
                _ => return,
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Spans> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Spans {
    /// With what has passed of the present one.
    fn so_far(mut self) -> Self {
        match self.since {
            Some((Cause::Parked, since)) => self.parked += since.elapsed(),
            Some((Cause::Lost, since)) => self.lost += since.elapsed(),
            None => {}
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(30);

    /// After how long something is overdue, if the agent cannot be heard for the first `silent` of each 10 s.
    async fn overdue_after(cause: Cause, silent: Duration) -> Duration {
        let (silence, began) = (Silence::default(), Instant::now());
        let comes_and_goes = async {
            loop {
                silence.begin(cause);
                sleep(silent).await;
                silence.end();
                sleep(Duration::from_secs(10) - silent).await;
            }
        };
        tokio::select! {
            () = silence.overdue(LIMIT) => began.elapsed(),
            () = comes_and_goes => Duration::MAX,
        }
    }

    fn about(seconds: u64) -> std::ops::Range<Duration> {
        Duration::from_secs(seconds)..Duration::from_millis(seconds * 1000 + 20)
    }

    #[tokio::test(start_paused = true)]
    async fn a_limit_is_put_off_by_all_parking_and_by_so_much_without_a_link() {
        for (cause, silent, seconds) in
            [(Cause::Parked, 2, 38), (Cause::Lost, 2, 38), (Cause::Parked, 9, 300), (Cause::Lost, 9, 50)]
        {
            let after = overdue_after(cause, Duration::from_secs(silent)).await;
            assert!(about(seconds).contains(&after), "{cause:?} for {silent} s: {after:?}");
        }
    }
}
