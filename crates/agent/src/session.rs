//! What one host said hello for: its streams. Ends with that host, and kills what runs then; unless the host
//! has parked it before, to go on with it later over another link.

use std::time::Instant;

use manta_agent_proto::{Channel, Exec, Frame, MAX_STREAMS, Reply, Request};
use rustix::process::{Pid, WaitStatus};

use crate::agent::Runtime;
use crate::exec::Job;
use crate::kmsg::chain;
use crate::link::Outbox;
use crate::poll::Token;

/// What a session hangs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hold {
    /// Lives and ends with this link.
    Link(u64),
    /// Parked: what runs runs on, its output waits in its pipes, and links may come and go.
    Parked,
    /// As parked until the host says something on this link, which is then the session's.
    Resuming { link: u64, nonce: u64 },
}

#[derive(Debug)]
pub(crate) struct Session {
    /// By which the host can name it; that of the last hello.
    nonce: u64,
    hold: Hold,
    jobs: Vec<Job>,
    /// Has just been resumed: room in the pipes for input went unnoticed.
    woken: bool,
}

impl Session {
    pub(crate) fn new(nonce: u64, link: u64) -> Self {
        Self { nonce, hold: Hold::Link(link), jobs: Vec::new(), woken: false }
    }

    /// The link on which the host is listened to.
    pub(crate) fn link(&self) -> Option<u64> {
        match self.hold {
            Hold::Link(link) | Hold::Resuming { link, .. } => Some(link),
            Hold::Parked => None,
        }
    }

    /// The link on which the host is spoken to.
    pub(crate) fn active_link(&self) -> Option<u64> {
        if let Hold::Link(link) = self.hold { Some(link) } else { None }
    }

    /// Whether the host has parked this session, and not said anything since.
    pub(crate) fn is_parked(&self) -> bool {
        self.active_link().is_none()
    }

    /// Whether a hello that says so resumes this session.
    pub(crate) fn is_parked_as(&self, nonce: u64) -> bool {
        self.is_parked() && self.nonce == nonce
    }

    /// The host wants to go on with this parked session on that link, and call it `nonce`.
    pub(crate) fn resume(&mut self, link: u64, nonce: u64) {
        self.hold = Hold::Resuming { link, nonce };
    }

    /// Lets everything run on without a session, when it was parked and nobody wants to go on with it.
    pub(crate) fn detach(self, runtime: &mut Runtime) {
        self.jobs.into_iter().for_each(|job| job.detach(runtime));
    }

    /// The link ended. True if the session does too.
    pub(crate) fn ends_with(&mut self, key: u64) -> bool {
        match self.hold {
            Hold::Link(link) => link == key,
            Hold::Parked => false,
            Hold::Resuming { link, .. } => {
                if link == key {
                    self.hold = Hold::Parked;
                }
                false
            }
        }
    }

    /// The host has said something.
    fn heard(&mut self) {
        if let Hold::Resuming { link, nonce } = self.hold {
            self.hold = Hold::Link(link);
            self.nonce = nonce;
            self.woken = true;
        }
    }

    pub(crate) fn handle(&mut self, frame: Frame, runtime: &mut Runtime, outbox: &mut Outbox) {
        self.heard();
        match frame {
            Frame::Request { id, request } => self.open(id, request, runtime, outbox),
            Frame::Cancel { id } => {
                if let Some(job) = self.job(id) {
                    job.cancel();
                }
            }
            Frame::Data { id, channel: Channel::Stdin, bytes } => {
                if let Some(job) = self.job(id) {
                    job.receive(&bytes, outbox);
                }
            }
            Frame::Eof { id, channel: Channel::Stdin } => {
                if let Some(job) = self.job(id) {
                    job.end_stdin(outbox);
                }
            }
            Frame::Credit { id, channel, bytes } => {
                if let Some(job) = self.job(id) {
                    job.grant(channel, bytes);
                }
            }
            // Only ever sent the other way.
            Frame::Hello(_) | Frame::Reply { .. } | Frame::Data { .. } | Frame::Eof { .. } => {}
        }
    }

