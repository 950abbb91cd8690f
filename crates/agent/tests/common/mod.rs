//! A real agent process at the other end of a socket pair, and a small host to talk to it.
#![allow(dead_code)] // each test file uses its part

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use manta_agent_proto::{
    Channel, Decoder, Exec, ExecExit, Frame, Hello, INITIAL_CREDIT, Inbox, Outbox, PROTOCOL_VERSION, Program,
    Reply, Request, Resume, encode,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::Shutdown;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tempfile::TempDir;

/// No single wait of any test is longer.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

/// An agent and the host's end of its connection. Both end with it.
pub(crate) struct Agent {
    process: Child,
    /// That on which the agent accepts, if it has no other way to the host.
    listener: Option<(TempDir, UnixListener)>,
    stream: UnixStream,
    decoder: Decoder,
    hellos: u64,
    /// The session: its name, and what went to and fro in it.
    session: u64,
    outbox: Outbox,
    inbox: Inbox,
}

/// What came back on one stream.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
    pub(crate) reply: Option<Reply>,
}

impl Outcome {
    pub(crate) fn exit(&self) -> &ExecExit {
        match &self.reply {
            Some(Reply::Exit(exit)) => exit,
            other => panic!("no exit but {other:?}"),
        }
    }

    pub(crate) fn stdout(&self) -> &str {
        std::str::from_utf8(&self.stdout).unwrap()
    }

    pub(crate) fn stderr(&self) -> &str {
        std::str::from_utf8(&self.stderr).unwrap()
    }
}

pub(crate) fn exec(program: Program) -> Exec {
    Exec { program, cwd: None, env: Vec::new(), timeout_ms: 20_000, output_limit: 16 << 20, stdin: false }
}

/// Not a login shell: the machine's profile must not matter.
pub(crate) fn sh(script: &str) -> Exec {
    argv(&["sh", "-c", script])
}

pub(crate) fn argv(words: &[&str]) -> Exec {
    exec(Program::Argv(words.iter().map(|word| (*word).to_owned()).collect()))
}

impl Agent {
    /// Started, but not greeted.
    pub(crate) fn silent() -> Self {
        let (stream, theirs) = UnixStream::pair().unwrap();
        Self::new(spawn(theirs.into(), DEADLINE), None, stream)
    }

    /// Started with a session, and to be reached over any number of connections.
    pub(crate) fn listening() -> Self {
        Self::patient(DEADLINE)
    }

