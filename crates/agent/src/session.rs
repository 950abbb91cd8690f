//! What one host said hello for: its streams. Ends with that host, and kills what runs then.

use std::path::Path;
use std::time::Instant;

use manta_agent_proto::{Channel, Exec, Frame, MAX_STREAMS, Reply, Request};
use rustix::process::{Pid, WaitStatus};

use crate::agent::Runtime;
use crate::exec::Job;
use crate::kmsg::chain;
use crate::link::Outbox;
use crate::poll::Token;
use crate::{names, net};

#[derive(Debug, Default)]
pub(crate) struct Session {
    jobs: Vec<Job>,
}

impl Session {
    pub(crate) fn handle(&mut self, frame: Frame, runtime: &mut Runtime, outbox: &mut Outbox) {
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
            Request::Configure(network) => match configure(&network) {
                Ok(()) => Reply::Done,
                Err(message) => Reply::Failed { message },
            },
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
    pub(crate) fn ready(&mut self, token: Token, outbox: &mut Outbox) -> bool {
        let (Token::Stdin(key) | Token::Output(key, _)) = token else { return false };
        let Some(job) = self.jobs.iter_mut().find(|job| job.key() == key) else { return false };
        match token {
            Token::Output(_, which) => job.output_ready(which),
            _ => job.stdin_ready(outbox),
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

fn configure(network: &manta_agent_proto::Network) -> Result<(), String> {
    net::configure(network).map_err(|error| chain(&error))?;
    names::configure(Path::new("/"), network).map_err(|error| chain(&error))
}
