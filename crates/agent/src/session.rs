//! What one host said hello for: its streams, and what both ends have sent on them. It is more than its link: that
//! may be lost, and the session waits for another one, for a while. What runs when it ends is killed.

use std::time::{Duration, Instant};

use manta_agent_proto::{Channel, Exec, Frame, Inbox, MAX_STREAMS, Reply, Request, Resume};
use rustix::process::{Pid, WaitStatus};

use crate::agent::Runtime;
use crate::exec::Job;
use crate::kmsg::chain;
use crate::link::{Link, WRITE};
use crate::outbox::Outbox;
use crate::poll::Token;

#[derive(Debug)]
pub(crate) struct Session {
    /// By which the host knows it: that of its first hello.
    name: u64,
    link: Option<u64>,
    /// When the link was lost, if it was.
    lost: Option<Instant>,
    /// How long a session without a link waits for another one, if commands run.
    patience: Duration,
    /// Silent until the host says more, and not to be given up: what runs runs on, its output waits in its pipes.
    parked: bool,
    inbox: Inbox,
    outbox: Outbox,
    jobs: Vec<Job>,
}

impl Session {
    pub(crate) fn new(name: u64, link: u64, patience: Duration) -> Self {
        Self {
            name,
            link: Some(link),
            lost: None,
            patience,
            parked: false,
            inbox: Inbox::default(),
            outbox: Outbox::default(),
            jobs: Vec::new(),
        }
    }

    /// The link that it uses now.
    pub(crate) fn link(&self) -> Option<u64> {
        self.link
    }

    /// Goes on over that link, if the host means this session; says where.
    pub(crate) fn resume(&mut self, link: u64, host: Resume) -> Option<Resume> {
        // A count that cannot be true: that host means another session.
        if host.session != self.name || self.outbox.resume(host.received).is_err() {
            return None;
        }
        (self.link, self.lost) = (Some(link), None);
        Some(Resume { session: self.name, received: self.inbox.received() })
    }

    /// The link ended.
    pub(crate) fn lose(&mut self, key: u64, now: Instant) {
        if self.link == Some(key) {
            (self.link, self.lost) = (None, Some(now));
        }
    }

    /// Another host has come: kills what runs, or lets it run on without a session if that was parked.
    pub(crate) fn end(self, runtime: &mut Runtime) {
        if self.parked {
            self.jobs.into_iter().for_each(|job| job.detach(runtime));
        }
    }

    /// Whether the host has not come back in time.
    pub(crate) fn is_given_up(&self, now: Instant) -> bool {
        self.last_chance().is_some_and(|until| until <= now)
    }

    fn last_chance(&self) -> Option<Instant> {
        // Without a command there is nothing to be killed, and the host may be in no hurry.
        let lost = self.lost.filter(|_| !self.parked && !self.jobs.is_empty());
        lost.and_then(|lost| lost.checked_add(self.patience))
    }

    /// Whether what the host asks is to be read.
    pub(crate) fn listens(&self) -> bool {
        !self.outbox.is_overfull()
    }

    /// Counts a frame that takes part in the session; gives the acknowledgement if one is due.
    pub(crate) fn count(&mut self, bytes: usize) -> Option<Frame> {
        if std::mem::take(&mut self.parked) {
            // Room in the pipes for input went unnoticed.
            self.jobs.iter_mut().for_each(|job| job.stdin_ready(&mut self.outbox));
        }
        self.inbox.count(bytes)
    }

    /// The host has received that many frames. False if that cannot be.
    pub(crate) fn acknowledge(&mut self, frames: u64) -> bool {
        self.outbox.acknowledge(frames).is_ok()
    }

    pub(crate) fn handle(&mut self, frame: Frame, runtime: &mut Runtime) {
        match frame {
            Frame::Request { id, request } => self.open(id, request, runtime),
            Frame::Cancel { id } => self.with_job(id, |job, _| job.cancel()),
            Frame::Data { id, channel: Channel::Stdin, bytes } => {
                self.with_job(id, |job, outbox| job.receive(&bytes, outbox));
            }
            Frame::Eof { id, channel: Channel::Stdin } => self.with_job(id, Job::end_stdin),
            Frame::Credit { id, channel, bytes } => self.with_job(id, |job, _| job.grant(channel, bytes)),
            // Only ever sent the other way, or no part of a session.
            Frame::Hello(_)
            | Frame::Ack { .. }
            | Frame::Reply { .. }
            | Frame::Data { .. }
            | Frame::Eof { .. } => {}
        }
    }

