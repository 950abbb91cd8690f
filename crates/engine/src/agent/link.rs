//! One byte stream to the agent, up to the agent's hello; [`super::keeper`] does the rest.

use std::time::Duration;

use manta_agent_proto::{Decoder, Frame, FrameError, Hello, PROTOCOL_VERSION, Reply, encode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::error::AgentError;

/// Links that may die before one holds: after a restore some VMMs reset one or two.
pub(crate) const LINKS: usize = 8;

/// The stream of what is asked with a hello; those of the session begin with 1.
pub(super) const FIRST: u32 = 0;

/// A restored guest may have dropped a connection without a word. It only says so when something arrives for it: an
/// empty frame, which means nothing and ends none, since frames are written whole.
pub(super) const POKE: u8 = 0;

/// A guest that runs answers sooner.
const HELLO_PATIENCE: Duration = Duration::from_millis(10);
/// Commands take longer than a hello, and each poke wakes an agent that has nothing to say yet.
const FIRST_PATIENCE: Duration = Duration::from_millis(100);
/// While a hello is to be answered.
const MOST_PATIENCE: Duration = Duration::from_millis(500);

/// How long silence is borne before it is broken: a connection that breaks after a restore does so early.
#[derive(Debug)]
pub(super) struct Patience(Duration);

impl Patience {
    pub(super) fn new() -> Self {
        Self(FIRST_PATIENCE)
    }

    /// For a hello.
    fn of_hello() -> Self {
        Self(HELLO_PATIENCE)
    }

    pub(super) fn now(&self) -> Duration {
        self.0
    }

    pub(super) fn grow(&mut self, most: Duration) {
        self.0 = (self.0 * 3 / 2).min(most);
    }
}

/// A byte stream on which the agent has said hello.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) stream: UnixStream,
    pub(super) decoder: Decoder,
    patience: Patience,
}

impl Link {
    /// Says hello, and what is to come in the same breath, then waits for the agent's hello; whatever came before
    /// that is dropped. The deadline is the caller's.
    pub(super) async fn open(
        stream: UnixStream,
        hello: Hello,
        first: &[u8],
    ) -> Result<(Self, Hello), AgentError> {
        let mut link = Self { stream, decoder: Decoder::new(), patience: Patience::of_hello() };
        let nonce = hello.session;
        let mut bytes = encoded(&Frame::Hello(hello))?;
        bytes.extend(first);
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
                _ => {} // left over from an earlier link
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

    async fn write(&mut self, bytes: &[u8]) -> Result<(), AgentError> {
        self.stream.write_all(bytes).await.map_err(|_| AgentError::LinkLost)
    }

    /// The next frame; what follows it stays in the decoder.
    async fn next(&mut self) -> Result<Result<Frame, FrameError>, AgentError> {
        let mut buffer = [0; 4096];
        loop {
            if let Some(frame) = self.decoder.next_frame() {
                return Ok(frame);
            }
            match timeout(self.patience.now(), self.stream.read(&mut buffer)).await {
                Ok(Ok(0) | Err(_)) => return Err(AgentError::LinkLost),
                Ok(Ok(length)) => self.decoder.feed(&buffer[..length]),
                Err(_) => {
                    self.write(&[POKE]).await?;
                    self.patience.grow(MOST_PATIENCE);
                }
            }
        }
    }
}

pub(super) fn encoded(frame: &Frame) -> Result<Vec<u8>, AgentError> {
    let mut bytes = Vec::new();
    encode(frame, &mut bytes).map_err(|error| AgentError::TooLong(error.to_string()))?;
    Ok(bytes)
}
