//! Sessions: their beginning, their end, and hosts that vanish, at a real agent process.
#![allow(clippy::unwrap_used)] // in the helpers too

mod common;

use common::{Agent, argv, sh};
use manta_agent_proto::{Channel, Frame, Hello, PROTOCOL_VERSION, Reply, Request, encode};

fn assert_ends(pid: &str) {
    assert!(common::ends(pid.trim().parse().unwrap()), "{pid} runs on");
}

fn ping(agent: &mut Agent) {
    agent.request(77, Request::Ping);
    assert_eq!(agent.finish(77).reply, Some(Reply::Done));
}

#[test]
fn a_new_hello_kills_what_ran_for_the_old_one() {
    let mut agent = Agent::start();
    agent.request(1, Request::Exec(sh("sleep 1000 & echo $!; wait")));
    let pid = agent.wait_for(1, "\n");
    agent.hello();
    assert_ends(&pid);
    // Its stream is forgotten: the id is free, and nothing of it comes any more.
    assert_eq!(agent.run(argv(&["echo", "new"])).stdout(), "new\n");
}

#[test]
fn a_host_that_vanishes_at_any_byte_can_come_back() {
    let mut agent = Agent::start();
    let mut request = Vec::new();
    encode(&Frame::Request { id: 1, request: Request::Exec(argv(&["echo", "x"])) }, &mut request).unwrap();
    for cut in 1..request.len() {
        agent.send_raw(&request[..cut]);
        agent.hello();
        ping(&mut agent);
    }
    assert_eq!(agent.run(argv(&["echo", "x"])).stdout(), "x\n");
}

#[test]
fn a_host_that_vanishes_under_load_can_come_back() {
    let mut agent = Agent::start();
    for _ in 0..20 {
        agent.request(1, Request::Exec(argv(&["yes"])));
        agent.wait_for(1, "y\n");
        agent.send_raw(b"half a fra");
        agent.hello();
        ping(&mut agent);
    }
}

#[test]
fn hanging_up_kills_the_commands() {
    let mut agent = Agent::start();
    agent.request(1, Request::Exec(sh("sleep 1000 & echo $!; wait")));
    let pid = agent.wait_for(1, "\n");
    assert!(agent.hang_up().success());
    assert_ends(&pid);
}

#[test]
fn nothing_outlives_an_agent_beside_a_guest() {
    let mut agent = Agent::start();
    let outcome = agent.run(sh("sleep 1000 & echo $!"));
    let process = std::path::Path::new("/proc").join(outcome.stdout().trim());
    assert!(process.exists());
    assert!(agent.hang_up().success());
    assert!(!process.exists());
}

#[test]
fn nothing_is_answered_before_hello() {
    let mut agent = Agent::silent();
    agent.request(1, Request::Ping);
    let hello = Frame::Hello(Hello { version: PROTOCOL_VERSION, session: 5, resume: None });
    agent.send(&hello);
    assert_eq!(agent.receive(), hello);
    ping(&mut agent);
}

#[test]
fn another_version_is_told_ours_and_ignored() {
    let mut agent = Agent::start();
    agent.send(&Frame::Hello(Hello { version: PROTOCOL_VERSION + 1, session: 6, resume: None }));
    let ours = Hello { version: PROTOCOL_VERSION, session: 6, resume: None };
    assert_eq!(agent.receive(), Frame::Hello(ours));
    agent.request(1, Request::Ping);
    agent.hello(); // would drop an answer to the ping,
    agent.request(2, Request::Ping);
    assert_eq!(agent.receive(), Frame::Reply { id: 2, reply: Reply::Done }); // and none comes late
}

#[test]
fn garbage_changes_nothing() {
    let mut agent = Agent::start();
    let mut noise = 12345_u32;
    let garbage: Vec<u8> = (0..300_000)
        .map(|_| {
            noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (noise >> 24) as u8
        })
        .collect();
    agent.send_raw(&garbage);
    agent.send_raw(&[b'x'; 200_000]);
    agent.send_raw(&[0]);
    // Well-formed, but meaningless.
    agent.send(&Frame::Reply { id: 1, reply: Reply::Done });
    agent.send(&Frame::Data { id: 1, channel: Channel::Stdout, bytes: vec![1] });
    agent.send(&Frame::Data { id: 1, channel: Channel::Stdin, bytes: vec![1] });
    agent.send(&Frame::Credit { id: 1, channel: Channel::Stdin, bytes: u32::MAX });
    agent.send(&Frame::Eof { id: 1, channel: Channel::Stdin });
    agent.send(&Frame::Cancel { id: 1 });
    agent.hello();
    ping(&mut agent);
}

#[test]
fn a_request_of_a_newer_host_is_refused_not_ignored() {
    let mut agent = Agent::start();
    let mut frame = [0; 64];
    let length = cobs::encode(b"\x01\x09\0\0\0{\"levitate\":{}}", &mut frame);
    agent.send_raw(&frame[..=length]);
    let Frame::Reply { id: 9, reply: Reply::Failed { message } } = agent.receive() else { panic!() };
    assert!(message.contains("levitate"), "{message}");
    ping(&mut agent);
}

#[test]
fn a_host_that_breaks_the_flow_control_loses_that_command_only() {
    let mut agent = Agent::start();
    let command = manta_agent_proto::Exec { stdin: true, ..argv(&["sleep", "1000"]) };
    agent.request(1, Request::Exec(command));
    for _ in 0..30 {
        agent.send(&Frame::Data { id: 1, channel: Channel::Stdin, bytes: vec![b'x'; 16_000] });
    }
    assert_eq!(agent.finish(1).exit().exit_code, 137);
    ping(&mut agent);
}

#[test]
fn it_stays_small() {
    let mut agent = Agent::start();
    agent.run(sh("seq 1 500000"));
    agent.request(1, Request::Exec(manta_agent_proto::Exec { output_limit: 5, ..argv(&["yes"]) }));
    agent.wait_for(1, "y\n");
    let status = std::fs::read_to_string(format!("/proc/{}/status", agent.pid())).unwrap();
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    let kib: u64 = resident.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(kib < 10 * 1024, "{kib} KiB resident");
}
