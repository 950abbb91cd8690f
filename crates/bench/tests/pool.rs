//! `--pool-aware` against a scripted server: what is waited for, and what is said of hits and misses.

mod support;

use std::time::{Duration, Instant};

use manta_api::Pools;
use manta_bench::{BenchArgs, PoolArgs, PoolUse, run};
use serde_json::{Value, json};
use support::{Answer, Said, Server};

const HIT: &str = r#"pool;desc="hit", claim;dur=0.031, total;dur=2.6"#;
/// One VMM was lost, and another made.
const MISS: &str = r#"pool;desc="miss", spawn;dur=20, lost;dur=1, spawn;dur=7.5, total;dur=30"#;

fn aware(args: BenchArgs, pool_wait_s: u32) -> BenchArgs {
    let mut args = args;
    args.common.pool = PoolArgs { pool_aware: true, pool_wait_s };
    args
}

/// Three warm sandboxes are wanted, and so many wait.
fn waiting(depth: usize) -> Option<Value> {
    let none = json!({"depth": 0, "target": 0, "hits": 0, "misses": 0});
    let warm = json!({"depth": depth, "target": 3, "hits": 0, "misses": 0});
    Some(json!({"warm": warm, "vmms": none, "slots": none}))
}

/// The same, as the report has it.
fn typed(depth: usize) -> Option<Pools> {
    waiting(depth).map(|pools| serde_json::from_value(pools).expect("pools"))
}

#[tokio::test]
async fn hits_and_misses_are_counted_apart_and_garbled_headers_are_unknown() {
    let timing = |n| match n {
        // The warm-up is in no count.
        1 | 3 | 4 => Some(HIT),
        2 => Some(MISS),
        5 => Some(r#"pool;desc="prepared""#),
        6 => Some("pool;desc=\"hit\", total;dur=fast"),
        7 => Some(r#"pool;desc="lukewarm", total;dur=1"#),
        _ => None,
    };
    let server = Server::saying(Said { timing, ..Said::NOTHING }, |_, _| Answer::Normal).await;
    let outcome = run(aware(server.args(7, 1), 0)).await.unwrap();
    let pool = outcome.pool.as_ref().expect("a report");
    let counts = (pool.hits.count, pool.prepared.count, pool.misses.count, pool.unknown);
    assert_eq!(counts, (2, 1, 1, 3));
    use PoolUse::{Hit, Miss, Prepared, Unknown};
    let said: Vec<_> = outcome.samples.iter().map(|sample| sample.pool).collect();
    assert_eq!(said, [Miss, Hit, Hit, Prepared, Unknown, Unknown, Unknown].map(Some));
    let miss = &outcome.samples[0];
    assert_eq!((pool.misses.tti.p50_ns, pool.misses.begin.max_ns), (Some(miss.tti_ns), Some(miss.create_ns)));
    let stages =
        |names: &[(&str, u64)]| names.iter().map(|(name, ns)| ((*name).to_owned(), *ns)).collect::<Vec<_>>();
    assert_eq!(
        miss.server_timing.as_ref().unwrap().0,
        stages(&[("spawn", 27_500_000), ("lost", 1_000_000), ("total", 30_000_000)])
    );
    assert_eq!(pool.hits.server_timing_p50_ns.0, stages(&[("claim", 31_000), ("total", 2_600_000)]));
    assert_eq!(outcome.samples[4].server_timing, None, "nothing of a header that is wrong in part");
}

#[tokio::test]
async fn the_measured_runs_wait_for_a_full_pool_and_not_for_one_another() {
    // Asked by the session, then by the wait, until it is full; then once more, after the runs.
    let pools = |n: usize| waiting(n.saturating_sub(1).min(3));
    let server = Server::saying(Said { pools, ..Said::NOTHING }, |_, _| Answer::Normal).await;
    let outcome = run(aware(server.args(3, 1), 30)).await.unwrap();
    assert_eq!(outcome.conditions.pools_before, typed(3));
    assert_eq!(server.asked_for_health(), 5, "between the runs nobody asks");
    assert_eq!(outcome.iterations_success, 3);
}

#[tokio::test]
async fn a_pool_that_does_not_fill_is_waited_for_no_longer_than_said() {
    let server = Server::saying(Said { pools: |_| waiting(2), ..Said::NOTHING }, |_, _| Answer::Normal).await;
    let before = Instant::now();
    let outcome = run(aware(server.args(1, 0), 1)).await.unwrap();
    assert!(before.elapsed() >= Duration::from_secs(1));
    assert_eq!((outcome.iterations_success, outcome.conditions.pools_before), (1, typed(2)));
}

#[tokio::test]
async fn a_server_without_pools_is_not_waited_for() {
    let server = Server::start(|_, _| Answer::Normal).await;
    let outcome = run(aware(server.args(1, 0), 3600)).await.unwrap();
    assert_eq!((outcome.conditions.pools_before, outcome.conditions.pools_after), (None, None));
    assert_eq!(outcome.pool.map(|pool| pool.unknown), Some(1));
    assert_eq!(outcome.samples[0].pool, Some(PoolUse::Unknown));
}

#[tokio::test]
async fn without_the_flag_nothing_is_waited_for_and_the_pools_are_conditions() {
    let server = Server::saying(Said { timing: |_| Some(HIT), pools: waiting }, |_, _| Answer::Normal).await;
    let outcome = run(server.args(1, 0)).await.unwrap();
    assert_eq!((outcome.conditions.pools_before, outcome.conditions.pools_after), (typed(2), typed(3)));
    assert_eq!((outcome.pool, outcome.samples[0].pool), (None, Some(PoolUse::Hit)));
}
