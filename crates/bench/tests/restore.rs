//! `manta bench-restore` against a scripted server: what is called, measured and classed, and that nothing is
//! left.

mod support;

use std::time::{Duration, Instant};

use manta_api::ErrorCode;
use manta_bench::restore::{FailureCounts, RestoreArgs, RestoreOutcome, run};
use manta_bench::{EndedEarly, Percentiles, Stage};
use manta_client::Client;
use serde_json::{Value, json};
use support::{Answer, Script, Server};

const FIXTURE: &str = "create exec snapshot destroy snapshots";
const LAP: &str = "restore exec destroy";
const REMOVAL: &str = "delete sandboxes";

async fn outcome_of(server: &Server, args: RestoreArgs) -> RestoreOutcome {
    let outcome = run(args).await.expect("an outcome");
    assert_eq!(outcome.iterations_success as usize, outcome.samples.len());
    for sample in &outcome.samples {
        assert_eq!(sample.restore_only_ns + sample.exec_ns, sample.restore_tti_ns);
        assert!(sample.restore_only_ns > 0 && sample.exec_ns > 0 && sample.destroy_ns > 0, "{sample:?}");
    }
    let of = |part: fn(&manta_bench::restore::RestoreSample) -> u64| {
        Percentiles::of(outcome.samples.iter().map(part))
    };
    assert_eq!(outcome.restore_only, of(|sample| sample.restore_only_ns));
    assert_eq!(outcome.restore_tti, of(|sample| sample.restore_tti_ns));
    assert_eq!((outcome.exec, outcome.destroy), (of(|s| s.exec_ns), of(|s| s.destroy_ns)));
    assert_nothing_is_left(server);
    outcome
}

fn assert_nothing_is_left(server: &Server) {
    assert_eq!((server.alive(), server.snapshots()), (Vec::new(), Vec::new()));
}

/// As many of this class, and none of another.
fn only(count: impl FnOnce(&mut FailureCounts) -> &mut u32, times: u32) -> FailureCounts {
    let mut counts = FailureCounts::default();
    *count(&mut counts) = times;
    counts
}

fn internal() -> Value {
    json!({"error": "see the log", "code": "internal"})
}

#[tokio::test]
async fn the_snapshot_is_made_restored_and_removed_and_warm_ups_are_not_recorded() {
    let server = Server::start(|_, _| Answer::Normal).await;
    let outcome = outcome_of(&server, server.restore_args(3, 2)).await;
    assert_eq!(server.calls(), format!("{FIXTURE} {} {REMOVAL}", [LAP; 5].join(" ")));
    assert_eq!(outcome.samples.iter().map(|s| s.iteration).collect::<Vec<_>>(), [1, 2, 3]);
    assert_eq!((outcome.iterations_requested, outcome.iterations_failed), (3, 0));
    assert_eq!((outcome.failures, outcome.ended_early), (FailureCounts::default(), None));
    assert!(outcome.failure_details.is_empty() && outcome.warmup_failures.is_empty());
    assert_eq!((outcome.cleanup_failures.len(), outcome.exit_status()), (0, 0));
    assert_eq!(outcome.fixture.pause_us, 1500);
    assert_eq!(outcome.fixture.snapshot_bytes.unwrap().total(), 13_000 + 1_100_000 + 4096);
}

#[tokio::test]
async fn the_timer_covers_restore_and_exec_and_neither_the_fixture_nor_destroy() {
    const RESTORE: Duration = Duration::from_millis(30);
    const EXEC: Duration = Duration::from_millis(20);
    const LONG: Duration = Duration::from_millis(100);
    let server = Server::start(|route, _| match route {
        "restore" => Answer::Slow(RESTORE),
        "exec" => Answer::Slow(EXEC),
        _ => Answer::Slow(LONG),
    })
    .await;
    let before = Instant::now();
    let outcome = outcome_of(&server, server.restore_args(2, 0)).await;
    let elapsed = before.elapsed();
    for sample in &outcome.samples {
        assert!(Duration::from_nanos(sample.restore_only_ns) >= RESTORE, "{sample:?}");
        assert!(Duration::from_nanos(sample.exec_ns) >= EXEC, "{sample:?}");
        assert!(Duration::from_nanos(sample.destroy_ns) >= LONG, "{sample:?}");
    }
    // Of the fixture and the removal six calls take long.
    let timed: u64 = outcome.samples.iter().map(|s| s.restore_tti_ns + s.destroy_ns).sum();
    assert!(Duration::from_nanos(timed) + 6 * LONG < elapsed, "{timed} ns within {elapsed:?}");
}

