//! Parked sessions: nothing lost, nothing killed, whoever comes next. At a real agent process.
#![allow(clippy::unwrap_used)] // in the helpers too

mod common;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::time::Duration;

use common::{Agent, argv, sh};
use manta_agent_proto::{Channel, Exec, Frame, INITIAL_CREDIT, MAX_DATA, Reply, Request};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{CWD, FileType, Mode, mknodat};

const PARK: u32 = 9000;

/// Parks; gives the data that came before the answer.
fn park(agent: &mut Agent) -> Vec<Frame> {
    agent.request(PARK, Request::Park);
    let mut before = Vec::new();
    loop {
        match agent.receive() {
            Frame::Reply { id: PARK, reply } => {
                assert_eq!(reply, Reply::Done);
                return before;
            }
            frame => before.push(frame),
        }
    }
}

/// Goes on over a new connection, as far as the agent's answer.
fn resume(agent: &mut Agent) {
    agent.reconnect();
    agent.resume();
}

/// The process id that a command prints first.
fn pid(agent: &mut Agent, id: u32) -> u32 {
    agent.wait_for(id, "\n").lines().next().unwrap().parse().unwrap()
}

/// By which a command is told something, or tells, without the agent. Open at both ends: opening it does not
/// block the command.
struct Fifo {
    _directory: tempfile::TempDir,
    path: String,
    file: File,
}

impl Fifo {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("fifo");
        mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        let file = File::options().read(true).write(true).open(&path).unwrap();
        Self { _directory: directory, path: path.to_str().unwrap().to_owned(), file }
    }

    fn say(&mut self, line: &str) {
        writeln!(self.file, "{line}").unwrap();
    }

    fn hear(&mut self) -> String {
        let limit = Timespec { tv_sec: common::DEADLINE.as_secs() as i64, tv_nsec: 0 };
        let heard = poll(&mut [PollFd::new(&self.file, PollFlags::IN)], Some(&limit)).unwrap();
        assert_eq!(heard, 1, "nothing was said in time");
        let mut buffer = [0; 100];
        let length = self.file.read(&mut buffer).unwrap();
        String::from_utf8(buffer[..length].to_vec()).unwrap()
    }
}

/// What a host has to remember of its streams while it parks and resumes.
struct Host {
    agent: Agent,
    received: BTreeMap<(u32, u8), Vec<u8>>,
    exits: BTreeMap<u32, i32>,
    input: Vec<u8>,
    sent: usize,
    credit: usize,
}

impl Host {
    const CAT: u32 = 2;

    /// Sends as much input as it may.
    fn feed(&mut self) {
        while self.credit > 0 && self.sent < self.input.len() {
            let length = self.credit.min(MAX_DATA).min(self.input.len() - self.sent);
            let bytes = self.input[self.sent..self.sent + length].to_vec();
            self.agent.send(&Frame::Data { id: Self::CAT, channel: Channel::Stdin, bytes });
            (self.sent, self.credit) = (self.sent + length, self.credit - length);
            if self.sent == self.input.len() {
                self.agent.send(&Frame::Eof { id: Self::CAT, channel: Channel::Stdin });
            }
        }
    }

    /// Takes in one frame. The credit that it gives back is sent now, or returned to be sent later.
    fn take(&mut self, frame: Frame) -> Option<Frame> {
        match frame {
            Frame::Data { id, channel, bytes } => {
                assert!(!self.exits.contains_key(&id), "data after the reply");
                let length = u32::try_from(bytes.len()).unwrap();
                self.received.entry((id, channel as u8)).or_default().extend(bytes);
                return Some(Frame::Credit { id, channel, bytes: length });
            }
            Frame::Reply { id, reply: Reply::Exit(exit) } => {
                assert_eq!(self.exits.insert(id, exit.exit_code), None, "answered twice");
            }
            Frame::Credit { id: Self::CAT, channel: Channel::Stdin, bytes } => self.credit += bytes as usize,
            other => panic!("unexpected {other:?}"),
        }
        None
    }
}

