//! One byte stream to the host: what came in as frames, what goes out as bytes. Knows no sessions, and may end
//! with any byte.

use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use manta_agent_proto::{Decoder, Frame, FrameError, encode};
use rustix::io::Errno;

use crate::kmsg::{Level, log};
use crate::poll::{Interest, Poller, Token};

/// Most bytes in one write: what the kernel takes for a virtio-serial port.
pub(crate) const WRITE: usize = 32 * 1024;

/// How long a serial port may say that no host is there before it is believed. It learns of a host that
/// comes or goes later than of its bytes: a hello can be read, and answered, before the port knows of
/// the host that sent it.
const GRACE: Duration = Duration::from_secs(1);

/// What kind of byte stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A virtio-serial port: one for all sessions. Reading nothing means that no host is there, as far
    /// as the port knows.
    Serial,
    /// A connection: ends once and for all.
    Connection,
}

/// Whether a host is at the other end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Presence {
    /// As far as we know.
    There,
    /// The port says no; to be asked again at this time.
    Doubtful(Instant),
    /// That time has come.
    AskAgain,
}

/// What a host sent.
#[derive(Debug)]
pub(crate) enum Incoming {
    Frame(Frame),
    /// A message that this version cannot read, on this stream.
    Unknown {
        id: u32,
        why: String,
    },
    /// The host is gone.
    End,
}

/// What became of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    Lives,
    /// The host is gone, or the way to it.
    Ended,
}

#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) kind: Kind,
    /// Whole frames on their way, the first of them perhaps half written.
    out: Vec<u8>,
    written: usize,
    key: u64,
    fd: OwnedFd,
    decoder: Decoder,
    /// Takes no more bytes for now.
    blocked: bool,
    /// Told when it does again.
    armed: bool,
    /// Not read to its end.
    unread: bool,
    presence: Presence,
}

impl Link {
    /// `fd` is non-blocking.
    pub(crate) fn new(key: u64, fd: OwnedFd, kind: Kind, poller: &Poller) -> Result<Self, Errno> {
        poller.add(&fd, Token::Link(key), Interest::Read)?;
        Ok(Self {
            kind,
            out: Vec::new(),
            written: 0,
            key,
            fd,
            decoder: Decoder::new(),
            blocked: false,
            armed: false,
            unread: false,
            presence: Presence::There,
        })
    }

    /// Notes what the poller said.
    pub(crate) fn ready(&mut self, writable: bool) {
        self.unread = true;
        self.blocked &= !writable;
    }

    /// Whether something can be read now.
    pub(crate) fn has_work(&self) -> bool {
        self.unread
    }

    /// What arrived next, or none when all that has arrived is read.
    pub(crate) fn next(&mut self) -> Option<Incoming> {
        loop {
            match self.decoder.next_frame() {
                Some(Ok(frame)) => return Some(Incoming::Frame(frame)),
                Some(Err(FrameError::Message { id, source })) => {
                    return Some(Incoming::Unknown { id, why: source.to_string() });
                }
                // Between sessions a serial port carries remains of frames.
                Some(Err(_)) => {}
                None if !self.has_work() => return None,
                None => match self.fill() {
                    Fate::Lives => {}
                    Fate::Ended => return Some(Incoming::End),
                },
            }
        }
    }

    /// Bytes that the last frame took.
    pub(crate) fn frame_len(&self) -> usize {
        self.decoder.frame_len()
    }

    /// Reads once.
    fn fill(&mut self) -> Fate {
        let mut buffer = [MaybeUninit::uninit(); 16 * 1024];
        match rustix::io::read(&self.fd, &mut buffer) {
            Ok(([], _)) => {
                self.unread = false;
                return self.doubt();
            }
            Ok((bytes, _)) => {
                self.presence = Presence::There;
                self.decoder.feed(bytes);
            }
            Err(Errno::AGAIN) => {
                self.presence = Presence::There;
                self.unread = false;
            }
            Err(Errno::INTR) => {}
            Err(_) => {
                self.unread = false;
                return Fate::Ended;
            }
        }
        Fate::Lives
    }

    /// Reading gave nothing, not even the advice to try again.
    fn doubt(&mut self) -> Fate {
        match (self.kind, self.presence) {
            (Kind::Serial, Presence::There) => self.presence = Presence::Doubtful(Instant::now() + GRACE),
            (Kind::Serial, Presence::Doubtful(_)) => {}
            (Kind::Connection, _) | (_, Presence::AskAgain) => {
                self.presence = Presence::There;
                return Fate::Ended;
            }
        }
        Fate::Lives
    }

