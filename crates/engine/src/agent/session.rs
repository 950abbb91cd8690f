//! One session with an agent over a byte stream: hello, then any number of requests at once.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use manta_agent_proto::{
    Channel, Decoder, Exec, ExecExit, Frame, Hello, INITIAL_CREDIT, MAX_DATA, Network, PROTOCOL_VERSION,
    Reply, Request, encode,
};
use thiserror::Error;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_util::task::AbortOnDropHandle;

use super::output::{Output, append_within};
use super::streams::{Event, Open, Streams};

/// Encoded frames waiting to be written; each is at most [`manta_agent_proto::MAX_FRAME`] long.
const WRITE_QUEUE: usize = 64;
/// Credit is granted anew when this much was used up.
const GRANT_STEP: u32 = INITIAL_CREDIT / 2;

/// Why a request to the agent failed.
#[derive(Debug, Error)]
pub(crate) enum AgentError {
    /// No answer in time.
    #[error("no answer within {} ms", .0.as_millis())]
    Timeout(Duration),
    /// The session ended; the reason as text.
    #[error("{0}")]
    Gone(String),
    /// The agent could not do it.
    #[error("the agent refused: {0}")]
    Refused(String),
    /// The request does not fit into a frame.
    #[error("the request is too long for the agent: {0}")]
    TooLong(String),
}

/// How a session ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct End {
    /// Why.
    pub(crate) reason: String,
    /// The agent did what no honest one does.
    pub(crate) offence: bool,
}

/// A session. Cheap to clone; the last clone's drop closes it.
#[derive(Debug, Clone)]
pub(crate) struct Session {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    streams: Arc<Streams>,
    frames: mpsc::Sender<Vec<u8>>,
    /// None while the session lives.
    ended: watch::Receiver<Option<End>>,
    _io: AbortOnDropHandle<()>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.streams.close();
    }
}

impl Session {
    /// Says hello and waits for the agent's; whatever came before it is dropped. The deadline is the
    /// caller's.
    pub(crate) async fn open(stream: UnixStream, nonce: u64) -> Result<Self, AgentError> {
        let (mut reader, mut writer) = stream.into_split();
        let mut decoder = Decoder::new();
        hello(&mut reader, &mut writer, &mut decoder, nonce).await?;
        let streams = Arc::new(Streams::default());
        let (frames, queue) = mpsc::channel(WRITE_QUEUE);
        let (end, ended) = watch::channel(None);
        let io = tokio::spawn({
            let streams = streams.clone();
            async move {
                // Whichever ends first takes the other along, and the connection with it.
                let how = tokio::select! {
                    how = read_loop(reader, decoder, &streams) => how,
                    how = write_loop(writer, queue) => how,
                };
                end.send_replace(Some(how));
                streams.close();
            }
        });
        Ok(Self { inner: Arc::new(Inner { streams, frames, ended, _io: AbortOnDropHandle::new(io) }) })
    }

    /// Completes when the session has ended; says how.
    pub(crate) async fn ended(&self) -> End {
        let mut ended = self.inner.ended.clone();
        let closed = || End { reason: "the session was closed".to_owned(), offence: false };
        match ended.wait_for(Option::is_some).await {
            Ok(end) => end.clone().unwrap_or_else(closed),
            Err(_) => closed(),
        }
    }

    /// Sets up the guest's network.
    pub(crate) async fn configure(&self, network: Network, timeout: Duration) -> Result<(), AgentError> {
        let call = async {
            let mut open = self.request(Request::Configure(network)).await?;
            match self.event(&mut open).await? {
                Event::Reply(Reply::Done) => Ok(()),
                Event::Reply(Reply::Failed { message }) => Err(AgentError::Refused(message)),
                other => Err(AgentError::Gone(format!("the agent answered {other:?} to configure"))),
            }
        };
        tokio::time::timeout(timeout, call).await.map_err(|_| AgentError::Timeout(timeout))?
    }

    /// Runs a command. What it prints is in `output` as it comes, also when this fails or is
    /// dropped; dropping it kills the command.
    pub(crate) async fn exec(
        &self,
        exec: Exec,
        stdin: Bytes,
        output: &mut Output,
    ) -> Result<ExecExit, AgentError> {
        let limit = exec.output_limit;
        let mut open = self.request(Request::Exec(exec)).await?;
        let mut cancel = CancelOnDrop { id: open.id, frames: Some(self.inner.frames.clone()) };
        let credit = open.stdin_credit.clone();
        // A task of its own: nothing here may wait for it, nor it for us.
        let _feed = AbortOnDropHandle::new(tokio::spawn(feed_stdin(
            self.inner.frames.clone(),
            open.id,
            credit,
            stdin,
        )));
        let mut unacknowledged = [0u32; 3];
        loop {
            match self.event(&mut open).await? {
                Event::Data(channel, bytes) => {
                    match channel {
                        Channel::Stderr => {
                            output.stderr_truncated |= append_within(&mut output.stderr, &bytes, limit);
                        }
                        _ => output.stdout_truncated |= append_within(&mut output.stdout, &bytes, limit),
                    }
                    let pending = &mut unacknowledged[channel as usize];
                    *pending += u32::try_from(bytes.len()).unwrap_or(u32::MAX);
                    if *pending >= GRANT_STEP {
                        let bytes = std::mem::take(pending);
                        self.inner.streams.grant(open.id, channel, bytes);
                        self.send(Frame::Credit { id: open.id, channel, bytes }).await?;
                    }
                }
                Event::Reply(Reply::Exit(exit)) => {
                    cancel.frames = None;
                    output.stdout_truncated |= exit.stdout_truncated;
                    output.stderr_truncated |= exit.stderr_truncated;
                    return Ok(exit);
                }
                Event::Reply(Reply::Failed { message }) => {
                    cancel.frames = None;
                    return Err(AgentError::Refused(message));
                }
                Event::Reply(Reply::Done) => {
                    return Err(AgentError::Gone("the agent ended a command without its exit status".into()));
                }
            }
        }
    }

