//! How long a sandbox lives: what may be asked for, and the one timer that ends it, on the monotonic clock.

use std::pin::Pin;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::{Instant, Sleep, sleep_until};

use crate::config::EngineConfig;
use crate::error::EngineError;

/// Longest lifetime that can be asked for, or set, where there is no other limit: a year.
pub const LONGEST_LIFETIME: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// The lifetime of one sandbox; without a limit at first.
#[derive(Debug, Default)]
pub(crate) struct Lifetime(Option<Pin<Box<Sleep>>>);

impl Lifetime {
    /// Lets it end after `limit`, from now on; says when that is, milliseconds since 1970.
    pub(crate) fn set(&mut self, limit: Duration) -> u64 {
        let end = Instant::now() + limit;
        match &mut self.0 {
            Some(timer) => timer.as_mut().reset(end),
            None => self.0 = Some(Box::pin(sleep_until(end))),
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from((now + limit).as_millis()).unwrap_or(u64::MAX)
    }

    /// Completes when it has ended.
    pub(crate) async fn ended(&mut self) {
        match &mut self.0 {
            Some(timer) => timer.as_mut().await,
            None => std::future::pending().await,
        }
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.0.as_ref().is_some_and(|timer| timer.is_elapsed())
    }
}

/// The lifetime of a sandbox whose creator asked for `wanted`; none: without a limit.
///
/// # Errors
/// [`EngineError::BadRequest`] when it is out of range.
pub(crate) fn of_new(
    wanted: Option<Duration>,
    config: &EngineConfig,
) -> Result<Option<Duration>, EngineError> {
    judge(wanted, config.sandbox_timeout, config.sandbox_timeout_max)
}

/// The same for a sandbox that exists.
///
/// # Errors
/// As [`of_new`].
pub(crate) fn of_extended(wanted: Duration, config: &EngineConfig) -> Result<Duration, EngineError> {
    in_range(wanted, config.sandbox_timeout_max)
}

fn judge(
    wanted: Option<Duration>,
    default: Option<Duration>,
    max: Option<Duration>,
) -> Result<Option<Duration>, EngineError> {
    match wanted {
        Some(wanted) => in_range(wanted, max).map(Some),
        // None lives longer than the longest allowed, whether or not it asked for a lifetime.
        None => Ok(default.or(max)),
    }
}

fn in_range(wanted: Duration, max: Option<Duration>) -> Result<Duration, EngineError> {
    let max = max.unwrap_or(LONGEST_LIFETIME);
    if wanted.is_zero() || wanted > max {
        return Err(EngineError::BadRequest(format!("timeout_s must be 1 to {}", max.as_secs())));
    }
    Ok(wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: fn(u64) -> Duration = Duration::from_secs;

    #[test]
    fn what_may_be_asked_for_is_a_full_table() {
        for (wanted, default, max, expected) in [
            (None, None, None, Ok(None)),
            (None, Some(5), None, Ok(Some(5))),
            (None, Some(5), Some(9), Ok(Some(5))),
            (None, None, Some(9), Ok(Some(9))),
            (Some(1), None, None, Ok(Some(1))),
            (Some(7), Some(5), Some(9), Ok(Some(7))),
            (Some(9), None, Some(9), Ok(Some(9))),
            (Some(10), None, Some(9), Err("timeout_s must be 1 to 9")),
            (Some(0), None, Some(9), Err("timeout_s must be 1 to 9")),
            (Some(0), None, None, Err("timeout_s must be 1 to 31536000")),
            (Some(u64::MAX), None, None, Err("timeout_s must be 1 to 31536000")),
        ] {
            let judged = judge(wanted.map(S), default.map(S), max.map(S)).map_err(|error| error.to_string());
            assert_eq!(
                judged,
                expected.map(|s| s.map(S)).map_err(str::to_owned),
                "{wanted:?} {default:?} {max:?}"
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn it_ends_when_it_was_last_told_to() {
        let mut lifetime = Lifetime::default();
        assert!(tokio::time::timeout(S(1_000_000), lifetime.ended()).await.is_err(), "without a limit");
        let began = Instant::now();
        lifetime.set(S(2));
        assert!(tokio::time::timeout(S(1), lifetime.ended()).await.is_err());
        lifetime.set(S(5));
        lifetime.ended().await;
        assert_eq!((began.elapsed().as_secs(), lifetime.has_ended()), (6, true));
        lifetime.set(LONGEST_LIFETIME);
        assert!(!lifetime.has_ended());
        lifetime.set(S(1));
        lifetime.ended().await;
        assert_eq!(began.elapsed().as_secs(), 7, "sooner than before");
    }
}
