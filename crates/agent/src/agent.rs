//! The event loop: who has something to say, whose turn it is. Owns the links to the host, the one
//! session, and the reaping of every process that ends.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::time::Instant;

use manta_agent_proto::{Frame, Hello, PROTOCOL_VERSION};
use rustix::io::Errno;
use rustix::net::{SocketFlags, accept_with};
use rustix::process::{WaitOptions, wait};
use thiserror::Error;

use crate::channel::Channels;
use crate::drain::Drain;
use crate::link::{Fate, Incoming, Kind, Link};
use crate::poll::{Event, Interest, Poller, Token};
use crate::session::Session;
use crate::sys::{Spawner, child_signals};

/// Most connections at once; only one can hold the session, the others have yet to say hello.
const LINKS: usize = 16;

/// Why the agent cannot go on.
#[derive(Debug, Error)]
pub enum AgentError {
    /// The signal descriptor for ended children.
    #[error("cannot receive child signals")]
    Signals(#[source] Errno),
    /// The epoll instance.
    #[error("cannot make the poller")]
    Poller(#[source] Errno),
    /// A channel cannot be watched.
    #[error("cannot watch a channel")]
    Watch(#[source] Errno),
    /// Waiting for events.
    #[error("cannot wait for events")]
    Wait(#[source] Errno),
}

/// What commands need to run, apart from their session.
#[derive(Debug)]
pub(crate) struct Runtime {
    pub(crate) poller: Poller,
    pub(crate) spawner: Spawner,
    pub(crate) drain: Drain,
}

/// The agent at work.
#[derive(Debug)]
pub struct Agent {
    runtime: Runtime,
    children: OwnedFd,
    listener: Option<OwnedFd>,
    links: BTreeMap<u64, Link>,
    /// The key of the link that said hello last, and its session.
    session: Option<(u64, Session)>,
}

impl Agent {
    /// Serves `channels`. The process must have one thread, its standard descriptors open, and
    /// `/dev/null` as its standard input: commands without input inherit it.
    ///
    /// # Errors
    /// What could not be set up.
    pub fn new(channels: Channels) -> Result<Self, AgentError> {
        let children = child_signals().map_err(AgentError::Signals)?;
        let poller = Poller::new().map_err(AgentError::Poller)?;
        poller.add(&children, Token::Children, Interest::Read).map_err(AgentError::Watch)?;
        if let Some(listener) = &channels.listener {
            poller.add(listener, Token::Listener, Interest::Read).map_err(AgentError::Watch)?;
        }
        let runtime = Runtime { poller, spawner: Spawner::default(), drain: Drain::default() };
        let mut agent =
            Self { runtime, children, listener: channels.listener, links: BTreeMap::new(), session: None };
        for (fd, kind) in channels
            .serial
            .map(|port| (port, Kind::Serial))
            .into_iter()
            .chain(channels.connection.map(|connection| (connection, Kind::Connection)))
        {
            agent.add_link(fd, kind).map_err(AgentError::Watch)?;
        }
        Ok(agent)
    }

    /// Works until no channel is left, which in a guest is never.
    ///
    /// # Errors
    /// [`AgentError::Wait`].
    pub fn run(&mut self) -> Result<(), AgentError> {
        let mut events = Vec::new();
        while self.listener.is_some() || !self.links.is_empty() {
            let deadline = self.next_deadline();
            let timeout = if self.has_work() {
                Some(std::time::Duration::ZERO)
            } else {
                deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()))
            };
            self.runtime.poller.wait(timeout, &mut events).map_err(AgentError::Wait)?;
            for event in events.drain(..) {
                self.dispatch(event);
            }
            if deadline.is_some() {
                self.expire(Instant::now());
            }
            self.move_bytes();
        }
        Ok(())
    }

    fn next_deadline(&self) -> Option<Instant> {
        let session = self.session.as_ref().and_then(|(_, session)| session.next_deadline());
        self.links.values().filter_map(Link::deadline).chain(session).min()
    }

    fn expire(&mut self, now: Instant) {
        self.links.values_mut().for_each(|link| link.expire(now));
        if let Some((_, session)) = &mut self.session {
            session.expire(now);
        }
    }

    /// Whether there is something to do before the next event.
    fn has_work(&self) -> bool {
        let unread = self.links.values().any(Link::has_work);
        let unsent = || {
            self.session
                .as_ref()
                .and_then(|(key, session)| Some((self.links.get(key)?, session)))
                .is_some_and(|(link, session)| session.has_work() && !link.outbox.is_full())
        };
        unread || unsent()
    }

    fn dispatch(&mut self, event: Event) {
        match event.token {
            Token::Children => self.reap(),
            Token::Listener => self.accept(),
            Token::Link(key) => {
                if let Some(link) = self.links.get_mut(&key) {
                    link.ready(event.writable);
                }
            }
            Token::Stdin(_) | Token::Output(..) => {
                let known = self.session.as_mut().is_some_and(|(key, session)| {
                    let link = self.links.get_mut(key);
                    link.is_some_and(|link| session.ready(event.token, &mut link.outbox))
                });
                if !known {
                    self.runtime.drain.ready(event.token);
                }
            }
        }
    }

    /// Reads what hosts sent, lets the session answer, and writes that.
    fn move_bytes(&mut self) {
        let unread = |(key, link): (&u64, &Link)| link.has_work().then_some(*key);
        while let Some(key) = self.links.iter().find_map(unread) {
            self.read(key);
        }
        let Some((key, session)) = &mut self.session else { return };
        let key = *key;
        let Some(link) = self.links.get_mut(&key) else { return };
        session.pump(&mut self.runtime, &mut link.outbox);
        if link.flush(&self.runtime.poller) == Fate::Ended {
            self.end(key);
        }
    }

    /// Reads one link to its end.
    fn read(&mut self, key: u64) {
        while let Some(link) = self.links.get_mut(&key)
            && let Some(incoming) = link.next()
        {
            let session =
                self.session.as_mut().filter(|(owner, _)| *owner == key).map(|(_, session)| session);
            match (incoming, session) {
                (Incoming::End, _) => self.end(key),
                (Incoming::Frame(Frame::Hello(hello)), _) => self.hello(key, &hello),
                (Incoming::Frame(frame), Some(session)) => {
                    session.handle(frame, &mut self.runtime, &mut link.outbox);
                }
                (Incoming::Unknown { id, why }, Some(session)) => session.refuse(id, &why, &mut link.outbox),
                (_, None) => {} // without a hello nothing is answered
            }
        }
    }

    /// The newest hello wins: whatever ran for an earlier one is killed.
    fn hello(&mut self, key: u64, hello: &Hello) {
        let previous = self.session.take().map(|(previous, _)| previous);
        if let Some(previous) = previous.filter(|previous| *previous != key) {
            self.end(previous);
        }
        let Some(link) = self.links.get_mut(&key) else { return };
        link.outbox.clear();
        link.outbox.push(&Frame::Hello(Hello { version: PROTOCOL_VERSION, session: hello.session }));
        if hello.version == PROTOCOL_VERSION {
            self.session = Some((key, Session::default()));
        } else if link.flush(&self.runtime.poller) == Fate::Ended {
            self.end(key);
        }
    }

    /// The host at the other end is gone, or has been replaced.
    fn end(&mut self, key: u64) {
        self.session.take_if(|(owner, _)| *owner == key);
        match self.links.get_mut(&key) {
            Some(link) if link.kind == Kind::Serial => link.reset(),
            _ => drop(self.links.remove(&key)),
        }
    }

    fn accept(&mut self) {
        while let Some(listener) = &self.listener {
            match accept_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
                // One that cannot be watched is closed, which the host sees.
                Ok(connection) => drop(self.add_link(connection, Kind::Connection)),
                Err(Errno::INTR | Errno::CONNABORTED) => {}
                Err(_) => return,
            }
        }
    }

    fn add_link(&mut self, fd: OwnedFd, kind: Kind) -> Result<(), Errno> {
        let owner = self.session.as_ref().map(|(key, _)| *key);
        let idle = |(key, link): (&u64, &Link)| {
            (link.kind == Kind::Connection && Some(*key) != owner).then_some(*key)
        };
        if self.links.len() >= LINKS
            && let Some(oldest) = self.links.iter().find_map(idle)
        {
            self.end(oldest);
        }
        let key = self.runtime.poller.fresh_key();
        self.links.insert(key, Link::new(key, fd, kind, &self.runtime.poller)?);
        Ok(())
    }

    /// Reaps every process that has ended: commands, and orphans, which PID 1 inherits.
    fn reap(&mut self) {
        // One pending signal stands for any number of children.
        let _ = rustix::io::read(&self.children, &mut [0_u8; 128]);
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            if let Some((_, session)) = &mut self.session {
                session.reaped(pid, status);
            }
        }
    }
}
