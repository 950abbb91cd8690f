//! Percentiles of raw samples, exact: no histogram, no interpolation.

use serde::Serialize;

/// Nearest-rank percentiles in nanoseconds: p of n sorted samples is the one at rank ⌈p/100 × n⌉,
/// counted from 1. Each is a value that was measured. All absent without samples.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Percentiles {
    /// The smallest sample.
    pub min_ns: Option<u64>,
    /// The median; of an even number of samples the lower one of the middle two.
    pub p50_ns: Option<u64>,
    /// 95 of 100 samples are at most this.
    pub p95_ns: Option<u64>,
    /// 99 of 100 samples are at most this; with fewer than 100 samples the greatest.
    pub p99_ns: Option<u64>,
    /// The greatest sample.
    pub max_ns: Option<u64>,
}

impl Percentiles {
    /// Of samples in any order, in nanoseconds.
    #[must_use]
    pub fn of(samples: impl IntoIterator<Item = u64>) -> Self {
        let mut sorted: Vec<u64> = samples.into_iter().collect();
        sorted.sort_unstable();
        let rank =
            |percent: usize| sorted.get((percent * sorted.len()).div_ceil(100).saturating_sub(1)).copied();
        Self {
            min_ns: sorted.first().copied(),
            p50_ns: rank(50),
            p95_ns: rank(95),
            p99_ns: rank(99),
            max_ns: sorted.last().copied(),
        }
    }

    /// With the names they have in JSON, in order.
    pub(crate) fn named(&self) -> [(&'static str, Option<u64>); 5] {
        [
            ("min_ns", self.min_ns),
            ("p50_ns", self.p50_ns),
            ("p95_ns", self.p95_ns),
            ("p99_ns", self.p99_ns),
            ("max_ns", self.max_ns),
        ]
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn all(of: Percentiles) -> Option<[u64; 5]> {
        Some([of.min_ns?, of.p50_ns?, of.p95_ns?, of.p99_ns?, of.max_ns?])
    }

    #[test]
    fn known_ranks() {
        assert_eq!(Percentiles::of([]), Percentiles::default());
        assert_eq!(all(Percentiles::of([7])), Some([7; 5]));
        assert_eq!(all(Percentiles::of([2, 1])), Some([1, 1, 2, 2, 2]));
        assert_eq!(all(Percentiles::of((1..=50).rev())), Some([1, 25, 48, 50, 50]));
        assert_eq!(all(Percentiles::of(1..=100)), Some([1, 50, 95, 99, 100]));
        assert_eq!(all(Percentiles::of(1..=200)), Some([1, 100, 190, 198, 200]));
    }

    proptest! {
        #[test]
        fn a_percentile_is_the_least_sample_that_enough_samples_do_not_exceed(
            samples in vec(0..1000_u64, 1..300),
        ) {
            let of = Percentiles::of(samples.iter().copied());
            for (percent, value) in [(50, of.p50_ns), (95, of.p95_ns), (99, of.p99_ns)] {
                let value = value.unwrap();
                prop_assert!(samples.contains(&value));
                let covered = |limit: u64, or_equal: bool| {
                    samples.iter().filter(|s| **s < limit || or_equal && **s == limit).count() * 100
                };
                prop_assert!(covered(value, true) >= percent * samples.len());
                prop_assert!(covered(value, false) < percent * samples.len());
            }
            prop_assert_eq!(of.min_ns, samples.iter().min().copied());
            prop_assert_eq!(of.max_ns, samples.iter().max().copied());
        }

        #[test]
        fn order_does_not_matter(samples in vec(any::<u64>(), 0..100).prop_shuffle()) {
            let mut sorted = samples.clone();
            sorted.sort_unstable();
            prop_assert_eq!(Percentiles::of(samples), Percentiles::of(sorted));
        }
    }
}
