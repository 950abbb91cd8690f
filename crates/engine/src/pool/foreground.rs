//! Whether somebody waits for something just now, so that work ahead of time can step back.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

/// Nobody has asked for anything for this long: longer than the pause between two requests of a caller that goes
/// on at once, shorter than anybody would notice.
const QUIET: Duration = Duration::from_millis(50);

/// Counts the requests under way.
#[derive(Debug)]
pub(crate) struct Foreground {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug)]
struct State {
    under_way: usize,
    last: Instant,
}

/// A request under way.
#[derive(Debug)]
pub(crate) struct Busy<'a>(&'a Foreground);

impl Default for Foreground {
    fn default() -> Self {
        Self { state: Mutex::new(State { under_way: 0, last: Instant::now() }), changed: Notify::new() }
    }
}

impl Foreground {
    /// A request that makes or ends a sandbox: under way until the guard is dropped.
    pub(crate) fn enter(&self) -> Busy<'_> {
        let mut state = self.state();
        state.under_way += 1;
        state.last = Instant::now();
        Busy(self)
    }

    /// A request that may take any time began or ended: only that is noticed.
    pub(crate) fn touch(&self) {
        self.state().last = Instant::now();
    }

    /// Completes when nobody has asked for anything for a moment; at once if that is so.
    pub(crate) async fn quiet(&self) {
        loop {
            let changed = self.changed.notified();
            let until = {
                let state = self.state();
                (state.under_way == 0).then(|| state.last + QUIET)
            };
            match until {
                Some(until) if until <= Instant::now() => return,
                Some(until) => tokio::time::sleep_until(until).await,
                None => changed.await,
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.under_way -= 1;
        state.last = Instant::now();
        if state.under_way == 0 {
            self.0.changed.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_is_quiet_a_moment_after_the_last_request() {
        let foreground = Foreground::default();
        let (one, other) = (foreground.enter(), foreground.enter());
        assert!(tokio::time::timeout(Duration::from_secs(60), foreground.quiet()).await.is_err());
        drop(one);
        assert!(tokio::time::timeout(Duration::from_secs(60), foreground.quiet()).await.is_err());
        let began = Instant::now();
        let (_, waited) = tokio::join!(async move { drop(other) }, async {
            foreground.quiet().await;
            began.elapsed()
        });
        assert!((QUIET..QUIET * 2).contains(&waited), "{waited:?}");
        foreground.touch();
        foreground.quiet().await;
        assert!(began.elapsed() >= QUIET * 2, "a command is a request, too");
    }
}