#[tokio::test]
async fn a_failed_restore_is_of_class_restore_api() {
    let server = Server::start(|route, n| match (route, n) {
        ("restore", 2) => Answer::Instead(503, json!({"error": "all places are taken", "code": "host_full"})),
        _ => Answer::Normal,
    })
    .await;
    let outcome = outcome_of(&server, server.restore_args(3, 0)).await;
    assert_eq!(outcome.failures, only(|counts| &mut counts.restore_api, 1));
    let [failure] = &outcome.failure_details[..] else { panic!("{outcome:?}") };
    assert_eq!((failure.iteration, failure.stage), (2, Stage::Restore));
    assert_eq!(failure.error, "POST /snapshot/restore: HTTP 503: all places are taken");
    assert_eq!((failure.code, &failure.sandbox_id), (Some(ErrorCode::HostFull), &None));
    assert_eq!((outcome.iterations_success, outcome.iterations_failed, outcome.exit_status()), (2, 1, 0));
}

#[tokio::test]
async fn whatever_is_wrong_with_the_sanity_command_is_of_class_sanity_exec() {
    // The first exec is the mutation.
    let server = Server::start(|route, n| match (route, n) {
        ("exec", 2) => Answer::Instead(502, json!({"error": "the guest is gone", "code": "guest_gone"})),
        ("exec", 3) => Answer::Instead(200, json!({"stdout": "", "stderr": "cat: no\n", "exit_code": 1})),
        ("exec", 4) => Answer::Instead(200, json!({"stdout": "", "stderr": "", "exit_code": 0})),
        ("exec", 5) => Answer::Instead(200, json!({"stdout": "restored-okay", "stderr": "", "exit_code": 0})),
        ("exec", 6) => Answer::Instead(200, json!({"stdout": "\nrestored-ok", "stderr": "", "exit_code": 0})),
        ("exec", 7) => {
            Answer::Instead(200, json!({"stdout": "restored-ok\n\n", "stderr": "", "exit_code": 0}))
        }
        _ => Answer::Normal,
    })
    .await;
    let outcome = outcome_of(&server, server.restore_args(7, 0)).await;
    assert_eq!(outcome.failures, only(|counts| &mut counts.sanity_exec, 5));
    let details: Vec<_> =
        outcome.failure_details.iter().map(|f| (f.iteration, f.stage, f.error.as_str())).collect();
    assert_eq!(
        details,
        [
            (1, Stage::Exec, "POST /exec: HTTP 502: the guest is gone"),
            (2, Stage::Exec, r#"the command exited with 1, saying "cat: no\n""#),
            (3, Stage::Exec, r#"the command printed "" and not "restored-ok""#),
            (4, Stage::Exec, r#"the command printed "restored-okay" and not "restored-ok""#),
            (5, Stage::Exec, r#"the command printed "\nrestored-ok" and not "restored-ok""#),
        ]
    );
    assert_eq!(outcome.samples.iter().map(|s| s.iteration).collect::<Vec<_>>(), [6, 7]);
}

#[tokio::test]
async fn the_output_is_compared_with_what_is_expected_and_with_nothing_if_that_is_empty() {
    let server = Server::start(|_, _| Answer::Normal).await;
    for (expect, success) in [("benchmark", 1), ("benchmark\n\n", 1), ("restored-ok", 0), ("", 1), ("\n", 1)]
    {
        let args = RestoreArgs {
            sanity_cmd: "echo benchmark".to_owned(),
            expect_stdout: expect.to_owned(),
            ..server.restore_args(1, 0)
        };
        let outcome = outcome_of(&server, args).await;
        assert_eq!(outcome.iterations_success, success, "{expect:?}");
    }
}

#[tokio::test]
async fn a_sandbox_that_would_not_go_is_destroyed_at_the_end_and_still_counted() {
    let server = Server::start(|route, n| match (route, n) {
        // The first destroy is that of the fixture's sandbox.
        ("destroy", 2) => Answer::Instead(500, internal()),
        _ => Answer::Normal,
    })
    .await;
    let outcome = outcome_of(&server, server.restore_args(2, 0)).await;
    assert_eq!(outcome.failures, only(|counts| &mut counts.destroy, 1));
    assert_eq!(server.calls(), format!("{FIXTURE} {LAP} {LAP} {REMOVAL} destroy"));
    assert!(!outcome.failure_details[0].may_leave_a_sandbox, "it did not");
    assert_eq!((outcome.iterations_success, outcome.exit_status()), (1, 0));
}

#[tokio::test]
async fn a_restored_sandbox_whose_id_did_not_arrive_is_found_and_destroyed() {
    let server = Server::start(|route, n| match (route, n) {
        ("restore", 1) => Answer::But(200, json!({"sandbox_id": "garbled"})),
        _ => Answer::Normal,
    })
    .await;
    let outcome = outcome_of(&server, server.restore_args(1, 1)).await;
    assert_eq!(outcome.failures, FailureCounts::default());
    let [failure] = &outcome.warmup_failures[..] else { panic!("{outcome:?}") };
    assert_eq!((failure.stage, failure.may_leave_a_sandbox), (Stage::Restore, false));
    assert_eq!(outcome.iterations_success, 1);
}

#[tokio::test]
async fn what_others_have_on_the_server_is_left_alone() {
    // Of the benchmark the id of the first sandbox, and then that of the snapshot, does not arrive.
    let scripts: [Script; 2] = [
        |route, n| match (route, n) {
            ("restore", 2) => Answer::But(200, json!({"sandbox_id": "garbled"})),
            _ => Answer::Normal,
        },
        |route, n| match (route, n) {
            ("snapshot", 2) => Answer::But(200, json!({"snapshot_id": "garbled"})),
            _ => Answer::Normal,
        },
    ];
    for script in scripts {
        let server = Server::start(script).await;
        let other = Client::new(&server.endpoint, Duration::from_secs(10)).unwrap();
        let sandbox = other.create().await.unwrap().sandbox_id;
        let snapshot = other.snapshot(&sandbox, None).await.unwrap().snapshot_id;
        other.restore(&snapshot).await.unwrap();
        let before = (server.alive(), server.snapshots());
        let _ = run(server.restore_args(1, 0)).await;
        assert_eq!((server.alive(), server.snapshots()), before);
    }
}

#[tokio::test]
async fn what_cannot_be_removed_is_named_and_of_class_other() {
    let server = Server::start(|route, n| match (route, n) {
        ("delete", _) => Answer::Instead(500, internal()),
        ("destroy", 2..) => Answer::Instead(500, internal()),
        _ => Answer::Normal,
    })
    .await;
    let outcome = run(server.restore_args(1, 0)).await.unwrap();
    assert_eq!(outcome.failures, FailureCounts { destroy: 1, other: 2, ..FailureCounts::default() });
    let (snapshot, sandbox) = (server.snapshots().remove(0), server.alive().remove(0));
    assert_eq!(
        outcome.cleanup_failures,
        [
            format!("snapshot {snapshot} may be left behind: POST /snapshot/delete: HTTP 500: see the log"),
            format!("sandbox {sandbox} may be left behind: POST /destroy: HTTP 500: see the log"),
        ]
    );
    assert!(outcome.failure_details[0].may_leave_a_sandbox);
    assert_eq!(outcome.exit_status(), 1, "no iteration succeeded");
}

#[tokio::test]
async fn a_snapshot_that_somebody_else_deleted_is_not_left_behind() {
    let server = Server::start(|route, _| match route {
        "delete" => Answer::But(404, json!({"error": "no such snapshot", "code": "snapshot_not_found"})),
        _ => Answer::Normal,
    })
    .await;
    let outcome = outcome_of(&server, server.restore_args(1, 0)).await;
    assert!(outcome.cleanup_failures.is_empty());
}

#[tokio::test]
async fn a_fixture_that_fails_is_an_error_before_the_loop_and_nothing_is_left() {
    let mutation: Script = |route, _| match route {
        "exec" => Answer::Instead(200, json!({"stdout": "", "stderr": "disk full\n", "exit_code": 1})),
        _ => Answer::Normal,
    };
    let exec: Script = |route, _| match route {
        "exec" => Answer::Instead(502, json!({"error": "the guest is gone", "code": "guest_gone"})),
        _ => Answer::Normal,
    };
    let refused: Script = |route, _| match route {
        "snapshot" => Answer::Instead(507, json!({"error": "too many", "code": "snapshot_storage_full"})),
        _ => Answer::Normal,
    };
    // It is made, and its id does not arrive.
    let garbled: Script = |route, _| match route {
        "snapshot" => Answer::But(200, json!({"snapshot_id": "garbled"})),
        _ => Answer::Normal,
    };
    let destroy: Script = |route, n| match (route, n) {
        ("destroy", 1) => Answer::Instead(500, internal()),
        _ => Answer::Normal,
    };
    let create: Script = |route, _| match route {
        "create" => Answer::Instead(503, json!({"error": "full", "code": "host_full"})),
        _ => Answer::Normal,
    };
    let sandbox = "sandbox sb-01010101010101010101";
    for (script, calls, said) in [
        (
            mutation,
            "create exec destroy",
            format!("{sandbox}: mutation: the command exited with 1, saying \"disk full\\n\""),
        ),
        (exec, "create exec destroy", format!("{sandbox}: the mutation did not run")),
        (refused, "create exec snapshot destroy", format!("{sandbox}: no snapshot")),
        (garbled, "create exec snapshot destroy snapshots delete", format!("{sandbox}: no snapshot")),
        (
            destroy,
            "create exec snapshot destroy destroy delete sandboxes",
            format!("{sandbox}: not destroyed"),
        ),
        (create, "create", "no sandbox to make it of".to_owned()),
    ] {
        let server = Server::start(script).await;
        let error = run(server.restore_args(5, 1)).await.unwrap_err();
        assert_eq!(error.to_string(), "cannot prepare the snapshot");
        assert_eq!(std::error::Error::source(&error).unwrap().to_string(), said);
        assert_eq!((server.calls().as_str(), error.exit_status()), (calls, 1));
        assert_nothing_is_left(&server);
    }
}

#[tokio::test]
async fn a_server_that_goes_away_ends_the_run_with_what_was_measured() {
    let server = Server::start(|route, n| match (route, n) {
        ("destroy", 3) => Answer::Close,
        _ => Answer::Normal,
    })
    .await;
    let outcome = run(server.restore_args(50, 0)).await.unwrap();
    assert_eq!((outcome.ended_early, outcome.exit_status()), (Some(EndedEarly::ServerUnreachable), 1));
    assert_eq!(outcome.iterations_success, 2);
    assert_eq!(outcome.failures, FailureCounts { restore_api: 1, other: 2, ..FailureCounts::default() });
    assert!(outcome.cleanup_failures[0].contains(&server.snapshots()[0]), "{:?}", outcome.cleanup_failures);
}

#[tokio::test]
async fn a_size_that_the_server_does_not_tell_is_absent() {
    let server = Server::start(|route, _| match route {
        "snapshots" => Answer::Instead(500, internal()),
        _ => Answer::Normal,
    })
    .await;
    let outcome = outcome_of(&server, server.restore_args(1, 0)).await;
    assert_eq!((outcome.fixture.snapshot_bytes, outcome.iterations_success), (None, 1));
}
