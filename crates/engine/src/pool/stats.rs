//! How a pool does: what was found in it, what was not, and what filling it takes.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::metrics::Pool;

/// Refills of which the median is taken: the last ones.
const REFILLS: usize = 64;

/// A pool, as operators see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolStatus {
    /// What waits.
    pub depth: usize,
    /// What should.
    pub target: usize,
    /// Claims that found something, since the start.
    pub hits: u64,
    /// Claims that did not.
    pub misses: u64,
    /// Median time it took to make one, of the last 64; none before the first.
    pub refill_p50: Option<Duration>,
}

/// What waits for those who come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pools {
    /// Whole sandboxes.
    pub warm: PoolStatus,
    /// VMM processes.
    pub vmms: PoolStatus,
    /// Network slots.
    pub slots: PoolStatus,
}

/// Counts for one pool, also in the metrics.
#[derive(Debug)]
pub(crate) struct Stats {
    pool: Pool,
    hits: AtomicU64,
    misses: AtomicU64,
    refills: Mutex<VecDeque<Duration>>,
}

impl Stats {
    pub(crate) fn of(pool: Pool) -> Self {
        Self { pool, hits: AtomicU64::new(0), misses: AtomicU64::new(0), refills: Mutex::default() }
    }

    /// Somebody asked for one, and one waited, or none did.
    pub(crate) fn claimed(&self, hit: bool) {
        self.pool.claimed(hit);
        let counter = if hit { &self.hits } else { &self.misses };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// One was made, or could not be.
    pub(crate) fn refilled(&self, took: Duration, ok: bool) {
        self.pool.refilled(took, ok);
        if !ok {
            return;
        }
        let mut refills = self.refills.lock().unwrap_or_else(PoisonError::into_inner);
        refills.truncate(REFILLS - 1);
        refills.push_front(took);
    }

    /// With what the pool itself knows.
    pub(crate) fn status(&self, depth: usize, target: usize) -> PoolStatus {
        let mut refills: Vec<_> =
            self.refills.lock().unwrap_or_else(PoisonError::into_inner).iter().copied().collect();
        refills.sort_unstable();
        PoolStatus {
            depth,
            target,
            hits: self.hits.load(Ordering::Relaxed),
            misses: self.misses.load(Ordering::Relaxed),
            refill_p50: refills.get(refills.len() / 2).copied(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_of_the_last_refills() {
        let stats = Stats::of(Pool::Warm);
        assert_eq!(stats.status(0, 2).refill_p50, None);
        (0..100).for_each(|ms| stats.refilled(Duration::from_millis(ms), true));
        stats.refilled(Duration::MAX, false);
        stats.claimed(true);
        stats.claimed(true);
        stats.claimed(false);
        let status = stats.status(1, 2);
        assert_eq!((status.depth, status.target, status.hits, status.misses), (1, 2, 2, 1));
        assert_eq!(status.refill_p50, Some(Duration::from_millis(36 + 32)));
    }
}
