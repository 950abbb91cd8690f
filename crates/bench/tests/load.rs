//! Several iterations at once, and other sandboxes beside them, against a scripted server.

mod support;

use std::time::Duration;

use manta_bench::{BenchArgs, BenchError, EndedEarly, Mode, Outcome, Stage, run, score};
use serde_json::json;
use support::{Answer, Script, Server};

async fn outcome_of(server: &Server, args: BenchArgs) -> Outcome {
    let outcome = run(args).await.expect("an outcome");
    let order: Vec<u32> = outcome.samples.iter().map(|sample| sample.iteration).collect();
    assert!(order.is_sorted(), "{order:?}");
    assert!(server.alive().is_empty(), "{:?}", server.alive());
    let rate = f64::from(outcome.iterations_success) / f64::from(outcome.iterations_requested);
    assert_eq!(outcome.success_rate, rate);
    let scored = outcome.ended_early.is_none().then(|| score(&outcome.tti, rate));
    assert_eq!(outcome.score, scored);
    outcome
}

#[tokio::test]
async fn a_burst_asks_for_all_at_once_after_warm_ups_one_by_one() {
    let server = Server::start(|route, n| match (route, n) {
        ("create", 3..) => Answer::Together(7),
        _ => Answer::Normal,
    })
    .await;
    let outcome = outcome_of(&server, BenchArgs { mode: Mode::Burst, ..server.args(5, 2) }).await;
    let calls = server.calls();
    let begin = "create exec destroy create exec destroy create create create create create exec";
    assert!(calls.starts_with(begin), "{calls}");
    assert_eq!((outcome.mode, outcome.concurrency, outcome.live), (Mode::Burst, 5, 0));
    assert_eq!((outcome.iterations_success, outcome.success_rate), (5, 1.0));
    let ready = outcome.samples.iter().map(|sample| sample.started_ns + sample.tti_ns + sample.destroy_ns);
    assert!(outcome.wall_ns >= ready.max().expect("samples"), "{outcome:?}");
}

#[tokio::test]
async fn no_more_than_concurrency_are_under_way_at_once() {
    for mode in [Mode::Sequential, Mode::Burst] {
        let server = Server::start(|route, _| match route {
            "exec" => Answer::Together(2),
            _ => Answer::Normal,
        })
        .await;
        let args = BenchArgs { mode, concurrency: Some(2), ..server.args(7, 0) };
        let outcome = outcome_of(&server, args).await;
        assert_eq!((outcome.iterations_success, outcome.concurrency, server.most()), (7, 2, 2));
    }
}

#[tokio::test]
async fn staggered_launches_are_200_ms_apart_and_wait_for_nobody() {
    let server = Server::start(|route, _| match route {
        "exec" => Answer::Together(3),
        _ => Answer::Normal,
    })
    .await;
    let outcome = outcome_of(&server, BenchArgs { mode: Mode::Staggered, ..server.args(3, 0) }).await;
    assert_eq!((outcome.iterations_success, server.most()), (3, 3));
    let starts: Vec<_> = outcome.samples.iter().map(|s| Duration::from_nanos(s.started_ns)).collect();
    // A launch that is late does not put off the next one by as much.
    let due = [0, 200, 400].map(Duration::from_millis);
    assert!(starts.iter().zip(due).all(|(start, due)| *start >= due), "{starts:?}");
}

#[tokio::test]
async fn a_failed_request_does_not_stop_the_others_of_a_burst() {
    let server = Server::start(|route, n| match (route, n) {
        ("create", 2) => Answer::Instead(503, json!({"error": "full", "code": "host_full"})),
        ("exec", 3) => Answer::Hang,
        _ => Answer::Normal,
    })
    .await;
    let mut args = BenchArgs { mode: Mode::Burst, ..server.args(5, 0) };
    args.common.timeout = Duration::from_millis(300);
    let outcome = outcome_of(&server, args).await;
    let mut stages: Vec<_> = outcome.failures.iter().map(|failure| failure.stage).collect();
    stages.sort_by_key(|stage| *stage == Stage::Exec);
    assert_eq!(stages, [Stage::Create, Stage::Exec]);
    assert_eq!((outcome.iterations_success, outcome.iterations_failed), (3, 2));
    assert_eq!((outcome.success_rate, outcome.ended_early, outcome.exit_status()), (0.6, None, 0));
}

#[tokio::test]
async fn a_server_that_goes_away_ends_the_launching() {
    let server = Server::start(|route, n| match (route, n) {
        ("destroy", 2) => Answer::Close,
        _ => Answer::Normal,
    })
    .await;
    let args = BenchArgs { mode: Mode::Burst, concurrency: Some(1), ..server.args(50, 0) };
    let outcome = outcome_of(&server, args).await;
    assert_eq!(outcome.ended_early, Some(EndedEarly::ServerUnreachable));
    assert_eq!((outcome.iterations_success, outcome.iterations_failed, outcome.exit_status()), (2, 1, 1));
    assert_eq!(outcome.score, None, "not a whole run");
}

#[tokio::test]
async fn other_sandboxes_are_made_before_and_destroyed_after_and_are_no_samples() {
    let server = Server::start(|_, _| Answer::Normal).await;
    let outcome = outcome_of(&server, BenchArgs { live: 2, ..server.args(2, 1) }).await;
    let loops = ["create exec destroy"; 3].join(" ");
    assert_eq!(server.calls(), format!("create create {loops} sandboxes destroy destroy"));
    assert_eq!((outcome.live, outcome.samples.len(), server.most()), (2, 2, 3));
    assert!(outcome.live_failures.is_empty(), "{:?}", outcome.live_failures);
}

#[tokio::test]
async fn without_the_other_sandboxes_there_is_no_run_and_none_is_left() {
    let server = Server::start(|route, n| match (route, n) {
        ("create", 3) => Answer::Instead(503, json!({"error": "full", "code": "host_full"})),
        _ => Answer::Normal,
    })
    .await;
    let error = run(BenchArgs { live: 5, ..server.args(2, 1) }).await.unwrap_err();
    assert!(matches!(error, BenchError::Others(_)), "{error:?}");
    assert_eq!(server.calls(), "create create create destroy destroy");
    assert!(server.alive().is_empty());
}

#[tokio::test]
async fn other_sandboxes_that_died_or_do_not_go_are_told() {
    let script: Script = |route, n| match (route, n) {
        ("sandboxes", _) => Answer::Instead(200, json!({"sandboxes": []})),
        ("destroy", 2) => Answer::Instead(500, json!({"error": "see the log", "code": "internal"})),
        _ => Answer::Normal,
    };
    let server = Server::start(script).await;
    let outcome = run(BenchArgs { live: 1, ..server.args(1, 0) }).await.unwrap();
    let [dead, left] = &outcome.live_failures[..] else { panic!("{outcome:?}") };
    assert_eq!(dead, "of the 1 other sandboxes 1 did not live to the end");
    let [id] = &server.alive()[..] else { panic!("{:?}", server.alive()) };
    assert_eq!(*left, format!("sandbox {id} may be left behind: POST /destroy: HTTP 500: see the log"));
}
