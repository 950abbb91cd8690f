//! The epoll instance and the names of what it watches.
//!
//! Everything is edge-triggered, which spares re-arming calls on the exec path: whoever gets an event
//! reads or writes until it would block, or remembers that there is more.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::event::{Timespec, epoll};
use rustix::io::Errno;

/// What an event is about. Keys are never used twice, so an event for something that is gone finds
/// nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Token {
    /// A child ended.
    Children,
    /// Someone connects.
    Listener,
    /// A byte stream to the host.
    Link(u64),
    /// Standard input of a job.
    Stdin(u64),
    /// Standard output (0) or error (1) of a job, or what is left of it after the job.
    Output(u64, usize),
}

impl Token {
    fn to_u64(self) -> u64 {
        match self {
            Self::Children => 0,
            Self::Listener => 1,
            Self::Link(key) => key << 3 | 2,
            Self::Stdin(key) => key << 3 | 3,
            Self::Output(key, which) => key << 3 | 4 | (which as u64 & 1),
        }
    }

    fn from_u64(raw: u64) -> Self {
        let key = raw >> 3;
        match raw & 7 {
            0 => Self::Children,
            1 => Self::Listener,
            2 => Self::Link(key),
            3 => Self::Stdin(key),
            which => Self::Output(key, usize::from(which & 1 == 1)),
        }
    }
}

/// An event: what it is about, and whether it can be written to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Event {
    pub(crate) token: Token,
    pub(crate) writable: bool,
    /// Nothing comes after what is there.
    pub(crate) hung_up: bool,
}

/// What to wait for, always with edge triggering unless it says otherwise.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Interest {
    Read,
    Write,
    ReadWrite,
    /// Readable, told again and again while it is.
    ReadLevel,
}

impl Interest {
    fn flags(self) -> epoll::EventFlags {
        use epoll::EventFlags as F;
        match self {
            Self::Read => F::IN | F::ET,
            Self::Write => F::OUT | F::ET,
            Self::ReadWrite => F::IN | F::OUT | F::ET,
            Self::ReadLevel => F::IN,
        }
    }
}

#[derive(Debug)]
pub(crate) struct Poller {
    epoll: OwnedFd,
    last_key: u64,
}

impl Poller {
    pub(crate) fn new() -> Result<Self, Errno> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        Ok(Self { epoll, last_key: 0 })
    }

    /// A key that was never used before.
    pub(crate) fn fresh_key(&mut self) -> u64 {
        self.last_key += 1;
        self.last_key
    }

    /// Closing the descriptor ends the watch.
    pub(crate) fn add(&self, fd: impl AsFd, token: Token, interest: Interest) -> Result<(), Errno> {
        epoll::add(&self.epoll, fd, epoll::EventData::new_u64(token.to_u64()), interest.flags())
    }

    /// Changes what is waited for; what is true already is told again.
    pub(crate) fn modify(&self, fd: impl AsFd, token: Token, interest: Interest) -> Result<(), Errno> {
        epoll::modify(&self.epoll, fd, epoll::EventData::new_u64(token.to_u64()), interest.flags())
    }

    /// Waits at most `timeout` (forever if none), and appends what happened to `events`.
    pub(crate) fn wait(&self, timeout: Option<Duration>, events: &mut Vec<Event>) -> Result<(), Errno> {
        // Longer waits than an hour wake up once in vain; epoll_wait counts milliseconds in an i32.
        let timeout = timeout.map(|timeout| {
            let timeout = timeout.min(Duration::from_secs(3600));
            Timespec { tv_sec: timeout.as_secs() as i64, tv_nsec: i64::from(timeout.subsec_nanos()) }
        });
        let mut buffer = [MaybeUninit::uninit(); 64];
        let (happened, _) = match epoll::wait(&self.epoll, &mut buffer, timeout.as_ref()) {
            Ok(happened) => happened,
            Err(Errno::INTR) => return Ok(()),
            Err(error) => return Err(error),
        };
        events.extend(happened.iter().map(|&epoll::Event { flags, data }| Event {
            token: Token::from_u64(data.u64()),
            writable: flags.contains(epoll::EventFlags::OUT),
            hung_up: flags.contains(epoll::EventFlags::HUP),
        }));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_survive_the_kernel() {
        for token in [
            Token::Children,
            Token::Listener,
            Token::Link(9),
            Token::Stdin(1),
            Token::Output(7, 0),
            Token::Output(7, 1),
        ] {
            assert_eq!(Token::from_u64(token.to_u64()), token);
        }
    }
}
