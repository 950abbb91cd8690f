//! The measuring loop against a scripted server: what is called, counted, measured and explained.

mod support;

use std::time::{Duration, Instant};

use manta_api::ErrorCode;
use manta_bench::{BenchArgs, BenchError, EndedEarly, Outcome, Percentiles, Stage, run};
use serde_json::json;
use support::{Answer, Script, Server};
use tokio::net::{TcpListener, TcpSocket};

async fn outcome_of(server: &Server, iterations: u32, warmup: u32) -> Outcome {
    let outcome = run(server.args(iterations, warmup)).await.expect("an outcome");
    assert_eq!(outcome.iterations_requested, iterations);
    assert_eq!(outcome.iterations_success as usize, outcome.samples.len());
    for sample in &outcome.samples {
        assert_eq!(sample.create_ns + sample.exec_ns, sample.tti_ns);
        assert!(sample.create_ns > 0 && sample.exec_ns > 0 && sample.destroy_ns > 0, "{sample:?}");
    }
    assert_eq!(outcome.tti, Percentiles::of(outcome.samples.iter().map(|s| s.tti_ns)));
    assert_eq!(outcome.create, Percentiles::of(outcome.samples.iter().map(|s| s.create_ns)));
    assert_eq!(outcome.exec, Percentiles::of(outcome.samples.iter().map(|s| s.exec_ns)));
    assert_eq!(outcome.destroy, Percentiles::of(outcome.samples.iter().map(|s| s.destroy_ns)));
    outcome
}

fn failures(outcome: &Outcome) -> Vec<(u32, Stage, &str)> {
    outcome.failures.iter().map(|f| (f.iteration, f.stage, f.error.as_str())).collect()
}

#[tokio::test]
async fn each_iteration_creates_runs_and_destroys_and_warm_ups_are_not_recorded() {
    let server = Server::start(|_, _| Answer::Normal).await;
    let outcome = outcome_of(&server, 3, 2).await;
    assert_eq!(server.calls(), ["create exec destroy"; 5].join(" "));
    assert_eq!(outcome.samples.iter().map(|s| s.iteration).collect::<Vec<_>>(), [1, 2, 3]);
    assert!(outcome.failures.is_empty() && outcome.warmup_failures.is_empty());
    assert_eq!((outcome.iterations_failed, outcome.ended_early, outcome.exit_status()), (0, None, 0));
}

#[tokio::test]
async fn the_timer_covers_create_and_exec_and_not_destroy() {
    const CREATE: Duration = Duration::from_millis(30);
    const EXEC: Duration = Duration::from_millis(20);
    const DESTROY: Duration = Duration::from_millis(100);
    let server = Server::start(|route, _| match route {
        "create" => Answer::Slow(CREATE),
        "exec" => Answer::Slow(EXEC),
        _ => Answer::Slow(DESTROY),
    })
    .await;
    let before = Instant::now();
    let outcome = outcome_of(&server, 3, 0).await;
    let elapsed = before.elapsed();
    for sample in &outcome.samples {
        assert!(Duration::from_nanos(sample.create_ns) >= CREATE, "{sample:?}");
        assert!(Duration::from_nanos(sample.exec_ns) >= EXEC, "{sample:?}");
        assert!(Duration::from_nanos(sample.destroy_ns) >= DESTROY, "{sample:?}");
    }
    // Were anything timed twice, the parts would be more than the whole.
    let timed: u64 = outcome.samples.iter().map(|s| s.tti_ns + s.destroy_ns).sum();
    assert!(Duration::from_nanos(timed) < elapsed, "{timed} ns within {elapsed:?}");
}

#[tokio::test]
async fn a_failed_create_is_counted_and_there_is_nothing_to_destroy() {
    let server = Server::start(|route, n| match (route, n) {
        ("create", 2) => {
            Answer::Instead(503, json!({"error": "all 8 places are taken", "code": "host_full"}))
        }
        _ => Answer::Normal,
    })
    .await;
    let outcome = outcome_of(&server, 3, 0).await;
    assert_eq!(server.calls(), "create exec destroy create create exec destroy");
    let error = "POST /create: HTTP 503: all 8 places are taken";
    assert_eq!(failures(&outcome), [(2, Stage::Create, error)]);
    assert_eq!(outcome.failures[0].code, Some(ErrorCode::HostFull));
    assert_eq!(outcome.failures[0].sandbox_id, None);
    assert_eq!(outcome.samples.iter().map(|s| s.iteration).collect::<Vec<_>>(), [1, 3]);
    assert_eq!((outcome.iterations_failed, outcome.exit_status()), (1, 0));
}

