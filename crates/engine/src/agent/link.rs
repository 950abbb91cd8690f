//! The byte stream under a session: read, written, and exchanged for another one while the session is parked.

use std::sync::Arc;
use std::time::Duration;

use manta_agent_proto::{Decoder, Frame, FrameError, Hello, PROTOCOL_VERSION, Reply, Request, encode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::session::{AgentError, End};
use super::streams::Streams;

/// The stream on which a link is tried; those of the session begin with 1.
const FIRST: u32 = 0;
/// A guest that runs answers sooner.
const FIRST_PATIENCE: Duration = Duration::from_millis(10);
const MOST_PATIENCE: Duration = Duration::from_millis(500);

/// What is to be written.
#[derive(Debug)]
pub(super) enum Outgoing {
    /// An encoded frame.
    Frame(Vec<u8>),
    /// An encoded frame after which nothing is written on this link.
    Last(Vec<u8>),
}

/// What becomes of the link.
#[derive(Debug)]
pub(super) enum Control {
    /// Close it; the session waits for another. Answered when it is closed.
    Release(oneshot::Sender<()>),
    /// Go on with this one.
    Resume(Link),
    /// End the session.
    Fail(String),
}

/// A byte stream on which the agent has said hello.
#[derive(Debug)]
pub(super) struct Link {
    reader: OwnedReadHalf,
    writer: OwnedWriteHalf,
    decoder: Decoder,
    /// How long silence is borne before it is broken.
    patience: Duration,
}

impl Link {
    /// Says hello and asks for the first thing in the same breath, then waits for the agent's hello; whatever came
    /// before it is dropped. The deadline is the caller's.
    pub(super) async fn open(
        stream: UnixStream,
        hello: Hello,
        first: Option<Request>,
    ) -> Result<(Self, Hello), AgentError> {
        let (reader, writer) = stream.into_split();
        let mut link = Self { reader, writer, decoder: Decoder::new(), patience: FIRST_PATIENCE };
        let nonce = hello.session;
        let mut bytes = encoded(&Frame::Hello(hello))?;
        if let Some(request) = first {
            bytes.extend(encoded(&Frame::Request { id: FIRST, request })?);
        }
        link.write(&bytes).await?;
        loop {
            match link.next().await? {
                Ok(Frame::Hello(hello)) if hello.session == nonce => {
                    if hello.version == PROTOCOL_VERSION {
                        return Ok((link, hello));
                    }
                    return Err(AgentError::Gone(format!(
                        "the agent speaks protocol version {}, this server {PROTOCOL_VERSION}",
                        hello.version
                    )));
                }
                _ => {} // left over from an earlier session
            }
        }
    }

    /// The answer to what was asked with the hello.
    pub(super) async fn first_reply(&mut self) -> Result<Reply, AgentError> {
        match self.next().await? {
            Ok(Frame::Reply { id: FIRST, reply }) => Ok(reply),
            _ => Err(AgentError::Gone("the agent's first answer is none".to_owned())),
        }
    }

    /// Has the agent leave its parking, now that it is known that the link works.
    pub(super) async fn confirm(&mut self) -> Result<(), AgentError> {
        let ping = encoded(&Frame::Request { id: FIRST, request: Request::Ping })?;
        self.write(&ping).await?;
        self.first_reply().await.map(drop)
    }

    async fn write(&mut self, bytes: &[u8]) -> Result<(), AgentError> {
        self.writer.write_all(bytes).await.map_err(|_| AgentError::LinkLost)
    }

    /// The next frame; what follows it stays in the decoder.
    async fn next(&mut self) -> Result<Result<Frame, FrameError>, AgentError> {
        let mut buffer = [0; 4096];
        loop {
            if let Some(frame) = self.decoder.next_frame() {
                return Ok(frame);
            }
            match timeout(self.patience, self.reader.read(&mut buffer)).await {
                Ok(Ok(0) | Err(_)) => return Err(AgentError::LinkLost),
                Ok(Ok(length)) => self.decoder.feed(&buffer[..length]),
                Err(_) => {
                    // A restored guest may have dropped the connection without a word. It only says so when
                    // something arrives for it: an empty frame, which means nothing.
                    self.write(&[0]).await?;
                    self.patience = (self.patience * 3 / 2).min(MOST_PATIENCE);
                }
            }
        }
    }
}

/// Keeps a session's bytes moving until it ends; says how it did.
pub(super) async fn keep(
    mut link: Link,
    mut queue: mpsc::Receiver<Outgoing>,
    mut control: mpsc::Receiver<Control>,
    streams: Arc<Streams>,
) -> End {
    loop {
        let released = match work(link, &mut queue, &mut control, &streams).await {
            Worked::Released(done) => done,
            Worked::Ended(end) => return end,
        };
        // Who asked for it may have gone; the session waits all the same.
        let _ = released.send(());
        link = loop {
            match control.recv().await {
                Some(Control::Resume(link)) => break link,
                Some(Control::Release(done)) => {
                    let _ = done.send(());
                }
                Some(Control::Fail(reason)) => return loss(reason),
                None => return closed(),
            }
        };
    }
}

/// What became of a link.
enum Worked {
    Released(oneshot::Sender<()>),
    Ended(End),
}

async fn work(
    link: Link,
    queue: &mut mpsc::Receiver<Outgoing>,
    control: &mut mpsc::Receiver<Control>,
    streams: &Streams,
) -> Worked {
    let Link { reader, writer, decoder, .. } = link;
    let mut read = std::pin::pin!(read_loop(reader, decoder, streams));
    let mut write = std::pin::pin!(write_loop(writer, queue));
    let mut last_written = false;
    loop {
        tokio::select! {
            // Whichever ends first takes the other along, and the connection with it.
            end = &mut read => return Worked::Ended(end),
            written = &mut write, if !last_written => match written {
                Ok(()) => last_written = true,
                Err(end) => return Worked::Ended(end),
            },
            asked = control.recv() => match asked {
                Some(Control::Release(done)) => return Worked::Released(done),
                Some(Control::Resume(_)) => return Worked::Ended(loss("it was resumed twice".to_owned())),
                Some(Control::Fail(reason)) => return Worked::Ended(loss(reason)),
                None => return Worked::Ended(closed()),
            },
        }
    }
}

async fn read_loop(mut reader: OwnedReadHalf, mut decoder: Decoder, streams: &Streams) -> End {
    let offence =
        |what: String| End { reason: format!("the agent broke the protocol: {what}"), offence: true };
    let mut buffer = vec![0; 64 * 1024];
    loop {
        while let Some(frame) = decoder.next_frame() {
            match frame.map(|frame| streams.dispatch(frame)) {
                Ok(Ok(())) => {}
                Ok(Err(what)) => return offence(format!("it sent {what}")),
                Err(error) => return offence(error.to_string()),
            }
        }
        match reader.read(&mut buffer).await {
            Ok(0) => return loss("the agent connection was closed".to_owned()),
            Ok(length) => decoder.feed(&buffer[..length]),
            Err(error) => return loss(format!("the agent connection failed: {error}")),
        }
    }
}

/// Writes until the last frame that may be written, which is no error. Keeps the write half until it is dropped.
async fn write_loop(mut writer: OwnedWriteHalf, queue: &mut mpsc::Receiver<Outgoing>) -> Result<(), End> {
    loop {
        let (mut bytes, mut last) = match queue.recv().await {
            Some(Outgoing::Frame(bytes)) => (bytes, false),
            Some(Outgoing::Last(bytes)) => (bytes, true),
            None => return Err(closed()),
        };
        while !last
            && bytes.len() < 64 * 1024
            && let Ok(next) = queue.try_recv()
        {
            last = matches!(next, Outgoing::Last(_));
            let (Outgoing::Frame(next) | Outgoing::Last(next)) = next;
            bytes.extend(next);
        }
        if let Err(error) = writer.write_all(&bytes).await {
            return Err(loss(format!("cannot write to the agent: {error}")));
        }
        if last {
            // Dropping the half would end the connection for the agent, which has yet to answer.
            writer.forget();
            return Ok(());
        }
    }
}

pub(super) fn encoded(frame: &Frame) -> Result<Vec<u8>, AgentError> {
    let mut bytes = Vec::new();
    encode(frame, &mut bytes).map_err(|error| AgentError::TooLong(error.to_string()))?;
    Ok(bytes)
}

fn loss(reason: String) -> End {
    End { reason, offence: false }
}

fn closed() -> End {
    loss("the session was closed".to_owned())
}
