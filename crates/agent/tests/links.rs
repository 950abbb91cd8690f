//! Sessions whose link is lost: they go on over another one as if nothing had been, or end in time. At a real agent
//! process.
#![allow(clippy::unwrap_used)] // in the helpers too

mod common;

use std::time::Duration;

use common::{Agent, argv, sh};
use manta_agent_proto::{Channel, Exec, Frame, MAX_DATA, Reply, Request, Resume};

/// The process id that a command prints first.
fn pid(agent: &mut Agent, id: u32) -> u32 {
    agent.wait_for(id, "\n").lines().next().unwrap().parse().unwrap()
}

fn lose_the_link(agent: &mut Agent) {
    drop(agent.reconnect());
    agent.resume();
}

#[test]
fn what_a_lost_link_carried_comes_over_the_next_one() {
    let mut agent = Agent::listening();
    agent.request(1, Request::Exec(sh("seq 1 20000; exit 1")));
    agent.request(2, Request::Exec(Exec { stdin: true, ..sh("wc -c; exit 2") }));
    for _ in 0..15 {
        agent.send(&Frame::Data { id: 2, channel: Channel::Stdin, bytes: vec![b'x'; MAX_DATA] });
        lose_the_link(&mut agent);
    }
    agent.send(&Frame::Eof { id: 2, channel: Channel::Stdin });
    lose_the_link(&mut agent);
    let outcomes = agent.collect(&[1, 2]);
    let lines: String = (1..=20_000).map(|n| format!("{n}\n")).collect();
    assert!(outcomes[&1].stdout() == lines);
    assert_eq!(outcomes[&2].stdout().trim(), (15 * MAX_DATA).to_string());
    assert_eq!((outcomes[&1].exit().exit_code, outcomes[&2].exit().exit_code), (1, 2));
}

#[test]
fn a_link_that_looks_alive_is_replaced_all_the_same() {
    let mut agent = Agent::listening();
    agent.request(1, Request::Exec(sh("read line < /dev/null; echo it; exit 5")));
    let old = agent.reconnect();
    agent.resume();
    let outcome = agent.finish(1);
    assert_eq!((outcome.stdout(), outcome.exit().exit_code), ("it\n", 5));
    // What it was sent is there to be read; after that it is closed.
    assert!(std::io::copy(&mut &old, &mut std::io::sink()).is_ok());
}

#[test]
fn a_session_that_nobody_resumes_is_killed() {
    let mut agent = Agent::patient(Duration::from_millis(50));
    agent.request(1, Request::Exec(sh("echo $$; exec sleep 1000")));
    let (pid, session) = (pid(&mut agent, 1), agent.session());
    drop(agent.reconnect());
    assert!(common::ends(pid));
    assert_eq!(agent.greet(Some(Resume { session, received: 1 })), None);
}

#[test]
fn a_session_without_commands_waits_as_long_as_it_takes() {
    let mut agent = Agent::patient(Duration::ZERO);
    assert_eq!(agent.run(argv(&["true"])).exit().exit_code, 0);
    lose_the_link(&mut agent);
    assert_eq!(agent.run(argv(&["true"])).exit().exit_code, 0);
}

#[test]
fn counts_that_cannot_be_true_end_the_session() {
    for received in [0, u64::MAX] {
        let mut agent = Agent::listening();
        agent.request(1, Request::Exec(sh("echo $$; exec sleep 1000")));
        let (pid, session) = (pid(&mut agent, 1), agent.session());
        agent.send(&Frame::Ack { frames: 1 });
        agent.reconnect();
        assert_eq!(agent.greet(Some(Resume { session, received })), None);
        assert!(common::ends(pid));
    }
    let mut agent = Agent::listening();
    agent.request(1, Request::Exec(sh("echo $$; exec sleep 1000")));
    let pid = pid(&mut agent, 1);
    agent.send(&Frame::Ack { frames: 2 });
    assert!(common::ends(pid));
    assert_eq!(agent.try_receive(), None);
}

#[test]
fn another_session_is_not_gone_on_with() {
    let mut agent = Agent::listening();
    agent.request(1, Request::Exec(sh("echo $$; exec sleep 1000")));
    let (pid, session) = (pid(&mut agent, 1), agent.session() + 1000);
    agent.reconnect();
    assert_eq!(agent.greet(Some(Resume { session, received: 0 })), None);
    assert!(common::ends(pid));
}

#[test]
fn what_the_host_has_not_acknowledged_is_bounded() {
    let mut agent = Agent::listening();
    agent.request(1, Request::Exec(Exec { output_limit: u64::MAX, ..argv(&["yes"]) }));
    agent.send(&Frame::Credit { id: 1, channel: Channel::Stdout, bytes: u32::MAX });
    drop(agent.reconnect()); // nobody receives any of it
    agent.resume();
    agent.request(2, Request::Ping);
    while !matches!(agent.receive(), Frame::Reply { id: 2, reply: Reply::Done }) {}
    let status = std::fs::read_to_string(format!("/proc/{}/status", agent.pid())).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let kib: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(kib < 10 * 1024, "{kib} KiB at most");
}
