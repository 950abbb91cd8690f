//! Medians and differences of medians, with confidence intervals by bootstrap.
//!
//! The percentile bootstrap: samples are drawn from the samples, with replacement, many times; the interval
//! holds the middle 95 % of what the drawn ones give. The draws come from a fixed seed, so that the same
//! files give the same interval.

use crate::Percentiles;

/// How often samples are drawn.
pub(super) const RESAMPLES: usize = 10_000;
const SEED: u64 = 0x006d_616e_7461;

/// A value and its 95 % confidence interval, nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Estimate {
    pub(super) value: f64,
    pub(super) low: f64,
    pub(super) high: f64,
}

impl Estimate {
    /// Of the median of samples, of which there must be some.
    pub(super) fn of_median(samples: &[u64]) -> Self {
        Self::drawn(RESAMPLES, |draws| draws.median(samples), median(samples))
    }

    /// Of the median of `b` less that of `a`; there must be samples in both.
    pub(super) fn of_difference(a: &[u64], b: &[u64]) -> Self {
        Self::difference(RESAMPLES, a, b)
    }

    fn difference(resamples: usize, a: &[u64], b: &[u64]) -> Self {
        Self::drawn(resamples, |draws| draws.median(b) - draws.median(a), median(b) - median(a))
    }

    fn drawn(resamples: usize, draw: impl Fn(&mut Draws) -> f64, value: f64) -> Self {
        let mut draws = Draws::new();
        let mut drawn: Vec<f64> = (0..resamples).map(|_| draw(&mut draws)).collect();
        drawn.sort_unstable_by(f64::total_cmp);
        let outside = resamples / 40;
        Self { value, low: drawn[outside], high: drawn[resamples - 1 - outside] }
    }

    /// Whether 0 is not in the interval.
    pub(super) fn is_not_0(&self) -> bool {
        self.low > 0.0 || self.high < 0.0
    }
}

/// That of the result files.
pub(super) fn median(samples: &[u64]) -> f64 {
    Percentiles::of(samples.iter().copied()).p50_ns.unwrap_or_default() as f64
}

/// Random draws: SplitMix64.
struct Draws {
    state: u64,
    drawn: Vec<u64>,
}

impl Draws {
    fn new() -> Self {
        Self { state: SEED, drawn: Vec::new() }
    }

    /// The median of as many samples, drawn from them with replacement.
    fn median(&mut self, samples: &[u64]) -> f64 {
        let mut drawn = std::mem::take(&mut self.drawn);
        drawn.clear();
        drawn.extend((0..samples.len()).map(|_| samples[self.below(samples.len())]));
        let (_, median, _) = drawn.select_nth_unstable((samples.len() - 1) / 2);
        let median = *median as f64;
        self.drawn = drawn;
        median
    }

    fn below(&mut self, limit: usize) -> usize {
        ((u128::from(self.next()) * limit as u128) >> 64) as usize
    }

    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Boot times as they are found: most alike, a long tail. Different for each seed.
    fn run(seed: u64, count: usize, shift: u64) -> Vec<u64> {
        let mut draws = Draws { state: seed, drawn: Vec::new() };
        let mut one = || {
            let tail = if draws.below(10) == 0 { draws.below(200_000) } else { 0 };
            800_000 + shift + (0..4).map(|_| draws.below(20_000)).sum::<usize>() as u64 + tail as u64
        };
        (0..count).map(|_| one()).collect()
    }

    #[test]
    fn the_generator_is_the_published_one() {
        let mut draws = Draws { state: 1_234_567, drawn: Vec::new() };
        let first = [draws.next(), draws.next(), draws.next()];
        assert_eq!(first, [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]);
    }

    #[test]
    fn the_same_samples_give_the_same_interval() {
        let (a, b) = (run(1, 50, 0), run(2, 50, 3_000));
        assert_eq!(Estimate::of_difference(&a, &b), Estimate::of_difference(&a, &b));
        let Estimate { value, low, high } = Estimate::of_median(&a);
        assert!(low <= value && value <= high && low < high, "{low} {value} {high}");
    }

    #[test]
    fn samples_that_are_all_alike_have_a_point_for_an_interval() {
        let same = Estimate::of_difference(&[5; 20], &[5; 20]);
        assert_eq!(same, Estimate { value: 0.0, low: 0.0, high: 0.0 });
        assert!(!same.is_not_0());
        assert!(Estimate::of_difference(&[5; 20], &[4; 20]).is_not_0());
    }

    /// What the method promises: of runs that do not differ about one pair in 20 seems to.
    #[test]
    fn equal_runs_seldom_seem_to_differ_and_unequal_ones_mostly_do() {
        for count in [10, 20, 50] {
            let shown = |shift| {
                let pair = |n: u64| {
                    Estimate::difference(400, &run(2 * n + 1, count, 0), &run(2 * n + 2, count, shift))
                };
                (0..60).filter(|n| pair(*n * 7_919).is_not_0()).count()
            };
            assert!(shown(0) <= 6, "{count} samples: {} of 60", shown(0));
            assert!(shown(40_000) >= 54, "{count} samples: {} of 60", shown(40_000));
        }
    }
}
