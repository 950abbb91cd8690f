//! One session with an agent: hello, then any number of requests at once. Between being parked and resumed it
//! has no byte stream, and goes on where it was; the streams are [`super::link`]'s.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use manta_agent_proto::{
    Adopt, Channel, Exec, ExecExit, Frame, Hello, INITIAL_CREDIT, MAX_DATA, PROTOCOL_VERSION, Reply, Request,
};
use thiserror::Error;
use tokio::net::UnixStream;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio_util::task::AbortOnDropHandle;

use super::link::{Control, Link, Outgoing, encoded, keep};
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
    /// The link ended before there was a session on it: another one may do.
    #[error("the connection to the agent ended before its hello")]
    LinkLost,
    /// The session ended; the reason as text.
    #[error("{0}")]
    Gone(String),
    /// The agent could not do it.
    #[error("the agent refused: {}", excerpt(.0))]
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
    frames: mpsc::Sender<Outgoing>,
    control: mpsc::Sender<Control>,
    /// By which the agent knows the session; another one after each time it was parked.
    nonce: AtomicU64,
    silence: Mutex<Silence>,
    /// None while the session lives.
    ended: watch::Receiver<Option<End>>,
    _io: AbortOnDropHandle<()>,
}

/// How long a session was parked.
#[derive(Debug, Default)]
struct Silence {
    past: Duration,
    since: Option<Instant>,
}

impl Silence {
    fn so_far(&self) -> Duration {
        self.past + self.since.map_or(Duration::ZERO, |since| since.elapsed())
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.streams.close();
    }
}

impl Session {
    /// Says hello and has the guest adopted, in one message; gives the guest's wall clock after that, nanoseconds
    /// since 1970. The deadline is the caller's.
    pub(crate) async fn open(
        stream: UnixStream,
        nonce: u64,
        adopt: Adopt,
    ) -> Result<(Self, u64), AgentError> {
        let hello = Hello { version: PROTOCOL_VERSION, session: nonce, resume: None };
        let (mut link, _) = Link::open(stream, hello, Some(Request::Adopt(adopt))).await?;
        let clock = adopted(link.first_reply().await?)?;
        let streams = Arc::new(Streams::default());
        let (frames, queue) = mpsc::channel(WRITE_QUEUE);
        let (control, controls) = mpsc::channel(1);
        let (end, ended) = watch::channel(None);
        let io = tokio::spawn({
            let streams = streams.clone();
            async move {
                let how = keep(link, queue, controls, streams.clone()).await;
                end.send_replace(Some(how));
                streams.close();
            }
        });
        let nonce = AtomicU64::new(nonce);
        let _io = AbortOnDropHandle::new(io);
        let silence = Mutex::default();
        let inner = Inner { streams, frames, control, nonce, silence, ended, _io };
        Ok((Self { inner: Arc::new(inner) }, clock))
    }

    /// Has the agent finish what it is saying and then keep silent, with all that runs running on; then closes
    /// the connection. What is asked meanwhile waits.
    ///
    /// # Errors
    /// The session is over then.
    pub(crate) async fn park(&self, timeout: Duration) -> Result<(), AgentError> {
        self.lock_silence().since = Some(Instant::now());
        let parked = async {
            let mut open = self.inner.streams.open().ok_or_else(|| self.gone())?;
            let last = Outgoing::Last(encoded(&Frame::Request { id: open.id, request: Request::Park })?);
            self.inner.frames.send(last).await.map_err(|_| self.gone())?;
            match self.event(&mut open).await? {
                Event::Reply(Reply::Done) => {}
                _ => return Err(AgentError::Gone("the agent's answer to park is none".to_owned())),
            }
            let (released, done) = oneshot::channel();
            self.control(Control::Release(released)).await?;
            done.await.map_err(|_| self.gone())
        };
        let parked = tokio::time::timeout(timeout, parked).await.unwrap_or(Err(AgentError::Timeout(timeout)));
        if let Err(error) = &parked {
            self.fail(format!("the agent connection could not be parked: {error}")).await;
        }
        parked
    }