    async fn request(&self, request: Request) -> Result<Open, AgentError> {
        let open = self.inner.streams.open().ok_or_else(|| self.gone())?;
        self.send(Frame::Request { id: open.id, request }).await?;
        Ok(open)
    }

    async fn event(&self, open: &mut Open) -> Result<Event, AgentError> {
        open.next().await.ok_or_else(|| self.gone())
    }

    async fn send(&self, frame: Frame) -> Result<(), AgentError> {
        let bytes = encoded(&frame)?;
        self.inner.frames.send(bytes).await.map_err(|_| self.gone())
    }

    fn gone(&self) -> AgentError {
        let end = self.inner.ended.borrow().clone();
        AgentError::Gone(end.map_or_else(|| "the session was closed".to_owned(), |end| end.reason))
    }
}

/// Tells the agent to kill a command nobody waits for any more.
struct CancelOnDrop {
    id: u32,
    frames: Option<mpsc::Sender<Vec<u8>>>,
}

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        if let Some(frames) = self.frames.take()
            && let Ok(bytes) = encoded(&Frame::Cancel { id: self.id })
            && let Err(mpsc::error::TrySendError::Full(bytes)) = frames.try_send(bytes)
        {
            // As many can wait here as requests got through, which the same queue bounds.
            tokio::spawn(async move { frames.send(bytes).await });
        }
    }
}

/// Ends quietly when the session or the stream does: whoever waits for the command sees that.
async fn feed_stdin(frames: mpsc::Sender<Vec<u8>>, id: u32, credit: Arc<Semaphore>, stdin: Bytes) {
    for piece in stdin.chunks(MAX_DATA) {
        let Ok(permits) = credit.acquire_many(u32::try_from(piece.len()).unwrap_or(u32::MAX)).await else {
            return;
        };
        permits.forget();
        let frame = Frame::Data { id, channel: Channel::Stdin, bytes: piece.to_vec() };
        let Ok(bytes) = encoded(&frame) else { return };
        if frames.send(bytes).await.is_err() {
            return;
        }
    }
    if !stdin.is_empty()
        && let Ok(bytes) = encoded(&Frame::Eof { id, channel: Channel::Stdin })
    {
        let _ = frames.send(bytes).await;
    }
}

fn encoded(frame: &Frame) -> Result<Vec<u8>, AgentError> {
    let mut bytes = Vec::new();
    encode(frame, &mut bytes).map_err(|error| AgentError::TooLong(error.to_string()))?;
    Ok(bytes)
}

async fn hello(
    reader: &mut OwnedReadHalf,
    writer: &mut OwnedWriteHalf,
    decoder: &mut Decoder,
    nonce: u64,
) -> Result<(), AgentError> {
    let gone = |error: std::io::Error| AgentError::Gone(format!("agent connection failed: {error}"));
    let bytes = encoded(&Frame::Hello(Hello { version: PROTOCOL_VERSION, session: nonce }))?;
    writer.write_all(&bytes).await.map_err(gone)?;
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let length = reader.read(&mut buffer).await.map_err(gone)?;
        if length == 0 {
            return Err(AgentError::Gone("the agent closed the connection before its hello".into()));
        }
        decoder.feed(&buffer[..length]);
        while let Some(frame) = decoder.next_frame() {
            match frame {
                Ok(Frame::Hello(hello)) if hello.session == nonce => {
                    if hello.version == PROTOCOL_VERSION {
                        return Ok(());
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
}

async fn read_loop(mut reader: OwnedReadHalf, mut decoder: Decoder, streams: &Streams) -> End {
    let offence =
        |what: String| End { reason: format!("the agent broke the protocol: {what}"), offence: true };
    let loss = |reason: String| End { reason, offence: false };
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

async fn write_loop(mut writer: OwnedWriteHalf, mut queue: mpsc::Receiver<Vec<u8>>) -> End {
    while let Some(mut bytes) = queue.recv().await {
        while bytes.len() < 64 * 1024
            && let Ok(next) = queue.try_recv()
        {
            bytes.extend(next);
        }
        if let Err(error) = writer.write_all(&bytes).await {
            return End { reason: format!("cannot write to the agent: {error}"), offence: false };
        }
    }
    End { reason: "the session was closed".to_owned(), offence: false }
}
