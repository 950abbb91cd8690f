//! Real signals during `manta bench-restore`: the first leaves nothing behind, the second says what is left.

mod support;

use manta_bench::restore::{FailureCounts, RestoreOutcome, run};
use manta_bench::{BenchError, EndedEarly};
use rustix::process::Signal;
use support::signals::{alone, send};
use support::{Answer, Script, Server};

fn run_with(script: Script) -> (Result<RestoreOutcome, BenchError>, Server) {
    alone(async {
        let server = Server::start(script).await;
        (run(server.restore_args(50, 1)).await, server)
    })
}

fn interrupted(script: Script) -> (RestoreOutcome, Server) {
    let (outcome, server) = run_with(script);
    let outcome = outcome.expect("an outcome");
    assert_eq!((outcome.ended_early, outcome.exit_status()), (Some(EndedEarly::Interrupted), 130));
    (outcome, server)
}

fn interrupted_before_the_loop(script: Script) -> Server {
    let (outcome, server) = run_with(script);
    let error = outcome.expect_err("no outcome");
    assert!(matches!(error, BenchError::Interrupted), "{error:?}");
    assert_eq!(error.exit_status(), 130);
    server
}

fn assert_nothing_is_left(server: &Server) {
    assert_eq!((server.alive(), server.snapshots()), (Vec::new(), Vec::new()));
}

#[test]
fn an_interrupt_within_the_sanity_command_removes_the_sandbox_and_the_snapshot() {
    let (outcome, server) = interrupted(|route, n| match (route, n) {
        ("exec", 4) => {
            send(Signal::TERM);
            Answer::Hang
        }
        _ => Answer::Normal,
    });
    assert!(server.calls().ends_with("restore exec destroy delete sandboxes"), "{}", server.calls());
    assert_nothing_is_left(&server);
    assert_eq!((outcome.iterations_success, outcome.failures), (1, FailureCounts::default()));
}

#[test]
fn an_interrupt_within_restore_waits_for_the_sandbox_and_destroys_it() {
    let (outcome, server) = interrupted(|route, n| match (route, n) {
        ("restore", 3) => Answer::Interrupt,
        _ => Answer::Normal,
    });
    assert!(server.calls().ends_with("restore destroy delete sandboxes"), "{}", server.calls());
    assert_nothing_is_left(&server);
    assert_eq!((outcome.iterations_success, outcome.failures), (1, FailureCounts::default()));
}

#[test]
fn an_interrupt_while_the_snapshot_is_made_leaves_nothing() {
    let within: [(Script, &str); 4] = [
        (|route, _| if route == "create" { Answer::Interrupt } else { Answer::Normal }, "create destroy"),
        (
            |route, _| match route {
                "exec" => {
                    send(Signal::INT);
                    Answer::Hang
                }
                _ => Answer::Normal,
            },
            "create exec destroy",
        ),
        (
            |route, _| if route == "snapshot" { Answer::Interrupt } else { Answer::Normal },
            "create exec snapshot destroy delete sandboxes",
        ),
        (
            |route, n| if (route, n) == ("destroy", 1) { Answer::Interrupt } else { Answer::Normal },
            "create exec snapshot destroy delete sandboxes",
        ),
    ];
    for (script, calls) in within {
        let server = interrupted_before_the_loop(script);
        assert_eq!(server.calls(), calls);
        assert_nothing_is_left(&server);
    }
}

#[test]
fn an_interrupt_within_the_removal_does_not_end_it() {
    let (outcome, server) = run_with(|route, _| match route {
        "delete" => Answer::Interrupt,
        _ => Answer::Normal,
    });
    let outcome = outcome.expect("an outcome");
    assert_nothing_is_left(&server);
    assert_eq!((outcome.iterations_success, outcome.ended_early, outcome.exit_status()), (50, None, 0));
}

#[test]
fn a_second_interrupt_gives_up_and_says_what_is_left() {
    let (outcome, server) = interrupted(|route, n| match (route, n) {
        ("exec", 3) => {
            send(Signal::INT);
            Answer::Hang
        }
        ("destroy", 3) => {
            send(Signal::INT);
            Answer::Hang
        }
        _ => Answer::Normal,
    });
    let [failure] = &outcome.failure_details[..] else { panic!("{outcome:?}") };
    let named: Vec<_> = failure.sandbox_id.iter().map(ToString::to_string).collect();
    assert_eq!((named, failure.may_leave_a_sandbox), (server.alive(), true));
    assert!(outcome.cleanup_failures[0].contains(&server.snapshots()[0]), "{:?}", outcome.cleanup_failures);
    // The destroy, the snapshot, and the list of sandboxes that was not asked for any more.
    assert_eq!(outcome.failures, FailureCounts { other: 3, ..FailureCounts::default() });
}
