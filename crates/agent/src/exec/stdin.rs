//! Standard input of a command: from data frames into its pipe. Once nobody reads it any more the
//! bytes are dropped, but the host still gets its credit back.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;

use manta_agent_proto::{Channel, Frame, INITIAL_CREDIT};
use rustix::io::Errno;

use crate::outbox::Outbox;

/// Credit is given back in portions of this: half the window, so that the host never waits for a
/// portion it has not yet used up.
const PORTION: usize = INITIAL_CREDIT as usize / 2;

#[derive(Debug)]
pub(crate) struct Stdin {
    /// None once it is closed at either end.
    pipe: Option<OwnedFd>,
    waiting: VecDeque<u8>,
    /// The host has sent all.
    ended: bool,
    /// Used up, not yet given back as credit.
    used: usize,
}

impl Stdin {
    pub(crate) fn new(pipe: Option<OwnedFd>) -> Self {
        Self { pipe, waiting: VecDeque::new(), ended: false, used: 0 }
    }

    /// Takes bytes of the host. False when they are more than it was allowed to send.
    pub(crate) fn receive(&mut self, bytes: &[u8]) -> bool {
        if self.waiting.len() + self.used + bytes.len() > INITIAL_CREDIT as usize {
            return false;
        }
        self.waiting.extend(bytes);
        true
    }

    /// The host has sent all.
    pub(crate) fn end(&mut self) {
        self.ended = true;
    }

    /// Writes what it can and gives back credit.
    pub(crate) fn pump(&mut self, id: u32, outbox: &mut Outbox) {
        while let Some(pipe) = &self.pipe
            && !self.waiting.is_empty()
        {
            match rustix::io::write(pipe, self.waiting.as_slices().0) {
                Ok(length) => {
                    self.waiting.drain(..length);
                    self.used += length;
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(_) => self.pipe = None,
            }
        }
        if self.pipe.is_none() {
            self.used += self.waiting.len();
            self.waiting.clear();
        } else if self.ended && self.waiting.is_empty() {
            self.pipe = None;
        }
        if self.used >= PORTION {
            outbox.push(&Frame::Credit { id, channel: Channel::Stdin, bytes: self.used as u32 });
            self.used = 0;
        }
    }
}