    /// Goes on over another connection after [`Self::park`]. The deadline is the caller's; after
    /// [`AgentError::LinkLost`] another connection may be tried.
    pub(crate) async fn resume(&self, stream: UnixStream, nonce: u64) -> Result<(), AgentError> {
        let parked = self.inner.nonce.load(Ordering::Acquire);
        let hello = Hello { version: PROTOCOL_VERSION, session: nonce, resume: Some(parked) };
        let (mut link, answer) = Link::open(stream, hello, None).await?;
        if answer.resume != Some(parked) {
            return Err(AgentError::Gone("the agent has forgotten the session".to_owned()));
        }
        link.confirm().await?;
        self.inner.nonce.store(nonce, Ordering::Release);
        {
            let mut silence = self.lock_silence();
            *silence = Silence { past: silence.so_far(), since: None };
        }
        self.control(Control::Resume(link)).await
    }

    /// How long the session was parked, in all.
    pub(crate) fn silence(&self) -> Duration {
        self.lock_silence().so_far()
    }

    fn lock_silence(&self) -> MutexGuard<'_, Silence> {
        self.inner.silence.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the session, which is lost.
    pub(crate) async fn fail(&self, reason: String) {
        // An error means that it has ended already.
        let _ = self.control(Control::Fail(reason)).await;
    }

    async fn control(&self, control: Control) -> Result<(), AgentError> {
        self.inner.control.send(control).await.map_err(|_| self.gone())
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

    /// Has the guest adopted once more; gives its wall clock after that, nanoseconds since 1970.
    pub(crate) async fn adopt(&self, adopt: Adopt, timeout: Duration) -> Result<u64, AgentError> {
        let call = async {
            let mut open = self.request(Request::Adopt(adopt)).await?;
            match self.event(&mut open).await? {
                Event::Reply(reply) => adopted(reply),
                Event::Data(..) => Err(no_adoption()),
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
                Event::Reply(Reply::Done | Reply::Adopted { .. }) => {
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
        let frame = Outgoing::Frame(encoded(&frame)?);
        self.inner.frames.send(frame).await.map_err(|_| self.gone())
    }

    fn gone(&self) -> AgentError {
        let end = self.inner.ended.borrow().clone();
        AgentError::Gone(end.map_or_else(|| "the session was closed".to_owned(), |end| end.reason))
    }
}

/// The guest's clock after it was adopted.
fn adopted(reply: Reply) -> Result<u64, AgentError> {
    match reply {
        Reply::Adopted { unix_ns } => Ok(unix_ns),
        Reply::Failed { message } => Err(AgentError::Refused(message)),
        Reply::Done | Reply::Exit(_) => Err(no_adoption()),
    }
}

fn no_adoption() -> AgentError {
    AgentError::Gone("the agent's answer to adopt is none".to_owned())
}

/// As much of an agent's own words as is passed on.
pub(crate) fn excerpt(words: &str) -> String {
    words.chars().take(200).collect()
}

/// Tells the agent to kill a command nobody waits for any more.
struct CancelOnDrop {
    id: u32,
    frames: Option<mpsc::Sender<Outgoing>>,
}

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        if let Some(frames) = self.frames.take()
            && let Ok(bytes) = encoded(&Frame::Cancel { id: self.id })
            && let Err(mpsc::error::TrySendError::Full(frame)) = frames.try_send(Outgoing::Frame(bytes))
        {
            // As many can wait here as requests got through, which the same queue bounds.
            tokio::spawn(async move { frames.send(frame).await });
        }
    }
}

/// Ends quietly when the session or the stream does: whoever waits for the command sees that.
async fn feed_stdin(frames: mpsc::Sender<Outgoing>, id: u32, credit: Arc<Semaphore>, stdin: Bytes) {
    for piece in stdin.chunks(MAX_DATA) {
        let Ok(permits) = credit.acquire_many(u32::try_from(piece.len()).unwrap_or(u32::MAX)).await else {
            return;
        };
        permits.forget();
        let frame = Frame::Data { id, channel: Channel::Stdin, bytes: piece.to_vec() };
        let Ok(bytes) = encoded(&frame) else { return };
        if frames.send(Outgoing::Frame(bytes)).await.is_err() {
            return;
        }
    }
    if !stdin.is_empty()
        && let Ok(bytes) = encoded(&Frame::Eof { id, channel: Channel::Stdin })
    {
        let _ = frames.send(Outgoing::Frame(bytes)).await;
    }
}