#[test]
fn streams_go_on_where_they_were_through_many_parkings() {
    let mut agent = Agent::listening();
    agent.request(1, Request::Exec(sh("seq 1 400000; exit 1")));
    agent.request(Host::CAT, Request::Exec(Exec { stdin: true, ..sh("cat; exit 2") }));
    agent.request(3, Request::Exec(sh("for i in $(seq 1 3000); do echo $i; echo e$i >&2; done; exit 3")));
    let input: Vec<u8> = (0..300_000_u32).flat_map(u32::to_le_bytes).collect();
    let credit = INITIAL_CREDIT as usize;
    let (received, exits) = (BTreeMap::new(), BTreeMap::new());
    let mut host = Host { agent, received, exits, input, sent: 0, credit };
    let mut parkings = 0;
    while host.exits.len() < 3 {
        host.feed();
        for _ in 0..20 {
            if host.exits.len() < 3 {
                let frame = host.agent.receive();
                if let Some(credit) = host.take(frame) {
                    host.agent.send(&credit);
                }
            }
        }
        let before = park(&mut host.agent);
        let credits: Vec<_> = before.into_iter().filter_map(|frame| host.take(frame)).collect();
        resume(&mut host.agent);
        ping_only(&mut host.agent);
        credits.iter().for_each(|credit| host.agent.send(credit));
        parkings += 1;
    }
    assert!(parkings > 5, "{parkings}");
    assert_eq!(host.exits, BTreeMap::from([(1, 1), (2, 2), (3, 3)]));
    let lines = |prefix: &str, last: u32| (1..=last).map(|n| format!("{prefix}{n}\n")).collect::<String>();
    assert!(host.received[&(1, 1)] == lines("", 400_000).as_bytes());
    assert!(host.received[&(2, 1)] == host.input);
    assert!(host.received[&(3, 1)] == lines("", 3000).as_bytes());
    assert!(host.received[&(3, 2)] == lines("e", 3000).as_bytes());
}

/// The answer to a ping that resumes comes before anything of the streams.
fn ping_only(agent: &mut Agent) {
    agent.request(0, Request::Ping);
    assert_eq!(agent.receive(), Frame::Reply { id: 0, reply: Reply::Done });
}

#[test]
fn what_ends_while_parked_is_reported_afterwards() {
    let mut agent = Agent::listening();
    let mut go = Fifo::new();
    let script = format!("echo $$; read line < {}; echo got $line; exit 3", go.path);
    agent.request(1, Request::Exec(sh(&script)));
    let pid = pid(&mut agent, 1);
    assert_eq!(park(&mut agent), []);
    go.say("it");
    assert!(common::ends(pid));
    resume(&mut agent);
    agent.request(2, Request::Ping);
    let outcomes = agent.collect(&[1, 2]);
    assert_eq!((outcomes[&1].stdout(), outcomes[&1].exit().exit_code), ("got it\n", 3));
}

#[test]
fn input_goes_on_when_its_pipe_was_emptied_while_parked() {
    let mut agent = Agent::listening();
    let (mut go, mut emptied) = (Fifo::new(), Fifo::new());
    let (go_on, done) = (&go.path, &emptied.path);
    let script = format!("read line < {go_on}; head -c 32768 > /dev/null; echo it > {done}; wc -c");
    agent.request(1, Request::Exec(Exec { stdin: true, ..sh(&script) }));
    for _ in 0..20 {
        agent.send(&Frame::Data { id: 1, channel: Channel::Stdin, bytes: vec![b'x'; 10_000] });
    }
    agent.send(&Frame::Eof { id: 1, channel: Channel::Stdin });
    park(&mut agent);
    go.say("now");
    assert_eq!(emptied.hear(), "it\n");
    resume(&mut agent);
    ping_only(&mut agent);
    assert_eq!(agent.finish(1).stdout().trim(), (200_000 - 32_768).to_string());
}

