//! Pipes of commands that are over, still held by processes they left in the background. Read into
//! nowhere, so that a server that logs neither blocks nor dies of a closed pipe.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::pipe::{SpliceFlags, splice};

use crate::poll::{Interest, Poller, Token};

/// Most pipes to hold; beyond that the oldest is closed.
const MOST: usize = 1024;

/// Most bytes to drop at once: what the largest ordinary pipe holds.
const CHUNK: usize = 1024 * 1024;

#[derive(Debug, Default)]
pub(crate) struct Drain {
    pipes: BTreeMap<Token, OwnedFd>,
}

impl Drain {
    /// Takes a non-blocking pipe that is watched under `token`.
    pub(crate) fn adopt(&mut self, token: Token, pipe: OwnedFd, poller: &Poller) {
        // Usually nobody holds the other end, and this is all. From then on one event, one read: a
        // process that never stops writing must not keep the loop.
        if drop_once(&pipe) && poller.modify(&pipe, token, Interest::ReadLevel).is_ok() {
            self.pipes.insert(token, pipe);
        }
        if self.pipes.len() > MOST {
            self.pipes.pop_first();
        }
    }

    pub(crate) fn ready(&mut self, token: Token) {
        if self.pipes.get(&token).is_some_and(|pipe| !drop_once(pipe)) {
            self.pipes.remove(&token);
        }
    }
}

/// Drops what is in the pipe. False at its end. Our standard input is `/dev/null`, which also takes.
fn drop_once(pipe: &OwnedFd) -> bool {
    let dropped = splice(pipe, None, rustix::stdio::stdin(), None, CHUNK, SpliceFlags::NONBLOCK);
    match dropped {
        Ok(length) => length > 0,
        Err(error) => matches!(error, Errno::AGAIN | Errno::INTR),
    }
}
