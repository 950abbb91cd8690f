//! The composite score of the ComputeSDK leaderboard:
//! <https://github.com/computesdk/benchmarks/blob/master/METHODOLOGY.md>.

use crate::Percentiles;

/// At this time and above a percentile is worth nothing.
const CEILING_NS: f64 = 10e9;

/// From 0 to 100, higher is better: each of median, p95 and p99 is worth 100 × (1 − t / 10 s), at least 0;
/// they count for 60, 25 and 15 parts of 100; the sum is multiplied by the share of iterations that
/// succeeded (0 to 1). 0 if none did.
///
/// The percentiles are those of all successful iterations. The leaderboard drops the fastest and the slowest
/// 5 % before it takes them, which can only raise the two high ones.
#[must_use]
pub fn score(tti: &Percentiles, success_rate: f64) -> f64 {
    let (Some(p50), Some(p95), Some(p99)) = (tti.p50_ns, tti.p95_ns, tti.p99_ns) else { return 0.0 };
    let worth = |ns: u64| (100.0 * (1.0 - ns as f64 / CEILING_NS)).max(0.0);
    (0.60 * worth(p50) + 0.25 * worth(p95) + 0.15 * worth(p99)) * success_rate
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scored(ms: [u64; 3], success_rate: f64) -> f64 {
        let [p50_ns, p95_ns, p99_ns] = ms.map(|ms| Some(ms * 1_000_000));
        score(&Percentiles { p50_ns, p95_ns, p99_ns, ..Percentiles::default() }, success_rate)
    }

    #[test]
    fn the_leaderboards_own_examples() {
        let close = |score: f64, expected: f64| assert!((score - expected).abs() < 1e-9, "{score}");
        close(scored([200; 3], 1.0), 98.0);
        close(scored([4_000; 3], 1.0), 60.0);
        close(scored([4_000; 3], 0.5), 30.0);
        close(scored([1_000, 2_000, 4_000], 1.0), 0.60 * 90.0 + 0.25 * 80.0 + 0.15 * 60.0);
    }

    #[test]
    fn slow_tails_are_worth_nothing_and_not_less() {
        assert!((scored([5_000, 10_000, 90_000], 1.0) - 30.0).abs() < 1e-9);
        assert_eq!(scored([11_000; 3], 1.0), 0.0);
        assert_eq!(score(&Percentiles::default(), 0.0), 0.0);
    }
}