    /// Answers a request that could not be read.
    pub(crate) fn refuse(&mut self, id: u32, why: &str, outbox: &mut Outbox) {
        self.heard();
        if self.job(id).is_none() {
            let message = format!("the agent does not understand the request: {why}");
            outbox.push(&Frame::Reply { id, reply: Reply::Failed { message } });
        }
    }

    fn open(&mut self, id: u32, request: Request, runtime: &mut Runtime, outbox: &mut Outbox) {
        if self.job(id).is_some() {
            return; // any answer would be taken for the answer of the stream that is open
        }
        let reply = match request {
            Request::Ping => Reply::Done,
            Request::Adopt(adopt) => match runtime.machine.adopt(&adopt) {
                Ok(unix_ns) => Reply::Adopted { unix_ns },
                Err(error) => Reply::Failed { message: chain(&error) },
            },
            Request::Park => {
                rustix::fs::sync();
                self.hold = Hold::Parked;
                Reply::Done
            }
            Request::Exec(exec) => match self.start(id, &exec, runtime, outbox) {
                Ok(()) => return,
                Err(message) => Reply::Failed { message },
            },
        };
        outbox.push(&Frame::Reply { id, reply });
    }

    fn start(
        &mut self,
        id: u32,
        exec: &Exec,
        runtime: &mut Runtime,
        outbox: &mut Outbox,
    ) -> Result<(), String> {
        if self.jobs.len() >= MAX_STREAMS {
            return Err(format!("{MAX_STREAMS} commands are running already"));
        }
        self.jobs.extend(Job::start(id, exec, runtime, outbox));
        Ok(())
    }

    fn job(&mut self, id: u32) -> Option<&mut Job> {
        self.jobs.iter_mut().find(|job| job.id() == id)
    }

    /// Something happened on a pipe. False if it is none of ours.
    /// Without an outbox, input waits until the session is resumed.
    pub(crate) fn ready(&mut self, token: Token, outbox: Option<&mut Outbox>) -> bool {
        let (Token::Stdin(key) | Token::Output(key, _)) = token else { return false };
        let Some(job) = self.jobs.iter_mut().find(|job| job.key() == key) else { return false };
        match (token, outbox) {
            (Token::Output(_, which), _) => job.output_ready(which),
            (_, Some(outbox)) => job.stdin_ready(outbox),
            (_, None) => {}
        }
        true
    }

    /// A child of this process was reaped.
    pub(crate) fn reaped(&mut self, pid: Pid, status: WaitStatus) {
        if let Some(job) = self.jobs.iter_mut().find(|job| job.is_running_as(pid)) {
            job.reaped(status);
        }
    }

    /// When [`Self::expire`] has something to do.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.jobs.iter().filter_map(Job::deadline).min()
    }

    /// Kills what has run for too long.
    pub(crate) fn expire(&mut self, now: Instant) {
        self.jobs.iter_mut().for_each(|job| job.expire(now));
    }

    /// Moves output: one frame of each stream, as far as the outbox has room, so that all get their
    /// turn. Finished streams are answered.
    pub(crate) fn pump(&mut self, runtime: &mut Runtime, outbox: &mut Outbox) {
        if std::mem::take(&mut self.woken) {
            self.jobs.iter_mut().for_each(|job| job.stdin_ready(outbox));
        }
        let mut index = 0;
        while index < self.jobs.len() && !outbox.is_full() {
            self.jobs[index].pump(outbox);
            if self.jobs[index].is_finished() {
                self.jobs.remove(index).retire(runtime);
            } else {
                index += 1;
            }
        }
        self.jobs.rotate_left(index); // those left out are the first next time
    }

    /// Whether a [`Self::pump`] would do something, were there room.
    pub(crate) fn has_work(&self) -> bool {
        self.jobs.iter().any(Job::has_work)
    }
}
