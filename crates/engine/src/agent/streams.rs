//! Streams of one session: what arrived for each, and how much the guest may still send. What it
//! sends waits in one buffer for each channel, bounded by the credit it was given.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use manta_agent_proto::{Channel, Frame, INITIAL_CREDIT, Reply};
use tokio::sync::{Notify, Semaphore};

/// What arrived on a stream.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// Output.
    Data(Channel, Vec<u8>),
    /// The stream's end; all output came before it.
    Reply(Reply),
}

/// A stream's entry, as the reader of the session sees it.
#[derive(Debug)]
struct Stream {
    stdout: Inflow,
    stderr: Inflow,
    reply: Option<Reply>,
    arrived: Arc<Notify>,
    /// Bytes we may still send.
    stdin_credit: Arc<Semaphore>,
}

/// One direction of bytes from the guest.
#[derive(Debug)]
struct Inflow {
    /// Bytes the guest may still send.
    credit: u64,
    waiting: Vec<u8>,
}

impl Default for Inflow {
    fn default() -> Self {
        Self { credit: u64::from(INITIAL_CREDIT), waiting: Vec::new() }
    }
}

/// A stream's receiving end. Dropping it forgets the stream.
#[derive(Debug)]
pub(super) struct Open {
    pub(super) id: u32,
    pub(super) stdin_credit: Arc<Semaphore>,
    arrived: Arc<Notify>,
    table: Arc<Streams>,
}

/// All streams of a session.
#[derive(Debug, Default)]
pub(super) struct Streams(Mutex<Table>);

#[derive(Debug, Default)]
struct Table {
    last_id: u32,
    streams: HashMap<u32, Stream>,
    closed: bool,
}

impl Streams {
    /// A new stream; none when the session has ended.
    pub(super) fn open(self: &Arc<Self>) -> Option<Open> {
        let arrived = Arc::new(Notify::new());
        let stdin_credit = Arc::new(Semaphore::new(INITIAL_CREDIT as usize));
        let mut table = self.lock();
        if table.closed {
            return None;
        }
        // 2^32 requests on one session would have to pass before an id could repeat.
        table.last_id = table.last_id.wrapping_add(1);
        let id = table.last_id;
        table.streams.insert(
            id,
            Stream {
                stdout: Inflow::default(),
                stderr: Inflow::default(),
                reply: None,
                arrived: arrived.clone(),
                stdin_credit: stdin_credit.clone(),
            },
        );
        Some(Open { id, stdin_credit, arrived, table: self.clone() })
    }

    /// The newest stream's number while somebody waits for something, on that one or another.
    pub(super) fn newest(&self) -> Option<u32> {
        let table = self.lock();
        (!table.streams.is_empty()).then_some(table.last_id)
    }

    /// Notes that the guest may send `bytes` more on `channel`.
    pub(super) fn grant(&self, id: u32, channel: Channel, bytes: u32) {
        if let Some(stream) = self.lock().streams.get_mut(&id)
            && let Some(inflow) = stream.inflow(channel)
        {
            inflow.credit += u64::from(bytes);
        }
    }

