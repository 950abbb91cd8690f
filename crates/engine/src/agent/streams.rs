//! Streams of one session: who waits for what, and how much the guest may still send.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use manta_agent_proto::{Channel, Frame, INITIAL_CREDIT, Reply};
use tokio::sync::{Semaphore, mpsc};

/// What arrives on a stream.
#[derive(Debug)]
pub(super) enum Event {
    /// Output.
    Data(Channel, Vec<u8>),
    /// The stream's end.
    Reply(Reply),
}

/// A stream's entry, as the reader sees it.
#[derive(Debug)]
struct Stream {
    events: mpsc::UnboundedSender<Event>,
    /// Bytes the guest may still send; it bounds `events`.
    stdout_credit: u64,
    stderr_credit: u64,
    /// Bytes we may still send.
    stdin_credit: Arc<Semaphore>,
}

/// A stream's receiving end. Dropping it forgets the stream.
#[derive(Debug)]
pub(super) struct Open {
    pub(super) id: u32,
    pub(super) events: mpsc::UnboundedReceiver<Event>,
    pub(super) stdin_credit: Arc<Semaphore>,
    table: Arc<Streams>,
}

/// All streams of a session.
#[derive(Debug, Default)]
pub(super) struct Streams(Mutex<Table>);

#[derive(Debug, Default)]
struct Table {
    next_id: u32,
    streams: HashMap<u32, Stream>,
    closed: bool,
}

impl Streams {
    /// A new stream; none when the session has ended.
    pub(super) fn open(self: &Arc<Self>) -> Option<Open> {
        let (sender, events) = mpsc::unbounded_channel();
        let stdin_credit = Arc::new(Semaphore::new(INITIAL_CREDIT as usize));
        let mut table = self.lock();
        if table.closed {
            return None;
        }
        // 2^32 requests on one session would have to pass before an id could repeat.
        table.next_id = table.next_id.wrapping_add(1);
        let id = table.next_id;
        table.streams.insert(
            id,
            Stream {
                events: sender,
                stdout_credit: u64::from(INITIAL_CREDIT),
                stderr_credit: u64::from(INITIAL_CREDIT),
                stdin_credit: stdin_credit.clone(),
            },
        );
        Some(Open { id, events, stdin_credit, table: self.clone() })
    }

    /// Notes that the guest may send `bytes` more on `channel`.
    pub(super) fn grant(&self, id: u32, channel: Channel, bytes: u32) {
        if let Some(stream) = self.lock().streams.get_mut(&id)
            && let Some(credit) = stream.credit(channel)
        {
            *credit += u64::from(bytes);
        }
    }

    /// Takes in a frame from the guest. Frames of forgotten streams are dropped; an error names
    /// what no honest agent does.
    pub(super) fn dispatch(&self, frame: Frame) -> Result<(), &'static str> {
        let mut table = self.lock();
        match frame {
            Frame::Data { id, channel, bytes } => {
                let Some(stream) = table.streams.get_mut(&id) else { return Ok(()) };
                let credit = stream.credit(channel).ok_or("data on standard input")?;
                *credit = credit.checked_sub(bytes.len() as u64).ok_or("more data than it was allowed")?;
                let _ = stream.events.send(Event::Data(channel, bytes));
            }
            Frame::Reply { id, reply } => {
                if let Some(stream) = table.streams.remove(&id) {
                    let _ = stream.events.send(Event::Reply(reply));
                }
            }
            Frame::Credit { id, channel: Channel::Stdin, bytes } => {
                let Some(stream) = table.streams.get(&id) else { return Ok(()) };
                if stream.stdin_credit.available_permits() + bytes as usize > Semaphore::MAX_PERMITS / 2 {
                    return Err("absurd credit");
                }
                stream.stdin_credit.add_permits(bytes as usize);
            }
            Frame::Eof { .. } => {} // the reply says it all
            Frame::Credit { .. } => return Err("credit for its own output"),
            Frame::Hello(_) => return Err("a second hello"),
            Frame::Request { .. } | Frame::Cancel { .. } => return Err("a request"),
        }
        Ok(())
    }

    /// Ends all streams; those who wait on them see it.
    pub(super) fn close(&self) {
        let mut table = self.lock();
        table.closed = true;
        for (_, stream) in table.streams.drain() {
            stream.stdin_credit.close();
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Stream {
    fn credit(&mut self, channel: Channel) -> Option<&mut u64> {
        match channel {
            Channel::Stdin => None,
            Channel::Stdout => Some(&mut self.stdout_credit),
            Channel::Stderr => Some(&mut self.stderr_credit),
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.table.lock().streams.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(id: u32, channel: Channel, length: usize) -> Frame {
        Frame::Data { id, channel, bytes: vec![0; length] }
    }

    #[test]
    fn a_guest_cannot_send_more_than_it_was_allowed() {
        let streams = Arc::new(Streams::default());
        let open = streams.open().unwrap();
        assert!(streams.dispatch(data(open.id, Channel::Stdout, INITIAL_CREDIT as usize)).is_ok());
        assert!(streams.dispatch(data(open.id, Channel::Stderr, 1)).is_ok());
        assert!(streams.dispatch(data(open.id, Channel::Stdout, 1)).is_err());
        streams.grant(open.id, Channel::Stdout, 1);
        assert!(streams.dispatch(data(open.id, Channel::Stdout, 1)).is_ok());
    }

    #[test]
    fn frames_for_others_reach_nobody() {
        let streams = Arc::new(Streams::default());
        let mut open = streams.open().unwrap();
        assert!(streams.dispatch(Frame::Reply { id: open.id + 1, reply: Reply::Done }).is_ok());
        assert!(open.events.try_recv().is_err());
        assert!(streams.dispatch(Frame::Reply { id: open.id, reply: Reply::Done }).is_ok());
        assert!(matches!(open.events.try_recv(), Ok(Event::Reply(Reply::Done))));
        assert!(
            streams.dispatch(Frame::Request { id: 1, request: manta_agent_proto::Request::Ping }).is_err()
        );
    }

    #[test]
    fn a_closed_session_opens_no_stream_and_wakes_those_who_wait() {
        let streams = Arc::new(Streams::default());
        let mut open = streams.open().unwrap();
        streams.close();
        assert!(streams.open().is_none());
        assert!(matches!(open.events.try_recv(), Err(mpsc::error::TryRecvError::Disconnected)));
    }
}
