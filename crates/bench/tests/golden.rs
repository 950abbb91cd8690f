//! The shape of the JSON object, which other programs read.

mod support;

use insta::assert_snapshot;
use manta_bench::{Client, Conditions, PoolArgs, restore, run};
use serde_json::json;
use support::{Answer, Said, Server};

#[tokio::test]
async fn the_json_object() {
    let server = Server::start(|route, n| match (route, n) {
        ("create", 1) => Answer::Instead(502, json!({"error": "no boot", "code": "boot_failed"})),
        ("exec", 2) => Answer::Instead(200, json!({"stdout": "", "stderr": "no\n", "exit_code": 1})),
        _ => Answer::Normal,
    })
    .await;
    let mut outcome = run(server.args(2, 1)).await.unwrap();
    pin(&mut outcome.conditions);
    assert_snapshot!(redact(&serde_json::to_string_pretty(&outcome).unwrap()));
}

#[tokio::test]
async fn the_json_object_of_restores() {
    let server = Server::start(|route, n| match (route, n) {
        ("restore", 1) => Answer::Instead(502, json!({"error": "no boot", "code": "boot_failed"})),
        ("exec", 3) => Answer::Instead(200, json!({"stdout": "", "stderr": "no\n", "exit_code": 1})),
        ("delete", 1) => Answer::Instead(500, json!({"error": "see the log", "code": "internal"})),
        _ => Answer::Normal,
    })
    .await;
    let mut outcome = restore::run(server.restore_args(2, 1)).await.unwrap();
    pin(&mut outcome.conditions);
    assert_snapshot!(redact(&serde_json::to_string_pretty(&outcome).unwrap()));
}

#[tokio::test]
async fn the_json_object_with_hits_and_misses_apart() {
    const SAID: Said = Said {
        timing: |n| match n {
            1 => Some(r#"pool;desc="miss", spawn;dur=27.5, total;dur=30"#),
            2 => Some(r#"pool;desc="hit", claim;dur=0.031, total;dur=2.6"#),
            _ => None,
        },
        pools: |n| {
            let none = json!({"depth": 0, "target": 0, "hits": 0, "misses": 0});
            let warm = json!({"depth": n, "target": 3, "hits": 10, "misses": 2});
            Some(json!({"warm": warm, "vmms": none, "slots": none}))
        },
    };
    const POOL: PoolArgs = PoolArgs { pool_aware: true, pool_wait_s: 10 };
    let server = Server::saying(SAID, |_, _| Answer::Normal).await;
    let mut args = server.args(3, 0);
    args.common.pool = POOL;
    let mut outcome = run(args).await.unwrap();
    pin(&mut outcome.conditions);
    let server = Server::saying(SAID, |_, _| Answer::Normal).await;
    let mut args = server.restore_args(2, 0);
    args.common.pool = POOL;
    let restored = restore::run(args).await.unwrap();
    assert_eq!(restored.pool.map(|pool| (pool.hits.count, pool.misses.count)), Some((1, 1)));
    let json = [serde_json::to_string_pretty(&outcome), serde_json::to_string_pretty(&restored.samples)];
    assert_snapshot!(json.map(|json| redact(&json.unwrap())).join("\n"));
}

/// Where and when the golden files were measured.
fn pin(conditions: &mut Conditions) {
    conditions.started = "2026-11-23T12:00:00Z".to_owned();
    conditions.started_unix_s = 1_795_435_200;
    conditions.endpoint = "http://localhost:8080".to_owned();
    conditions.client = Client {
        version: "0.1.0".to_owned(),
        cpu: Some("a cpu".to_owned()),
        cpus: Some(2),
        cpu_governor: None,
        mem_mib: Some(24038),
        kernel: Some("6.18".to_owned()),
        load_average_start: Some([0.25, 0.5, 1.0]),
        load_average_end: Some([0.75, 0.5, 1.0]),
    };
}

/// Measured times and what comes of them, of which only the presence can be golden.
fn redact(json: &str) -> String {
    let line = |line: &str| match line.split_once("_ns\": ") {
        Some((key, number))
            if key.trim() != "\"timeout" && number.starts_with(|c: char| c.is_ascii_digit()) =>
        {
            format!("{key}_ns\": [ns]{}", number.trim_start_matches(|c: char| c.is_ascii_digit()))
        }
        _ if line.starts_with("  \"score\": ") => "  \"score\": [score],".to_owned(),
        _ => line.to_owned(),
    };
    json.lines().map(line).collect::<Vec<_>>().join("\n")
}

#[tokio::test]
async fn without_a_success_the_percentiles_are_null_and_not_0() {
    let server = Server::start(|route, _| match route {
        "create" => Answer::Instead(502, json!({"error": "no boot", "code": "boot_failed"})),
        _ => Answer::Normal,
    })
    .await;
    let outcome = run(server.args(1, 0)).await.unwrap();
    let json = serde_json::to_string(&outcome).unwrap();
    let head = json.split(r#","failures""#).next().unwrap();
    assert_snapshot!(head.replace(",\"", ",\n\""));

    let server = Server::start(|route, _| match route {
        "restore" => Answer::Instead(502, json!({"error": "no boot", "code": "boot_failed"})),
        _ => Answer::Normal,
    })
    .await;
    let outcome = restore::run(server.restore_args(1, 0)).await.unwrap();
    let json = serde_json::to_value(&outcome).unwrap();
    for percentile in ["min", "p50", "p95", "p99", "max"] {
        for what in ["restore_only", "restore_tti"] {
            let key = format!("{what}_{percentile}_ns");
            assert_eq!(json.get(&key), Some(&serde_json::Value::Null), "{key}");
        }
    }
}
