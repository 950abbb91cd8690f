//! The event loop: who has something to say, whose turn it is. Owns the links to the host, the one
//! session, and the reaping of every process that ends.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use manta_agent_proto::{Frame, Hello, PROTOCOL_VERSION};
use rustix::io::Errno;
use rustix::net::{SocketFlags, accept_with};
use rustix::process::{WaitOptions, wait};
use thiserror::Error;

use crate::adopt::Machine;
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

/// What requests need, apart from their session.
#[derive(Debug)]
pub(crate) struct Runtime {
    pub(crate) poller: Poller,
    pub(crate) spawner: Spawner,
    pub(crate) drain: Drain,
    pub(crate) machine: Machine,
}

/// The agent at work.
#[derive(Debug)]
pub struct Agent {
    runtime: Runtime,
    children: OwnedFd,
    listener: Option<OwnedFd>,
    links: BTreeMap<u64, Link>,
    /// That of the last hello.
    session: Option<Session>,
    patience: Duration,
}

impl Agent {
    /// Serves `channels` on `machine`; a session whose link is lost has that long to be gone on with, if commands
    /// run ([`manta_agent_proto::LINK_PATIENCE`]). The process must have one thread, its standard descriptors open, and `/dev/null` as its
    /// standard input: commands without input inherit it.
    ///
    /// # Errors
    /// What could not be set up.
    pub fn new(channels: Channels, machine: Machine, patience: Duration) -> Result<Self, AgentError> {
        let children = child_signals().map_err(AgentError::Signals)?;
        let poller = Poller::new().map_err(AgentError::Poller)?;
        poller.add(&children, Token::Children, Interest::Read).map_err(AgentError::Watch)?;
        if let Some(listener) = &channels.listener {
            poller.add(listener, Token::Listener, Interest::Read).map_err(AgentError::Watch)?;
        }
        let runtime = Runtime { poller, spawner: Spawner::default(), drain: Drain::default(), machine };
        let (listener, links) = (channels.listener, BTreeMap::new());
        let mut agent = Self { runtime, children, listener, links, session: None, patience };
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
                Some(Duration::ZERO)
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
        let session = self.session.as_ref().and_then(Session::next_deadline);
        self.links.values().filter_map(Link::deadline).chain(session).min()
    }

    fn expire(&mut self, now: Instant) {
        self.links.values_mut().for_each(|link| link.expire(now));
        if let Some(session) = &mut self.session {
            session.expire(now);
        }
        self.session.take_if(|session| session.is_given_up(now)); // this kills
    }

    /// Whether there is something to do before the next event.
    fn has_work(&self) -> bool {
        self.unread().is_some() || self.session.as_ref().is_some_and(Session::has_work)
    }

    /// A link to be read.
    fn unread(&self) -> Option<u64> {
        self.links.iter().find_map(|(key, link)| (link.has_work() && self.listens_to(*key)).then_some(*key))
    }

    fn listens_to(&self, key: u64) -> bool {
        self.session.as_ref().is_none_or(|session| session.link() != Some(key) || session.listens())
    }

    fn dispatch(&mut self, event: Event) {
        match event.token {
            Token::Children => self.reap(),
            Token::Listener => {
                self.accept();
                self.listener.take_if(|_| event.hung_up); // nobody connects to it any more
            }
            Token::Link(key) => {
                if let Some(link) = self.links.get_mut(&key) {
                    link.ready(event.writable);
                }
            }
            Token::Stdin(_) | Token::Output(..) => {
                if !self.session.as_mut().is_some_and(|session| session.ready(event.token)) {
                    self.runtime.drain.ready(event.token);
                }
            }
        }
    }

    /// Reads what hosts sent, lets the session answer, and writes that.
    fn move_bytes(&mut self) {
        while let Some(key) = self.unread() {
            self.read(key);
        }
        if let Some(session) = &mut self.session {
            session.pump(&mut self.runtime);
        }
        while let Some(key) = self.flush() {
            self.end(key);
        }
    }

    /// Writes what the links take; stops at one that has ended.
    fn flush(&mut self) -> Option<u64> {
        let poller = &self.runtime.poller;
        let mut ended = |(key, link): (&u64, &mut Link)| (link.flush(poller) == Fate::Ended).then_some(*key);
        if let Some(key) = self.links.iter_mut().find_map(&mut ended) {
            return Some(key);
        }
        let session = self.session.as_mut()?;
        let key = session.link()?;
        let link = self.links.get_mut(&key)?;
        while session.feed(link) {
            if let Some(key) = ended((&key, link)) {
                return Some(key);
            }
        }
        None
    }

    /// Reads one link to its end.
    fn read(&mut self, key: u64) {
        while self.listens_to(key)
            && let Some(link) = self.links.get_mut(&key)
            && let Some(incoming) = link.next()
        {
            let session = self.session.as_mut().filter(|session| session.link() == Some(key));
            match (incoming, session) {
                (Incoming::End, _) => self.end(key),
                (Incoming::Frame(Frame::Hello(hello)), _) => self.hello(key, &hello),
                (_, None) => {} // without a hello nothing is answered
                (Incoming::Frame(Frame::Ack { frames }), Some(session)) => {
                    if !session.acknowledge(frames) {
                        self.session = None; // this kills
                        self.end(key);
                    }
                }
                (incoming, Some(session)) => {
                    if let Some(ack) = session.count(link.frame_len()) {
                        link.send(&ack);
                    }
                    match incoming {
                        Incoming::Frame(frame) => session.handle(frame, &mut self.runtime),
                        Incoming::Unknown { id, why } => session.refuse(id, &why),
                        Incoming::End => {}
                    }
                }
            }
        }
    }

    /// The newest hello wins: it goes on with the session, or ends it and begins another.
    fn hello(&mut self, key: u64, hello: &Hello) {
        let known = hello.version == PROTOCOL_VERSION;
        let previous = self.session.as_ref().and_then(Session::link);
        let resume = hello.resume.filter(|_| known);
        let resume = resume.and_then(|host| self.session.as_mut()?.resume(key, host));
        if resume.is_none() {
            if let Some(session) = self.session.take() {
                session.end(&mut self.runtime);
            }
            self.session = known.then(|| Session::new(hello.session, key, self.patience));
        }
        if let Some(previous) = previous.filter(|previous| *previous != key) {
            self.end(previous);
        }
        let Some(link) = self.links.get_mut(&key) else { return };
        link.clear();
        link.send(&Frame::Hello(Hello { version: PROTOCOL_VERSION, session: hello.session, resume }));
    }

    /// The host at the other end is gone, or has been replaced.
    fn end(&mut self, key: u64) {
        if let Some(session) = &mut self.session {
            session.lose(key, Instant::now());
        }
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
        let owner = self.session.as_ref().and_then(Session::link);
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
            if let Some(session) = &mut self.session {
                session.reaped(pid, status);
            }
        }
    }
}