    /// Takes in a frame from the guest. Frames of forgotten or ended streams are dropped; an error
    /// names what no honest agent does.
    pub(super) fn dispatch(&self, frame: Frame) -> Result<(), &'static str> {
        let mut table = self.lock();
        match frame {
            Frame::Data { id, channel, bytes } => {
                let Some(stream) = table.live(id) else { return Ok(()) };
                if bytes.is_empty() {
                    return Err("empty data");
                }
                let inflow = stream.inflow(channel).ok_or("data on standard input")?;
                inflow.credit =
                    inflow.credit.checked_sub(bytes.len() as u64).ok_or("more data than it was allowed")?;
                inflow.waiting.extend(bytes);
                stream.arrived.notify_one();
            }
            Frame::Reply { id, reply } => {
                if let Some(stream) = table.live(id) {
                    stream.reply = Some(reply);
                    stream.arrived.notify_one();
                }
            }
            Frame::Credit { id, channel: Channel::Stdin, bytes } => {
                let Some(stream) = table.live(id) else { return Ok(()) };
                if stream.stdin_credit.available_permits() + bytes as usize > Semaphore::MAX_PERMITS / 2 {
                    return Err("absurd credit");
                }
                stream.stdin_credit.add_permits(bytes as usize);
            }
            Frame::Eof { .. } => {} // the reply says it all
            Frame::Credit { .. } => return Err("credit for its own output"),
            Frame::Hello(_) => return Err("a second hello"),
            Frame::Ack { .. } => return Err("an acknowledgement that is part of the session"),
            Frame::Request { .. } | Frame::Cancel { .. } => return Err("a request"),
        }
        Ok(())
    }

    /// Ends all streams: those who wait on them get what has arrived, then see the end.
    pub(super) fn close(&self) {
        let mut table = self.lock();
        table.closed = true;
        for stream in table.streams.values() {
            stream.stdin_credit.close();
            stream.arrived.notify_one();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    /// A stream that has not ended yet.
    fn live(&mut self, id: u32) -> Option<&mut Stream> {
        self.streams.get_mut(&id).filter(|stream| stream.reply.is_none())
    }
}

impl Stream {
    fn inflow(&mut self, channel: Channel) -> Option<&mut Inflow> {
        match channel {
            Channel::Stdin => None,
            Channel::Stdout => Some(&mut self.stdout),
            Channel::Stderr => Some(&mut self.stderr),
        }
    }

    fn take(&mut self) -> Option<Event> {
        for channel in [Channel::Stdout, Channel::Stderr] {
            if let Some(inflow) = self.inflow(channel)
                && !inflow.waiting.is_empty()
            {
                return Some(Event::Data(channel, std::mem::take(&mut inflow.waiting)));
            }
        }
        self.reply.take().map(Event::Reply)
    }
}

impl Open {
    /// What arrives next; none when the session has ended. Cancel-safe.
    pub(super) async fn next(&mut self) -> Option<Event> {
        loop {
            {
                let mut table = self.table.lock();
                let closed = table.closed;
                match table.streams.get_mut(&self.id).and_then(Stream::take) {
                    Some(event) => return Some(event),
                    None if closed => return None,
                    None => {}
                }
            }
            self.arrived.notified().await;
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
    fn empty_frames_which_cost_no_credit_are_an_offence() {
        let streams = Arc::new(Streams::default());
        let open = streams.open().unwrap();
        assert!(streams.dispatch(data(open.id, Channel::Stdout, 0)).is_err());
    }

    #[tokio::test]
    async fn frames_for_others_reach_nobody_and_nothing_comes_after_the_reply() {
        let streams = Arc::new(Streams::default());
        let mut open = streams.open().unwrap();
        streams.dispatch(data(open.id + 1, Channel::Stdout, 7)).unwrap();
        streams.dispatch(Frame::Reply { id: open.id + 1, reply: Reply::Done }).unwrap();
        streams.dispatch(data(open.id, Channel::Stderr, 2)).unwrap();
        streams.dispatch(Frame::Reply { id: open.id, reply: Reply::Done }).unwrap();
        streams.dispatch(data(open.id, Channel::Stderr, 3)).unwrap();
        assert_eq!(open.next().await, Some(Event::Data(Channel::Stderr, vec![0; 2])));
        assert_eq!(open.next().await, Some(Event::Reply(Reply::Done)));
        assert!(
            streams.dispatch(Frame::Request { id: 1, request: manta_agent_proto::Request::Ping }).is_err()
        );
    }

    #[tokio::test]
    async fn a_closed_session_opens_no_stream_and_wakes_those_who_wait_with_what_had_arrived() {
        let streams = Arc::new(Streams::default());
        let mut open = streams.open().unwrap();
        streams.dispatch(data(open.id, Channel::Stdout, 4)).unwrap();
        streams.close();
        assert!(streams.open().is_none());
        assert_eq!(open.next().await, Some(Event::Data(Channel::Stdout, vec![0; 4])));
        assert_eq!(open.next().await, None);
    }
}