#[tokio::test]
async fn a_sandbox_whose_exec_failed_is_destroyed() {
    let server = Server::start(|route, n| match (route, n) {
        ("exec", 1) => Answer::Instead(502, json!({"error": "the guest is gone", "code": "guest_gone"})),
        _ => Answer::Normal,
    })
    .await;
    let outcome = outcome_of(&server, 2, 0).await;
    assert_eq!(server.calls(), "create exec destroy create exec destroy");
    assert_eq!(failures(&outcome), [(1, Stage::Exec, "POST /exec: HTTP 502: the guest is gone")]);
    assert!(outcome.failures[0].sandbox_id.is_some());
    assert_eq!(outcome.iterations_success, 1);
    assert!(server.alive().is_empty());
}

#[tokio::test]
async fn an_exit_code_other_than_0_is_a_failure_with_what_the_command_said() {
    let server = Server::start(|route, _| match route {
        "exec" => Answer::Instead(200, json!({"stdout": "", "stderr": "sh: no\n", "exit_code": 127})),
        _ => Answer::Normal,
    })
    .await;
    let outcome = outcome_of(&server, 2, 0).await;
    let error = r#"the command exited with 127, saying "sh: no\n""#;
    assert_eq!(failures(&outcome), [(1, Stage::Exec, error), (2, Stage::Exec, error)]);
    assert!(server.alive().is_empty());
    assert_eq!((outcome.iterations_success, outcome.tti), (0, Percentiles::default()));
    assert_eq!((outcome.ended_early, outcome.exit_status()), (None, 1));
}

#[tokio::test]
async fn lost_output_of_the_default_command_is_a_failure() {
    let script: Script = |route, _| match route {
        "exec" => Answer::Instead(200, json!({"stdout": "", "stderr": "", "exit_code": 0})),
        _ => Answer::Normal,
    };
    let server = Server::start(script).await;
    let outcome = outcome_of(&server, 1, 0).await;
    let error = r#"the command printed "" and not "benchmark\n""#;
    assert_eq!(failures(&outcome), [(1, Stage::Exec, error)]);

    let outcome = run(BenchArgs { cmd: "true".to_owned(), ..server.args(1, 0) }).await.unwrap();
    assert_eq!(outcome.iterations_success, 1, "what another command prints is its own affair");
}

#[tokio::test]
async fn a_failed_destroy_fails_the_iteration_and_names_the_sandbox() {
    let server = Server::start(|route, n| match (route, n) {
        ("destroy", 1) => Answer::Instead(500, json!({"error": "see the log", "code": "internal"})),
        _ => Answer::Normal,
    })
    .await;
    let outcome = outcome_of(&server, 2, 0).await;
    assert_eq!(failures(&outcome), [(1, Stage::Destroy, "POST /destroy: HTTP 500: see the log")]);
    let named: Vec<String> =
        outcome.failures.iter().filter_map(|f| Some(f.sandbox_id.as_ref()?.to_string())).collect();
    assert_eq!(named, server.alive());
    assert_eq!((outcome.iterations_success, outcome.iterations_failed), (1, 1));
}

#[tokio::test]
async fn an_iteration_that_fails_twice_counts_once() {
    let server = Server::start(|route, _| match route {
        "create" => Answer::Normal,
        _ => Answer::Instead(500, json!({"error": "see the log", "code": "internal"})),
    })
    .await;
    let outcome = outcome_of(&server, 2, 0).await;
    let stages: Vec<_> = outcome.failures.iter().map(|f| (f.iteration, f.stage)).collect();
    assert_eq!(stages, [(1, Stage::Exec), (1, Stage::Destroy), (2, Stage::Exec), (2, Stage::Destroy)]);
    assert_eq!(outcome.iterations_failed, 2);
}

