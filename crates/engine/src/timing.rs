//! Where an operation's time goes: a [`Clock`] that is handed along and told each stage as it passes, and the
//! [`Timings`] that come of it, for the log, for metrics and for whoever asked. Knows no stage by name.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::error::EngineError;
use crate::metrics;

/// Room for the stages of the longest operation, so that there is one allocation.
const STAGES: usize = 8;

/// Which operation was timed; a label of its metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operation {
    Create,
    Restore,
    Exec,
    Destroy,
    Snapshot,
    /// A VMM started ahead of time.
    Prepare,
    /// A sandbox made ahead of time.
    Warm,
}

impl Operation {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Restore => "restore",
            Self::Exec => "exec",
            Self::Destroy => "destroy",
            Self::Snapshot => "snapshot",
            Self::Prepare => "prepare",
            Self::Warm => "warm",
        }
    }
}

/// How much of a new sandbox was there before it was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PoolUse {
    /// All of it: a sandbox that waited was claimed.
    Hit,
    /// A VMM that waited was claimed; the guest was restored in it.
    Prepared,
    /// Nothing: none waited.
    Miss,
}

impl PoolUse {
    /// As metrics and headers have it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Hit => "hit",
            Self::Prepared => "prepared",
            Self::Miss => "miss",
        }
    }
}

/// How long each stage of an operation took, in order; what of the total no stage has was spent in one that was
/// not completed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Timings {
    stages: Vec<(&'static str, Duration)>,
    pool: Option<PoolUse>,
    total: Duration,
}

impl Timings {
    /// Each stage and how long it took.
    #[must_use]
    pub fn stages(&self) -> &[(&'static str, Duration)] {
        &self.stages
    }

    /// For operations that claim from a pool, when they got so far: what they found there.
    #[must_use]
    pub fn pool(&self) -> Option<PoolUse> {
        self.pool
    }

    /// From the beginning to the end.
    #[must_use]
    pub fn total(&self) -> Duration {
        self.total
    }

    fn push(&mut self, stage: &'static str, took: Duration) {
        self.stages.push((stage, took));
    }
}

/// `network=0.1ms disk=1.2ms total=1.4ms`, as the log has it.
impl fmt::Display for Timings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (stage, took) in &self.stages {
            write!(f, "{stage}={:.1}ms ", took.as_secs_f64() * 1e3)?;
        }
        write!(f, "total={:.1}ms", self.total.as_secs_f64() * 1e3)
    }
}

/// An operation that ended, and where its time went, whatever came of it.
#[derive(Debug)]
pub struct Timed<T> {
    /// What came of it.
    pub outcome: Result<T, EngineError>,
    /// Where the time went.
    pub timings: Timings,
}

/// Times one operation. Clones are told of the same one, so that whoever does part of it can say so.
#[derive(Debug, Clone)]
pub(crate) struct Clock {
    began: Instant,
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    /// When the last stage ended.
    last: Instant,
    timings: Timings,
}

impl Clock {
    pub(crate) fn start() -> Self {
        let began = Instant::now();
        let timings = Timings { stages: Vec::with_capacity(STAGES), ..Timings::default() };
        Self { began, state: Arc::new(Mutex::new(State { last: began, timings })) }
    }

    /// The stage that just ended: it took all the time since the one before.
    pub(crate) fn passed(&self, stage: &'static str) {
        let mut state = self.state();
        let took = state.lap();
        state.timings.push(stage, took);
    }

    /// The stage that just ended, and one within it that somebody else timed, who is not believed more than there
    /// was time: the first gets what is left.
    pub(crate) fn passed_with(&self, stage: &'static str, within: &'static str, took: Duration) {
        let mut state = self.state();
        let both = state.lap();
        let took = took.min(both);
        state.timings.push(stage, both - took);
        state.timings.push(within, took);
    }

    /// The stages of a part that began when the last stage ended, and ended just now.
    pub(crate) fn include(&self, part: Timings) {
        let mut state = self.state();
        state.lap();
        state.timings.stages.extend(part.stages);
    }

    /// What was found in the pool; completes the stage `claim`.
    pub(crate) fn claimed(&self, pool: PoolUse) {
        self.passed("claim");
        self.state().timings.pool = Some(pool);
    }

    /// What is known so far.
    pub(crate) fn timings(&self) -> Timings {
        Timings { total: self.began.elapsed(), ..self.state().timings.clone() }
    }

    /// The end: goes into the metrics.
    pub(crate) fn finish<T>(self, operation: Operation, outcome: Result<T, EngineError>) -> Timed<T> {
        let timings = self.timings();
        metrics::completed(operation, &timings, outcome.is_ok());
        Timed { outcome, timings }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn lap(&mut self) -> Duration {
        let now = Instant::now();
        now.saturating_duration_since(std::mem::replace(&mut self.last, now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(timings: &Timings) -> Duration {
        timings.stages().iter().map(|(_, took)| *took).sum()
    }

    #[test]
    fn stages_follow_each_other_and_fit_into_the_total() {
        let clock = Clock::start();
        clock.passed("network");
        clock.clone().passed("disk");
        let part = Clock::start();
        part.passed("spawn");
        clock.include(part.timings());
        clock.claimed(PoolUse::Miss);
        let timed = clock.finish(Operation::Create, Ok(()));
        let names: Vec<_> = timed.timings.stages().iter().map(|(stage, _)| *stage).collect();
        assert_eq!(names, ["network", "disk", "spawn", "claim"], "a clone is told of the same operation");
        assert!(sum(&timed.timings) <= timed.timings.total());
        assert_eq!(timed.timings.pool(), Some(PoolUse::Miss));
        assert!(timed.outcome.is_ok());
    }

    #[test]
    fn a_stage_within_another_gets_no_more_than_there_was() {
        let clock = Clock::start();
        std::thread::sleep(Duration::from_millis(2));
        clock.passed_with("agent", "run", Duration::from_millis(1));
        clock.passed_with("agent", "run", Duration::MAX);
        let timings = clock.timings();
        let [(_, agent), (_, run), (_, nothing), (_, rest)] = timings.stages() else { panic!("{timings}") };
        assert!(*agent >= Duration::from_millis(1), "what was not the guest's is left: {timings}");
        assert_eq!((*run, *nothing), (Duration::from_millis(1), Duration::ZERO));
        assert!(*rest < Duration::from_secs(60), "a guest that lies about its time: {timings}");
        assert!(sum(&timings) <= timings.total());
    }

    #[test]
    fn the_log_has_stages_and_total_in_milliseconds() {
        let mut timings = Timings::default();
        timings.push("network", Duration::from_micros(120));
        timings.total = Duration::from_micros(3150);
        assert_eq!(timings.to_string(), "network=0.1ms total=3.1ms");
    }
}