    /// When [`Self::expire`] has something to do.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        match self.presence {
            Presence::Doubtful(until) => Some(until),
            Presence::There | Presence::AskAgain => None,
        }
    }

    /// Has a port that is in doubt about its host asked once more.
    pub(crate) fn expire(&mut self, now: Instant) {
        if self.deadline().is_some_and(|deadline| deadline <= now) {
            self.presence = Presence::AskAgain;
            self.unread = true;
        }
    }

    /// Sends a frame that belongs to this link, not to a session.
    pub(crate) fn send(&mut self, frame: &Frame) {
        if let Err(error) = encode(frame, &mut self.out) {
            log(Level::Critical, &format!("a frame for the host was dropped: {error}")); // a defect of ours
        }
    }

    /// Where to append frames, once all earlier ones are written.
    pub(crate) fn out(&mut self) -> Option<&mut Vec<u8>> {
        self.out.is_empty().then_some(&mut self.out)
    }

    /// Writes what it can.
    pub(crate) fn flush(&mut self, poller: &Poller) -> Fate {
        while self.written < self.out.len() && !self.blocked {
            let rest = &self.out[self.written..];
            match rustix::io::write(&self.fd, &rest[..rest.len().min(WRITE)]) {
                Ok(written) => {
                    self.written += written;
                    if self.written == self.out.len() {
                        self.clear();
                    }
                }
                Err(Errno::AGAIN) => self.blocked = true,
                Err(Errno::INTR) => {}
                Err(_) => return Fate::Ended,
            }
        }
        // Asking for write events only while blocked spares one wake-up per write on a serial port.
        if self.armed == self.blocked {
            return Fate::Lives;
        }
        self.armed = self.blocked;
        let interest = if self.blocked { Interest::ReadWrite } else { Interest::Read };
        match poller.modify(&self.fd, Token::Link(self.key), interest) {
            Ok(()) => Fate::Lives,
            Err(_) => Fate::Ended,
        }
    }

    /// Forgets what was to be sent.
    pub(crate) fn clear(&mut self) {
        self.out.clear();
        self.written = 0;
    }

    /// Forgets everything that belongs to a host that is gone.
    pub(crate) fn reset(&mut self) {
        self.decoder = Decoder::new();
        self.clear();
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write;
    use std::path::Path;

    use manta_agent_proto::Hello;
    use rustix::fs::{CWD, FileType, Mode, OFlags, mknodat, open};

    use super::*;

    /// A link on a FIFO, which like a virtio-serial port reads as empty while nobody is at its other end.
    fn port(directory: &Path) -> Link {
        let path = directory.join("port");
        mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        let fd = open(&path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty()).unwrap();
        Link::new(1, fd, Kind::Serial, &Poller::new().unwrap()).unwrap()
    }

    fn host(directory: &Path) -> File {
        File::options().write(true).open(directory.join("port")).unwrap()
    }

    fn hello() -> Vec<u8> {
        let mut bytes = Vec::new();
        encode(&Frame::Hello(Hello { version: 1, session: 1, resume: None }), &mut bytes).unwrap();
        bytes
    }

    #[test]
    fn a_hello_read_before_the_port_knows_its_host_is_no_end() {
        let directory = tempfile::tempdir().unwrap();
        let mut link = port(directory.path());
        host(directory.path()).write_all(&hello()).unwrap(); // gone by the time it is read
        link.ready(false);
        assert!(matches!(link.next(), Some(Incoming::Frame(Frame::Hello(_)))));
        assert!(link.next().is_none());
        let _host = host(directory.path());
        link.expire(Instant::now() + GRACE);
        assert!(link.next().is_none(), "the host has come, yet the link ended");
        assert_eq!(link.deadline(), None);
    }

    #[test]
    fn a_host_that_stays_away_is_gone() {
        let directory = tempfile::tempdir().unwrap();
        let mut link = port(directory.path());
        link.ready(false);
        assert!(link.next().is_none());
        let deadline = link.deadline().unwrap();
        link.ready(false); // another event does not put it off
        assert!(link.next().is_none());
        link.expire(deadline - Duration::from_millis(1));
        assert!(!link.has_work());
        link.expire(deadline);
        assert!(matches!(link.next(), Some(Incoming::End)));
        assert_eq!((link.deadline(), link.has_work()), (None, false));
    }
}
