//! One output of a command: from its pipe into data frames, within the host's credit and the limit.

use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;

use manta_agent_proto::{Channel, Frame, INITIAL_CREDIT, MAX_DATA};
use rustix::io::Errno;

use crate::outbox::Outbox;

#[derive(Debug)]
pub(crate) struct Output {
    /// None after its end.
    pipe: Option<OwnedFd>,
    channel: Channel,
    /// Something may be there to read.
    readable: bool,
    /// Bytes the host has room for.
    credit: u64,
    /// Bytes still to be sent; what comes after them is dropped.
    limit: u64,
    truncated: bool,
    /// After the command's exit: bytes that it left in the pipe. What others write after that, who
    /// still hold the pipe, is not the command's output.
    left_behind: Option<u64>,
}

impl Output {
    pub(crate) fn new(channel: Channel, pipe: OwnedFd, limit: u64) -> Self {
        let credit = u64::from(INITIAL_CREDIT);
        Self {
            pipe: Some(pipe),
            channel,
            readable: false,
            credit,
            limit,
            truncated: false,
            left_behind: None,
        }
    }

    pub(crate) fn ready(&mut self) {
        self.readable = true;
    }

    pub(crate) fn grant(&mut self, bytes: u32) {
        self.credit = self.credit.saturating_add(bytes.into());
    }

    /// The command has ended: only what is in the pipe now is its output.
    pub(crate) fn command_ended(&mut self) {
        let pipe = self.pipe.as_ref();
        self.left_behind = Some(pipe.and_then(|pipe| rustix::io::ioctl_fionread(pipe).ok()).unwrap_or(0));
        self.readable = true;
    }

    /// Does not wait for credit any more: what the host has no room for is dropped.
    pub(crate) fn abandon(&mut self) {
        self.limit = self.limit.min(self.credit);
    }

    /// Whether a [`Self::pump`] would do something.
    pub(crate) fn has_work(&self) -> bool {
        self.readable && !self.is_done() && (self.limit == 0 || self.credit > 0)
    }

    /// All output of a command that has ended is sent.
    pub(crate) fn is_done(&self) -> bool {
        self.pipe.is_none() || self.left_behind == Some(0)
    }

    pub(crate) fn truncated(&self) -> bool {
        self.truncated
    }

    /// The pipe, if it is not at its end, for when the command is over.
    pub(crate) fn take_pipe(&mut self) -> Option<OwnedFd> {
        self.pipe.take()
    }

    /// Reads once, if there is something to do, and sends or drops it.
    pub(crate) fn pump(&mut self, id: u32, outbox: &mut Outbox) {
        if !self.has_work() {
            return;
        }
        let Some(pipe) = &self.pipe else { return };
        let allowance = if self.limit == 0 { u64::MAX } else { self.limit.min(self.credit) };
        let most = allowance.min(self.left_behind.unwrap_or(u64::MAX)).min(MAX_DATA as u64) as usize;
        let mut buffer = [MaybeUninit::uninit(); MAX_DATA];
        match rustix::io::read(pipe, &mut buffer[..most]) {
            Ok(([], _)) => self.pipe = None,
            Err(Errno::INTR) => {}
            Err(_) => {
                self.readable = false;
                self.left_behind = self.left_behind.map(|_| 0);
            }
            Ok((bytes, _)) => {
                let count = bytes.len() as u64;
                self.left_behind = self.left_behind.map(|left| left.saturating_sub(count));
                if self.limit == 0 {
                    self.truncated = true;
                } else {
                    self.limit -= count;
                    self.credit -= count;
                    outbox.push(&Frame::Data { id, channel: self.channel, bytes: bytes.to_vec() });
                }
            }
        }
    }
}
