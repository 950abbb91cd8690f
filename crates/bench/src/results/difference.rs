//! Whether one run differs from another in one of its times.

use super::bootstrap::{Estimate, median};
use super::recorded::{Recorded, RecordedSample};

/// With fewer samples on either side an interval says nothing.
pub(super) const ENOUGH: usize = 10;

/// One of the times of a sample.
pub(super) type Part = fn(&RecordedSample) -> u64;

/// What two runs say about one time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Difference {
    /// Of the medians, the second less the first.
    pub(super) estimate: Estimate,
    /// The same, in percent of the first.
    pub(super) percent: f64,
    pub(super) verdict: Verdict,
}

/// What can be said of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Faster,
    Slower,
    NotShown,
    TooFew,
}

impl Difference {
    pub(super) fn between(a: &Recorded, b: &Recorded, part: Part) -> Self {
        let (a, b) = (a.of(part), b.of(part));
        let estimate = Estimate::of_difference(&a, &b);
        let verdict = match () {
            () if a.len().min(b.len()) < ENOUGH => Verdict::TooFew,
            () if !estimate.is_not_0() => Verdict::NotShown,
            () if estimate.value < 0.0 => Verdict::Faster,
            () => Verdict::Slower,
        };
        Self { estimate, percent: 100.0 * estimate.value / median(&a), verdict }
    }
}

impl Verdict {
    pub(super) fn text(self) -> &'static str {
        match self {
            Self::Faster => "faster",
            Self::Slower => "slower",
            Self::NotShown => "no difference shown",
            Self::TooFew => "too few samples",
        }
    }
}
