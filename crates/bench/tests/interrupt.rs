//! Real signals: a run that is interrupted leaves no sandbox behind and reports what it has.

mod support;

use manta_bench::{BenchArgs, BenchError, EndedEarly, Mode, Outcome, PoolArgs, Stage, run};
use rustix::process::Signal;
use serde_json::json;
use support::signals::{alone, send};
use support::{Answer, Said, Script, Server};

fn interrupted(script: Script) -> (Outcome, Server) {
    let (outcome, server) = alone(async {
        let server = Server::start(script).await;
        (run(server.args(50, 1)).await.expect("an outcome"), server)
    });
    assert_eq!(outcome.ended_early, Some(EndedEarly::Interrupted));
    assert_eq!(outcome.exit_status(), 130);
    (outcome, server)
}

#[test]
fn an_interrupt_within_exec_destroys_the_sandbox_at_once() {
    let script: Script = |route, n| match (route, n) {
        ("exec", 4) => {
            send(Signal::TERM);
            Answer::Hang
        }
        _ => Answer::Normal,
    };
    let (outcome, server) = interrupted(script);
    assert_eq!(server.calls(), ["create exec destroy"; 4].join(" "));
    assert!(server.alive().is_empty());
    assert_eq!((outcome.iterations_success, outcome.iterations_failed), (2, 0));
}

#[test]
fn an_interrupt_within_create_waits_for_the_sandbox_and_destroys_it() {
    let (outcome, server) = interrupted(|route, n| match (route, n) {
        ("create", 3) => Answer::Interrupt,
        _ => Answer::Normal,
    });
    assert_eq!(server.calls(), "create exec destroy create exec destroy create destroy");
    assert!(server.alive().is_empty());
    assert_eq!((outcome.iterations_success, outcome.iterations_failed), (1, 0));
}

#[test]
fn an_interrupt_within_destroy_keeps_the_sample() {
    let (outcome, server) = interrupted(|route, n| match (route, n) {
        ("destroy", 2) => Answer::Interrupt,
        _ => Answer::Normal,
    });
    assert_eq!(server.calls(), "create exec destroy create exec destroy");
    assert_eq!((outcome.iterations_success, outcome.iterations_failed), (1, 0));
}

#[test]
fn an_interrupt_ends_the_wait_for_the_pool() {
    let pools = |n| {
        if n == 3 {
            send(Signal::INT);
        }
        let none = json!({"depth": 0, "target": 0, "hits": 0, "misses": 0});
        let warm = json!({"depth": 0, "target": 3, "hits": 0, "misses": 0});
        Some(json!({"warm": warm, "vmms": none, "slots": none}))
    };
    let outcome = alone(async {
        let server = Server::saying(Said { pools, ..Said::NOTHING }, |_, _| Answer::Normal).await;
        let mut args = server.args(1, 0);
        args.common.pool = PoolArgs { pool_aware: true, pool_wait_s: 3600 };
        let outcome = run(args).await.expect("an outcome");
        assert_eq!(server.calls(), "");
        outcome
    });
    assert_eq!((outcome.ended_early, outcome.exit_status()), (Some(EndedEarly::Interrupted), 130));
}

#[test]
fn an_interrupt_within_the_warm_up_measures_nothing() {
    let (outcome, server) = interrupted(|route, n| match (route, n) {
        ("exec", 1) => Answer::Interrupt,
        _ => Answer::Normal,
    });
    assert_eq!(server.calls(), "create exec destroy");
    assert_eq!((outcome.iterations_success, outcome.iterations_failed), (0, 0));
}

#[test]
fn a_second_interrupt_gives_up_and_says_what_is_left() {
    let script: Script = |route, n| match (route, n) {
        ("exec", 2) => {
            send(Signal::INT);
            Answer::Hang
        }
        ("destroy", 2) => {
            send(Signal::INT);
            Answer::Hang
        }
        _ => Answer::Normal,
    };
    let (outcome, server) = interrupted(script);
    let [failure] = &outcome.failures[..] else { panic!("{outcome:?}") };
    assert_eq!(failure.stage, Stage::Destroy);
    let named: Vec<_> = failure.sandbox_id.iter().map(ToString::to_string).collect();
    assert_eq!(named, server.alive());
    assert_eq!(named.len(), 1);
}