#[tokio::test]
async fn an_exec_without_an_answer_ends_at_the_time_limit_and_its_sandbox_is_destroyed() {
    let server = Server::start(|route, n| match (route, n) {
        ("exec", 1) => Answer::Hang,
        _ => Answer::Normal,
    })
    .await;
    let mut args = server.args(2, 0);
    args.common.timeout = Duration::from_millis(300);
    let outcome = run(args).await.unwrap();
    assert_eq!(failures(&outcome), [(1, Stage::Exec, "POST /exec: no complete answer within 300ms")]);
    assert_eq!(outcome.iterations_success, 1);
    assert!(server.alive().is_empty());
}

#[tokio::test]
async fn a_create_without_an_answer_may_leave_a_sandbox_and_a_refused_one_does_not() {
    let server = Server::start(|route, n| match (route, n) {
        ("create", 1) => Answer::Hang,
        ("create", 2) => Answer::Instead(503, json!({"error": "full", "code": "host_full"})),
        ("create", 3) => Answer::Instead(200, json!({"sandbox_id": "not one of ours"})),
        _ => Answer::Normal,
    })
    .await;
    let mut args = server.args(4, 0);
    args.common.timeout = Duration::from_millis(300);
    let outcome = run(args).await.unwrap();
    let left: Vec<_> = outcome.failures.iter().map(|f| (f.iteration, f.may_leave_a_sandbox)).collect();
    assert_eq!(left, [(1, true), (2, false), (3, true)]);
    assert_eq!(outcome.iterations_success, 1);
}

#[tokio::test]
async fn a_failed_warm_up_is_reported_and_does_not_end_the_run() {
    let server = Server::start(|route, n| match (route, n) {
        ("create", 1) => Answer::Instead(502, json!({"error": "no boot", "code": "boot_failed"})),
        _ => Answer::Normal,
    })
    .await;
    let outcome = outcome_of(&server, 2, 2).await;
    assert_eq!(outcome.warmup_failures.len(), 1);
    assert_eq!((outcome.warmup_failures[0].iteration, outcome.warmup_failures[0].stage), (1, Stage::Create));
    assert!(outcome.failures.is_empty());
    assert_eq!((outcome.iterations_success, outcome.exit_status()), (2, 0));
}

#[tokio::test]
async fn a_server_that_is_not_there_is_one_error() {
    // Bound, so that nobody else gets the port, and not listening.
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(([127, 0, 0, 1], 0).into()).unwrap();
    let endpoint = format!("http://{}", socket.local_addr().unwrap());
    let server = Server::start(|_, _| Answer::Normal).await;
    let mut args = server.args(50, 5);
    args.common.endpoint = endpoint.clone();
    let error = run(args).await.unwrap_err();
    assert!(matches!(error, BenchError::Unreachable { .. }), "{error:?}");
    assert_eq!(error.to_string(), format!("no server answers at {endpoint}"));
    assert!(error.advice().is_some_and(|advice| advice.contains("`manta server`")));
}

#[tokio::test]
async fn a_server_that_goes_away_ends_the_run_with_what_was_measured() {
    let server = Server::start(|route, n| match (route, n) {
        ("destroy", 2) => Answer::Close,
        _ => Answer::Normal,
    })
    .await;
    let outcome = outcome_of(&server, 50, 0).await;
    assert_eq!(outcome.ended_early, Some(EndedEarly::ServerUnreachable));
    assert_eq!(outcome.exit_status(), 1);
    assert_eq!(server.calls(), "create exec destroy create exec destroy");
    assert_eq!((outcome.iterations_success, outcome.iterations_failed), (2, 1));
    assert_eq!((outcome.failures[0].iteration, outcome.failures[0].stage), (3, Stage::Create));
}

#[tokio::test]
async fn something_else_on_the_port_is_told_apart() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = Server::start(|_, _| Answer::Normal).await;
    let mut args = server.args(1, 0);
    args.common.endpoint = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, axum::Router::new()).await });
    let error = run(args.clone()).await.unwrap_err();
    assert!(matches!(error, BenchError::Health { .. }), "{error:?}");

    args.common.endpoint = "localhost".to_owned();
    let error = run(args).await.unwrap_err();
    assert!(matches!(error, BenchError::Endpoint(_)), "{error:?}");
}
