//! Real signals: a run that is interrupted leaves no sandbox behind and reports what it has.

mod support;

use manta_bench::{EndedEarly, Outcome, Stage, run};
use rustix::process::Signal;
use support::signals::{alone, send};
use support::{Answer, Script, Server};

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
