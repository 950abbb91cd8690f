//! The agent in a guest, and a host that says anything: it answers in frames, and ends with its connection. What it is
//! told to run is replaced, and the machine it adopts is none.
#![no_main]

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use manta_agent::channel::Channels;
use manta_agent::{Agent, Machine};
use manta_agent_proto::{Decoder, Exec, Frame, Program, Request, encode};
use rustix::process::{WaitOptions, wait};

/// What fits into the socket's buffer, so that nobody has to read meanwhile.
const MOST: usize = 32 * 1024;
/// Real commands that one input may start; the others are not found.
const COMMANDS: usize = 2;

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let (ours, mut theirs) = UnixStream::pair().expect("a pair of sockets");
    theirs.write_all(&harmless(input)).expect("room for little");
    theirs.shutdown(Shutdown::Write).expect("a socket");
    ours.set_nonblocking(true).expect("a socket");
    let channels = Channels { connection: Some(ours.into()), ..Channels::default() };
    let mut agent = Agent::new(channels, Machine::foreign(), Duration::ZERO).expect("an agent");
    agent.run().expect("it serves to the end");
    drop(agent); // this kills
    while wait(WaitOptions::empty()).is_ok_and(|ended| ended.is_some()) {}
    judge(theirs);
});

/// The same bytes, but for requests that would do something to this machine.
fn harmless(input: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut commands = 0;
    for piece in input[..input.len().min(MOST)].split_inclusive(|byte| *byte == 0) {
        let mut decoder = Decoder::new();
        decoder.feed(piece);
        match decoder.next_frame() {
            Some(Ok(Frame::Request { id, request: Request::Exec(exec) })) => {
                commands += 1;
                let program = if commands <= COMMANDS { "/bin/cat" } else { "no-such-program" };
                let program = Program::Argv(vec![program.to_owned()]);
                let exec = Exec { program, cwd: None, env: Vec::new(), ..exec };
                encode(&Frame::Request { id, request: Request::Exec(exec) }, &mut out)
                    .expect("a short frame");
            }
            // It flushes every disk.
            Some(Ok(Frame::Request { request: Request::Park, .. })) => {}
            _ => out.extend_from_slice(piece),
        }
    }
    out
}

/// All that it said are frames of its own kinds; the last may be cut off.
fn judge(mut from: UnixStream) {
    let mut said = Vec::new();
    match from.read_to_end(&mut said) {
        Err(error) if error.kind() != ErrorKind::ConnectionReset => panic!("{error}"),
        _ => {}
    }
    let mut decoder = Decoder::new();
    decoder.feed(&said);
    while let Some(frame) = decoder.next_frame() {
        let frame = frame.expect("a frame");
        assert!(!matches!(frame, Frame::Request { .. } | Frame::Cancel { .. }), "{frame:?}");
    }
}
