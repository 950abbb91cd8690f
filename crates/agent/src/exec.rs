//! One running command of a session: its process group, its pipes, its time limit, its end.
//!
//! It ends with the exit of its main process. What that left in the pipes is sent first; then the
//! reply. Processes it left running in the background go on, with their output drained
//! (`crate::drain`), as on any machine.

mod output;
mod stdin;

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use manta_agent_proto::{Channel, Exec, ExecExit, Frame, MAX_DATA, Reply};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitStatus, kill_process, kill_process_group};

use self::output::Output;
use self::stdin::Stdin;
use crate::agent::Runtime;
use crate::kmsg::chain;
use crate::launch::{LaunchError, Launched, launch};
use crate::outbox::Outbox;
use crate::poll::{Interest, Token};

/// Most bytes of an explanation why a command was not started.
const EXPLANATION: usize = 4096;

#[derive(Debug)]
pub(crate) struct Job {
    id: u32,
    key: u64,
    /// The main process, until it is reaped or left to itself.
    pid: Option<Pid>,
    started: Instant,
    /// None when there is none, when it has passed, and when the process has ended.
    deadline: Option<Instant>,
    stdin: Stdin,
    outputs: [Output; 2],
    timed_out: bool,
    cancelled: bool,
    /// Exit code and run time, once the process has ended.
    ended: Option<(i32, Duration)>,
}

impl Job {
    /// Starts the command of stream `id`. If it cannot be started that is said on the stream, which is
    /// then over.
    pub(crate) fn start(id: u32, exec: &Exec, runtime: &mut Runtime, outbox: &mut Outbox) -> Option<Self> {
        let started = Instant::now();
        let launched = match launch(exec, &mut runtime.spawner) {
            Ok(launched) => launched,
            Err(error) => {
                not_started(id, exec.output_limit, &error, outbox);
                return None;
            }
        };
        let key = runtime.poller.fresh_key();
        let job = Self::new(id, key, started, exec, launched, runtime);
        match job {
            Ok(job) => Some(job),
            Err(source) => {
                not_started(id, exec.output_limit, &LaunchError::Pipe { source }, outbox);
                None
            }
        }
    }

    fn new(
        id: u32,
        key: u64,
        started: Instant,
        exec: &Exec,
        launched: Launched,
        runtime: &Runtime,
    ) -> Result<Self, Errno> {
        let Launched { pid, stdin, outputs: [stdout, stderr] } = launched;
        let watched = [&stdout, &stderr]
            .into_iter()
            .zip(0..)
            .try_for_each(|(pipe, which)| {
                runtime.poller.add(pipe.as_fd(), Token::Output(key, which), Interest::Read)
            })
            .and_then(|()| match &stdin {
                Some(pipe) => runtime.poller.add(pipe, Token::Stdin(key), Interest::Write),
                None => Ok(()),
            });
        let job = Self {
            id,
            key,
            pid: Some(pid),
            started,
            deadline: started.checked_add(Duration::from_millis(exec.timeout_ms)),
            stdin: Stdin::new(stdin),
            outputs: [
                Output::new(Channel::Stdout, stdout, exec.output_limit),
                Output::new(Channel::Stderr, stderr, exec.output_limit),
            ],
            timed_out: false,
            cancelled: false,
            ended: None,
        };
        watched.map(|()| job) // dropped, and so killed, if it cannot be watched
    }

    pub(crate) fn id(&self) -> u32 {
        self.id
    }

    pub(crate) fn key(&self) -> u64 {
        self.key
    }

    /// When [`Self::expire`] has something to do.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// The process that has to be reaped for the command to end.
    pub(crate) fn is_running_as(&self, pid: Pid) -> bool {
        self.pid == Some(pid)
    }

    pub(crate) fn output_ready(&mut self, which: usize) {
        if let Some(output) = self.outputs.get_mut(which) {
            output.ready();
        }
    }

    /// The process was reaped.
    pub(crate) fn reaped(&mut self, status: WaitStatus) {
        // 128 + n is how shells report signal n.
        let code = status.exit_status().or(status.terminating_signal().map(|signal| 128 + signal));
        self.ended = Some((code.unwrap_or(-1), self.started.elapsed()));
        self.pid = None;
        self.deadline = None;
        for output in &mut self.outputs {
            output.command_ended();
            if self.cancelled {
                output.abandon();
            }
        }
    }