    /// As [`Self::listening`]; waits that long for hosts that are away.
    pub(crate) fn patient(patience: Duration) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join("agent")).unwrap();
        let stream = connect(&listener);
        let process = spawn(listener.try_clone().unwrap().into(), patience);
        let mut agent = Self::new(process, Some((directory, listener)), stream);
        agent.hello();
        agent
    }

    fn new(process: Child, listener: Option<(TempDir, UnixListener)>, stream: UnixStream) -> Self {
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.set_write_timeout(Some(DEADLINE)).unwrap();
        let (outbox, inbox) = (Outbox::default(), Inbox::default());
        Self { process, listener, stream, decoder: Decoder::new(), hellos: 0, session: 0, outbox, inbox }
    }

    /// Goes on over a new connection; the old one is given back, still open.
    pub(crate) fn reconnect(&mut self) -> UnixStream {
        let stream = connect(&self.listener.as_ref().unwrap().1);
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.set_write_timeout(Some(DEADLINE)).unwrap();
        self.decoder = Decoder::new();
        std::mem::replace(&mut self.stream, stream)
    }

    /// Started, with a session.
    pub(crate) fn start() -> Self {
        let mut agent = Self::silent();
        agent.hello();
        agent
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Begins a session.
    pub(crate) fn hello(&mut self) {
        assert_eq!(self.greet(None), None);
        (self.session, self.outbox, self.inbox) = (self.hellos, Outbox::default(), Inbox::default());
    }

    /// Goes on with the session, over whatever link there is now.
    pub(crate) fn resume(&mut self) {
        let ours = Resume { session: self.session, received: self.inbox.received() };
        let theirs = self.greet(Some(ours)).expect("the session is gone");
        assert_eq!(theirs.session, self.session);
        self.outbox.resume(theirs.received).unwrap();
        self.send_waiting();
    }

    /// Says hello and drops everything that arrives before its answer; gives what the agent goes on with.
    pub(crate) fn greet(&mut self, resume: Option<Resume>) -> Option<Resume> {
        self.hellos += 1;
        let mut bytes = Vec::new();
        let hello = Hello { version: PROTOCOL_VERSION, session: self.hellos, resume };
        encode(&Frame::Hello(hello), &mut bytes).unwrap();
        self.send_raw(&bytes);
        for _ in 0..100_000 {
            match self.next_frame().expect("the agent hung up") {
                Frame::Hello(hello) if hello.session == self.hellos => return hello.resume,
                _ => {}
            }
        }
        panic!("no answer to hello");
    }

    /// The session's name.
    pub(crate) fn session(&self) -> u64 {
        self.session
    }

    pub(crate) fn send(&mut self, frame: &Frame) {
        let mut bytes = Vec::new();
        encode(frame, &mut bytes).unwrap();
        if matches!(frame, Frame::Hello(_) | Frame::Ack { .. }) {
            self.send_raw(&bytes);
        } else {
            self.outbox.push(bytes);
            self.send_waiting();
        }
    }

    fn send_waiting(&mut self) {
        let mut bytes = Vec::new();
        self.outbox.take(&mut bytes, usize::MAX);
        self.send_raw(&bytes);
    }

    pub(crate) fn send_raw(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    pub(crate) fn request(&mut self, id: u32, request: Request) {
        self.send(&Frame::Request { id, request });
    }

    /// The next frame, whole or not at all.
    pub(crate) fn receive(&mut self) -> Frame {
        self.try_receive().expect("the agent hung up")
    }

    /// None when the agent has hung up. Acknowledgements are seen to.
    pub(crate) fn try_receive(&mut self) -> Option<Frame> {
        loop {
            match self.next_frame()? {
                Frame::Ack { frames } => self.outbox.acknowledge(frames).unwrap(),
                hello @ Frame::Hello(_) => return Some(hello),
                frame => {
                    if let Some(ack) = self.inbox.count(self.decoder.frame_len()) {
                        self.send(&ack);
                    }
                    return Some(frame);
                }
            }
        }
    }

    fn next_frame(&mut self) -> Option<Frame> {
        loop {
            // A frame cut off by a new link is what `hello` is for.
            match self.decoder.next_frame() {
                Some(Ok(frame)) => return Some(frame),
                Some(Err(_)) => continue,
                None => {}
            }
            let mut buffer = [0; 64 * 1024];
            let length = self.stream.read(&mut buffer).expect("nothing from the agent in time");
            if length == 0 {
                return None;
            }
            self.decoder.feed(&buffer[..length]);
        }
    }

    /// Reads until all of `ids` are answered, giving back credit for what it reads.
    pub(crate) fn collect(&mut self, ids: &[u32]) -> BTreeMap<u32, Outcome> {
        let mut outcomes: BTreeMap<u32, Outcome> = BTreeMap::new();
        let mut used: BTreeMap<(u32, u8), u32> = BTreeMap::new();
        let mut open = ids.len();
        while open > 0 {
            match self.receive() {
                Frame::Data { id, channel, bytes } => {
                    let outcome = outcomes.entry(id).or_default();
                    assert!(outcome.reply.is_none(), "data after the reply");
                    let used = used.entry((id, channel as u8)).or_default();
                    *used += u32::try_from(bytes.len()).unwrap();
                    assert!(*used <= INITIAL_CREDIT, "more data than credit");
                    if *used > INITIAL_CREDIT / 2 {
                        self.send(&Frame::Credit { id, channel, bytes: std::mem::take(used) });
                    }
                    match channel {
                        Channel::Stdout => outcome.stdout.extend(bytes),
                        Channel::Stderr => outcome.stderr.extend(bytes),
                        Channel::Stdin => panic!("input from the agent"),
                    }
                }
                Frame::Reply { id, reply } => {
                    assert!(ids.contains(&id), "answer to nothing: {id}");
                    assert_eq!(outcomes.entry(id).or_default().reply.replace(reply), None, "answered twice");
                    open -= 1;
                }
                Frame::Credit { channel: Channel::Stdin, .. } => {}
                other => panic!("unexpected {other:?}"),
            }
        }
        outcomes
    }

    /// Runs one command to its end.
    pub(crate) fn run(&mut self, exec: Exec) -> Outcome {
        self.request(1, Request::Exec(exec));
        self.finish(1)
    }

    pub(crate) fn finish(&mut self, id: u32) -> Outcome {
        self.collect(&[id]).remove(&id).unwrap()
    }

    /// Reads standard output of stream `id` until it contains `text`.
    pub(crate) fn wait_for(&mut self, id: u32, text: &str) -> String {
        let mut seen = Vec::new();
        while !String::from_utf8_lossy(&seen).contains(text) {
            match self.receive() {
                Frame::Data { id: from, bytes, .. } if from == id => seen.extend(bytes),
                other => panic!("{other:?} while waiting for {text:?} on {id}"),
            }
        }
        String::from_utf8(seen).unwrap()
    }

    /// Hangs up and waits for the agent's end.
    pub(crate) fn hang_up(mut self) -> std::process::ExitStatus {
        self.stream.shutdown(std::net::Shutdown::Both).unwrap();
        assert!(ends(self.pid()), "the agent runs on");
        self.process.wait().unwrap()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // Hanging up makes it kill its commands; only then does it end by itself.
        if let Some((_, listener)) = &self.listener {
            let _ = rustix::net::shutdown(listener, Shutdown::Both);
        }
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
        if !ends(self.pid()) {
            let _ = self.process.kill();
        }
        let _ = self.process.wait();
    }
}

fn connect(listener: &UnixListener) -> UnixStream {
    UnixStream::connect_addr(&listener.local_addr().unwrap()).unwrap()
}

fn spawn(stdin: OwnedFd, patience: Duration) -> Child {
    // At run time: the shell of .cargo/rustc-wrapper drops variables with a hyphen in their name.
    let program = std::env::var_os("CARGO_BIN_EXE_manta-agent").expect("run by cargo");
    let patience = patience.as_millis().to_string();
    Command::new(program).stdin(Stdio::from(stdin)).env("MANTA_AGENT_PATIENCE_MS", patience).spawn().unwrap()
}

/// Waits until the process has ended, reaped or not. False if it does not in time.
pub(crate) fn ends(pid: u32) -> bool {
    let pid = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    let Ok(pidfd) = pidfd_open(pid, PidfdFlags::empty()) else { return true };
    let limit = Timespec { tv_sec: DEADLINE.as_secs() as i64, tv_nsec: 0 };
    poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&limit)).unwrap() == 1
}
