//! The `Server-Timing` header (W3C Server Timing): where the time of one request went, for the client that waited
//! for it. Durations are milliseconds.

use std::fmt::Write as _;
use std::time::Duration;

use axum::http::{HeaderName, HeaderValue};
use axum::response::{IntoResponseParts, ResponseParts};
use manta_engine::{EngineError, PoolUse, Timed, Timings};

use crate::error::ApiError;

const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");

/// A part of an answer: its header tells where the time went. Nothing is told when nothing is known.
#[derive(Debug, Clone)]
pub(crate) struct ServerTiming(Timings);

impl From<Timings> for ServerTiming {
    fn from(timings: Timings) -> Self {
        Self(timings)
    }
}

impl ServerTiming {
    /// What came of an operation, with its timing beside it or in the error; `explain` makes the public error.
    pub(crate) fn split<T>(
        timed: Timed<T>,
        explain: impl FnOnce(EngineError) -> ApiError,
    ) -> Result<(Self, T), ApiError> {
        let timing = Self(timed.timings);
        match timed.outcome {
            Ok(done) => Ok((timing, done)),
            Err(error) => Err(explain(error).timed(timing)),
        }
    }

    fn value(&self) -> Option<HeaderValue> {
        if self.0.stages().is_empty() {
            return None;
        }
        HeaderValue::try_from(text(self.0.pool(), self.0.stages(), self.0.total())).ok()
    }
}

impl IntoResponseParts for ServerTiming {
    type Error = std::convert::Infallible;

    fn into_response_parts(self, mut parts: ResponseParts) -> Result<ResponseParts, Self::Error> {
        if let Some(value) = self.value() {
            parts.headers_mut().insert(SERVER_TIMING, value);
        }
        Ok(parts)
    }
}

/// `pool;desc="miss", network;dur=0.112, disk;dur=1.204, total;dur=1.391`.
fn text(pool: Option<PoolUse>, stages: &[(&str, Duration)], total: Duration) -> String {
    let mut text = String::with_capacity(24 * (stages.len() + 2));
    if let Some(pool) = pool {
        let _ = write!(text, "pool;desc=\"{}\", ", pool.as_str());
    }
    for (stage, took) in stages {
        let _ = write!(text, "{stage};dur={}, ", Millis(*took));
    }
    let _ = write!(text, "total;dur={}", Millis(total));
    text
}

/// Down to whole microseconds, so that rounding makes no sum of stages longer than the total.
struct Millis(Duration);

impl std::fmt::Display for Millis {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let micros = self.0.as_micros();
        write!(f, "{}.{:03}", micros / 1000, micros % 1000)
    }
}

#[cfg(test)]
mod tests {
    use axum::response::IntoResponse;

    use super::*;

    #[test]
    fn the_pool_comes_first_then_stages_in_order_then_the_total() {
        let stages = [("network", Duration::from_nanos(112_999)), ("adopt", Duration::from_micros(40_200))];
        assert_eq!(
            text(Some(PoolUse::Prepared), &stages, Duration::from_millis(73)),
            "pool;desc=\"prepared\", network;dur=0.112, adopt;dur=40.200, total;dur=73.000"
        );
        assert_eq!(text(None, &stages[..1], Duration::ZERO), "network;dur=0.112, total;dur=0.000");
    }

    #[test]
    fn rounding_makes_no_sum_longer_than_the_total() {
        let stages = [("one", Duration::from_nanos(999)), ("two", Duration::from_nanos(999))];
        let total = Duration::from_nanos(2_000);
        assert_eq!(text(None, &stages, total), "one;dur=0.000, two;dur=0.000, total;dur=0.002");
    }

    #[test]
    fn where_nothing_is_known_there_is_no_header() {
        let answer = (ServerTiming::from(Timings::default()), "done").into_response();
        assert!(!answer.headers().contains_key(SERVER_TIMING));
    }
}