    /// Kills the command if its time is up.
    pub(crate) fn expire(&mut self, now: Instant) {
        if self.deadline.is_some_and(|deadline| deadline <= now) {
            self.deadline = None;
            self.timed_out = true;
            self.kill();
        }
    }

    /// Kills the command. It ends soon, even if the host takes no more output.
    pub(crate) fn cancel(&mut self) {
        self.cancelled = true;
        self.kill();
        if self.ended.is_some() {
            self.outputs.iter_mut().for_each(Output::abandon);
        }
    }

    pub(crate) fn receive(&mut self, bytes: &[u8], outbox: &mut Outbox) {
        if self.stdin.receive(bytes) {
            self.stdin.pump(self.id, outbox);
        } else {
            self.cancel(); // the host broke the flow control: nothing sensible can be fed to the command
        }
    }

    pub(crate) fn end_stdin(&mut self, outbox: &mut Outbox) {
        self.stdin.end();
        self.stdin.pump(self.id, outbox);
    }

    pub(crate) fn stdin_ready(&mut self, outbox: &mut Outbox) {
        self.stdin.pump(self.id, outbox);
    }

    pub(crate) fn grant(&mut self, channel: Channel, bytes: u32) {
        match channel {
            Channel::Stdin => {}
            Channel::Stdout => self.outputs[0].grant(bytes),
            Channel::Stderr => self.outputs[1].grant(bytes),
        }
    }

    /// Sends at most one frame of each output, and the reply when that was all.
    pub(crate) fn pump(&mut self, outbox: &mut Outbox) {
        for output in &mut self.outputs {
            output.pump(self.id, outbox);
        }
        if let Some((exit_code, ran)) = self.ended
            && self.is_finished()
        {
            let exit = ExecExit {
                exit_code,
                timed_out: self.timed_out,
                stdout_truncated: self.outputs[0].truncated(),
                stderr_truncated: self.outputs[1].truncated(),
                duration_us: u64::try_from(ran.as_micros()).unwrap_or(u64::MAX),
            };
            outbox.push(&Frame::Reply { id: self.id, reply: Reply::Exit(exit) });
        }
    }

    /// Whether a [`Self::pump`] would do something.
    pub(crate) fn has_work(&self) -> bool {
        self.outputs.iter().any(Output::has_work) || self.is_finished()
    }

    /// The process has ended and all its output is sent.
    pub(crate) fn is_finished(&self) -> bool {
        self.ended.is_some() && self.outputs.iter().all(Output::is_done)
    }

    /// Lets the command run on, with the end of its input and with nobody to read its output.
    pub(crate) fn detach(mut self, runtime: &mut Runtime) {
        self.pid = None;
        self.retire(runtime);
    }

    /// Leaves the pipes to whoever still holds their other ends.
    pub(crate) fn retire(mut self, runtime: &mut Runtime) {
        for (output, which) in self.outputs.iter_mut().zip(0..) {
            if let Some(pipe) = output.take_pipe() {
                runtime.drain.adopt(Token::Output(self.key, which), pipe, &runtime.poller);
            }
        }
    }

    fn kill(&self) {
        // Until it is reaped, neither its id nor its group's can belong to anyone else.
        if let Some(pid) = self.pid {
            let _ = kill_process_group(pid, Signal::KILL);
            let _ = kill_process(pid, Signal::KILL); // in case it has moved to another group
        }
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Tells the host, as a shell would, that a command was not started.
fn not_started(id: u32, limit: u64, error: &LaunchError, outbox: &mut Outbox) {
    let text = format!("manta: {}\n", chain(error));
    let most = usize::try_from(limit).unwrap_or(usize::MAX).min(EXPLANATION).min(MAX_DATA);
    let bytes = text.as_bytes()[..text.len().min(most)].to_vec();
    let exit = ExecExit {
        exit_code: error.exit_code(),
        timed_out: false,
        stdout_truncated: false,
        stderr_truncated: bytes.len() < text.len(),
        duration_us: 0,
    };
    if !bytes.is_empty() {
        outbox.push(&Frame::Data { id, channel: Channel::Stderr, bytes });
    }
    outbox.push(&Frame::Reply { id, reply: Reply::Exit(exit) });
}