    /// Answers a request that could not be read.
    pub(crate) fn refuse(&mut self, id: u32, why: &str) {
        if !self.is_open(id) {
            let message = format!("the agent does not understand the request: {why}");
            self.outbox.push(&Frame::Reply { id, reply: Reply::Failed { message } });
        }
    }

    fn open(&mut self, id: u32, request: Request, runtime: &mut Runtime) {
        if self.is_open(id) {
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
                self.parked = true;
                Reply::Done
            }
            Request::Exec(exec) => match self.start(id, &exec, runtime) {
                Ok(()) => return,
                Err(message) => Reply::Failed { message },
            },
        };
        self.outbox.push(&Frame::Reply { id, reply });
    }

    fn start(&mut self, id: u32, exec: &Exec, runtime: &mut Runtime) -> Result<(), String> {
        if self.jobs.len() >= MAX_STREAMS {
            return Err(format!("{MAX_STREAMS} commands are running already"));
        }
        self.jobs.extend(Job::start(id, exec, runtime, &mut self.outbox));
        Ok(())
    }

    fn is_open(&self, id: u32) -> bool {
        self.jobs.iter().any(|job| job.id() == id)
    }

    fn with_job(&mut self, id: u32, act: impl FnOnce(&mut Job, &mut Outbox)) {
        if let Some(job) = self.jobs.iter_mut().find(|job| job.id() == id) {
            act(job, &mut self.outbox);
        }
    }

    /// Something happened on a pipe. False if it is none of ours.
    pub(crate) fn ready(&mut self, token: Token) -> bool {
        let (Token::Stdin(key) | Token::Output(key, _)) = token else { return false };
        let Some(job) = self.jobs.iter_mut().find(|job| job.key() == key) else { return false };
        match token {
            Token::Output(_, which) => job.output_ready(which),
            _ if self.parked => {} // giving back credit would break the silence
            _ => job.stdin_ready(&mut self.outbox),
        }
        true
    }

    /// A child of this process was reaped.
    pub(crate) fn reaped(&mut self, pid: Pid, status: WaitStatus) {
        if let Some(job) = self.jobs.iter_mut().find(|job| job.is_running_as(pid)) {
            job.reaped(status);
        }
    }

    /// When [`Self::expire`] or [`Self::is_given_up`] has something to say.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.jobs.iter().filter_map(Job::deadline).chain(self.last_chance()).min()
    }

    /// Kills what has run for too long.
    pub(crate) fn expire(&mut self, now: Instant) {
        self.jobs.iter_mut().for_each(|job| job.expire(now));
    }

    /// Moves output: one frame of each stream, as far as the outbox has room, so that all get their
    /// turn. Finished streams are answered.
    pub(crate) fn pump(&mut self, runtime: &mut Runtime) {
        if self.parked {
            return;
        }
        let mut index = 0;
        while index < self.jobs.len() && !self.outbox.is_full() {
            self.jobs[index].pump(&mut self.outbox);
            if self.jobs[index].is_finished() {
                self.jobs.remove(index).retire(runtime);
            } else {
                index += 1;
            }
        }
        self.jobs.rotate_left(index); // those left out are the first next time
    }

    /// Whether a [`Self::pump`] would do something.
    pub(crate) fn has_work(&self) -> bool {
        !self.parked && !self.outbox.is_full() && self.jobs.iter().any(Job::has_work)
    }

    /// Gives the link more to write, if it has written all; false if there is nothing.
    pub(crate) fn feed(&mut self, link: &mut Link) -> bool {
        link.out().is_some_and(|out| {
            self.outbox.take(out, WRITE);
            !out.is_empty()
        })
    }
}