#[test]
fn a_time_limit_holds_while_parked() {
    let mut agent = Agent::listening();
    agent.request(1, Request::Exec(Exec { timeout_ms: 1000, ..sh("echo $$; exec sleep 1000") }));
    let pid = pid(&mut agent, 1);
    park(&mut agent);
    assert!(common::ends(pid));
    resume(&mut agent);
    agent.request(2, Request::Ping);
    let outcomes = agent.collect(&[1, 2]);
    assert_eq!((outcomes[&1].exit().exit_code, outcomes[&1].exit().timed_out), (137, true));
}

#[test]
fn after_the_answer_to_park_nothing_comes_before_the_host_says_more() {
    let mut agent = Agent::listening();
    agent.request(1, Request::Exec(sh("exec yes")));
    agent.wait_for(1, "y\n");
    park(&mut agent);
    for _ in 0..5 {
        resume(&mut agent); // that alone says nothing
    }
    ping_only(&mut agent);
    agent.send(&Frame::Cancel { id: 1 });
    assert_eq!(agent.finish(1).exit().exit_code, 137);
}

#[test]
fn parking_is_known_of_whichever_link_its_answer_comes_over() {
    let mut agent = Agent::listening();
    agent.request(1, Request::Exec(sh("echo $$; exec sleep 1000")));
    let pid = pid(&mut agent, 1);
    agent.request(PARK, Request::Park);
    let old = agent.reconnect();
    agent.resume(); // whether the old link has brought the request or not
    assert_eq!(agent.receive(), Frame::Reply { id: PARK, reply: Reply::Done });
    drop(old);
    agent.reconnect();
    agent.hello(); // a clone's
    assert_eq!(agent.run(sh(&format!("kill {pid}"))).exit().exit_code, 0);
}

#[test]
fn it_resumes_on_the_same_stream_too() {
    let mut agent = Agent::start();
    agent.request(1, Request::Exec(Exec { stdin: true, ..argv(&["cat"]) }));
    for round in 0..3 {
        park(&mut agent);
        agent.resume();
        let bytes = format!("{round}\n").into_bytes();
        agent.send(&Frame::Data { id: 1, channel: Channel::Stdin, bytes });
        agent.wait_for(1, &format!("{round}\n"));
    }
    agent.send(&Frame::Eof { id: 1, channel: Channel::Stdin });
    assert_eq!(agent.finish(1).exit().exit_code, 0);
}

#[test]
fn another_hello_leaves_the_commands_to_themselves() {
    let mut agent = Agent::listening();
    let mut done = Fifo::new();
    // Waits for the end of its input, then writes far more than its pipe holds.
    let script = format!("cat > /dev/null; seq 1 100000; seq 1 100000 >&2; echo finished > {}", done.path);
    agent.request(1, Request::Exec(Exec { stdin: true, ..sh(&format!("echo $$; {script}")) }));
    let pid = pid(&mut agent, 1);
    park(&mut agent);
    agent.reconnect();
    agent.hello();
    assert_eq!(done.hear(), "finished\n");
    assert!(common::ends(pid));
}

#[test]
fn another_hello_after_one_that_resumes_leaves_the_commands_too() {
    let mut agent = Agent::listening();
    agent.request(1, Request::Exec(sh("echo $$; exec sleep 1000")));
    let pid = pid(&mut agent, 1);
    park(&mut agent);
    resume(&mut agent);
    agent.reconnect();
    agent.hello();
    assert_eq!(agent.run(sh(&format!("kill {pid}"))).exit().exit_code, 0);
    assert!(common::ends(pid));
}

#[test]
fn parked_commands_outlast_the_patience_with_hosts() {
    let mut agent = Agent::patient(Duration::ZERO);
    let mut done = Fifo::new();
    agent.request(1, Request::Exec(sh(&format!("sleep 0.3; echo slept > {}; exit 4", done.path))));
    park(&mut agent);
    drop(agent.reconnect());
    assert_eq!(done.hear(), "slept\n");
    agent.resume();
    agent.request(2, Request::Ping);
    assert_eq!(agent.collect(&[1, 2])[&1].exit().exit_code, 4);
}
