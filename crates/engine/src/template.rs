//! What new sandboxes begin with: the golden snapshot, as long as it is of use.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::snapshots::Stored;

/// Restores that may fail in a row before the snapshot is given up.
const FAILURES: u32 = 3;

/// The golden snapshot, or why there is none.
#[derive(Debug, Default)]
pub(crate) struct Template {
    golden: Mutex<Golden>,
    /// Restores that failed, since the last that succeeded.
    failures: AtomicU32,
}

#[derive(Debug, Default)]
enum Golden {
    /// None, or none yet.
    #[default]
    Missing,
    Ready(Arc<Stored>),
    /// None, for this reason.
    Failed(String),
}

impl Template {
    /// What to restore; none: boot.
    pub(crate) fn current(&self) -> Option<Arc<Stored>> {
        match &*self.golden() {
            Golden::Ready(stored) => Some(stored.clone()),
            Golden::Missing | Golden::Failed(_) => None,
        }
    }

    pub(crate) fn set(&self, stored: Arc<Stored>) {
        *self.golden() = Golden::Ready(stored);
    }

    /// No more of it: every sandbox boots.
    pub(crate) fn give_up(&self, reason: String) {
        *self.golden() = Golden::Failed(reason);
    }

    /// A restore succeeded, or failed; then why the snapshot should be given up, if it should.
    pub(crate) fn restored(&self, success: bool) -> Option<String> {
        if success {
            self.failures.store(0, Ordering::Relaxed);
            return None;
        }
        let failures = self.failures.fetch_add(1, Ordering::Relaxed) + 1;
        (failures >= FAILURES).then(|| format!("{FAILURES} restores in a row failed"))
    }

    /// What is wrong, and what to do about it.
    pub(crate) fn problem(&self) -> Option<String> {
        match &*self.golden() {
            Golden::Failed(reason) => Some(format!(
                "no golden snapshot, so every sandbox boots, in seconds: {reason}; restart the server to try again"
            )),
            Golden::Missing | Golden::Ready(_) => None,
        }
    }

    fn golden(&self) -> MutexGuard<'_, Golden> {
        self.golden.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