/// With two other sandboxes, and without warm-up.
fn run_with(mode: Mode, script: Script) -> (Result<Outcome, BenchError>, Server) {
    alone(async {
        let server = Server::start(script).await;
        let args = BenchArgs { mode, live: 2, ..server.args(4, 0) };
        (run(args).await, server)
    })
}

#[test]
fn an_interrupt_within_a_burst_destroys_every_sandbox_at_once() {
    let script: Script = |route, n| match (route, n) {
        ("exec", 4) => {
            send(Signal::TERM);
            Answer::Hang
        }
        ("exec", _) => Answer::Hang,
        _ => Answer::Normal,
    };
    let (outcome, server) = run_with(Mode::Burst, script);
    let outcome = outcome.expect("an outcome");
    assert_eq!((outcome.ended_early, outcome.exit_status()), (Some(EndedEarly::Interrupted), 130));
    assert_eq!((outcome.iterations_success, outcome.iterations_failed), (0, 0));
    assert_eq!((server.most(), server.alive()), (6, Vec::new()));
    assert!(outcome.failures.is_empty() && outcome.live_failures.is_empty(), "{outcome:?}");
    assert_eq!(outcome.score, None);
}

#[test]
fn an_interrupt_within_the_creates_of_a_burst_waits_for_the_sandboxes_and_destroys_them() {
    let (outcome, server) = run_with(Mode::Burst, |route, n| match (route, n) {
        ("create", 3) => Answer::Interrupt,
        ("create", 4..) => Answer::Together(6),
        ("exec", _) => Answer::Hang,
        _ => Answer::Normal,
    });
    let outcome = outcome.expect("an outcome");
    assert_eq!((server.most(), server.alive()), (6, Vec::new()));
    assert_eq!((outcome.exit_status(), outcome.failures.len()), (130, 0));
}

#[test]
fn an_interrupt_between_staggered_launches_is_the_end_of_them() {
    let (outcome, server) = run_with(Mode::Staggered, |route, n| match (route, n) {
        ("destroy", 1) => Answer::Interrupt,
        _ => Answer::Normal,
    });
    let outcome = outcome.expect("an outcome");
    assert_eq!(outcome.ended_early, Some(EndedEarly::Interrupted));
    assert!((1..4).contains(&outcome.iterations_success), "{outcome:?}");
    assert!(server.alive().is_empty());
}

#[test]
fn an_interrupt_while_the_other_sandboxes_are_made_removes_them() {
    let (outcome, server) = run_with(Mode::Sequential, |route, n| match (route, n) {
        ("create", 1) => Answer::Interrupt,
        _ => Answer::Normal,
    });
    let error = outcome.expect_err("no outcome");
    assert!(matches!(error, BenchError::Interrupted), "{error:?}");
    assert_eq!(server.calls(), "create destroy");
    assert!(server.alive().is_empty());
}

#[test]
fn a_second_interrupt_gives_up_a_burst_and_names_every_sandbox() {
    let script: Script = |route, n| match (route, n) {
        ("exec", 4) => {
            send(Signal::INT);
            Answer::Hang
        }
        ("destroy", 4) => {
            send(Signal::INT);
            Answer::Hang
        }
        ("exec" | "destroy", _) => Answer::Hang,
        _ => Answer::Normal,
    };
    let (outcome, server) = run_with(Mode::Burst, script);
    let outcome = outcome.expect("an outcome");
    let said = outcome.live_failures.join(" ");
    let named = |id: &String| {
        let of_the_run = outcome.failures.iter().filter_map(|failure| failure.sandbox_id.as_ref());
        said.contains(id) || of_the_run.map(ToString::to_string).any(|of_the_run| of_the_run == *id)
    };
    assert_eq!((server.alive().len(), outcome.failures.len(), outcome.live_failures.len()), (6, 4, 2));
    assert!(server.alive().iter().all(named), "{outcome:?}");
}
