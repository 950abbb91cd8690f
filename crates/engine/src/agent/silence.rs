//! How long a session could not be heard: while it was parked or had no link. What runs in the guest runs on
//! meanwhile, and whoever waits for it must have as much more patience.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

#[derive(Debug, Default)]
pub(super) struct Silence(Mutex<Spans>);

#[derive(Debug, Default)]
struct Spans {
    past: Duration,
    since: Option<Instant>,
}

impl Silence {
    /// It begins now, unless it has begun before.
    pub(super) fn begin(&self) {
        self.lock().since.get_or_insert_with(Instant::now);
    }

    pub(super) fn end(&self) {
        let mut spans = self.lock();
        if let Some(since) = spans.since.take() {
            spans.past += since.elapsed();
        }
    }

    /// In all, up to now.
    pub(super) fn so_far(&self) -> Duration {
        let spans = self.lock();
        spans.past + spans.since.map_or(Duration::ZERO, |since| since.elapsed())
    }

    fn lock(&self) -> MutexGuard<'_, Spans> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
