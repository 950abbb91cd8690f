//! One session with an agent: hello, then any number of requests at once. How its frames get there, and over which
//! links, is [`super::keeper`]'s affair.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use manta_agent_proto::{Adopt, Channel, Exec, ExecExit, Frame, INITIAL_CREDIT, MAX_DATA, Reply, Request};
use tokio::net::UnixStream;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio_util::task::AbortOnDropHandle;

use super::error::{AgentError, End};
use super::keeper::{Control, Keeper, Outgoing};
use super::link::encoded;
use super::output::{Output, append_within};
use super::silence::Silence;
use super::streams::{Event, Open, Streams};
use super::transit::{Redial, Transit};

/// Encoded frames waiting to be sent; each is at most [`manta_agent_proto::MAX_FRAME`] long.
const QUEUE: usize = 64;
/// Credit is granted anew when this much was used up.
const GRANT_STEP: u32 = INITIAL_CREDIT / 2;

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
    silence: Arc<Silence>,
    /// None while the session lives.
    ended: watch::Receiver<Option<End>>,
    _keeper: AbortOnDropHandle<()>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.streams.close();
    }
}

impl Session {
    /// Says hello and has the guest adopted, in one message; gives the guest's wall clock after that, nanoseconds
    /// since 1970. The deadline is the caller's. A link that is lost after that is replaced by way of `redial`.
    pub(crate) async fn open(
        stream: UnixStream,
        name: u64,
        adopt: Adopt,
        redial: Redial,
    ) -> Result<(Self, u64), AgentError> {
        let (transit, link, reply) = Transit::open(stream, name, Request::Adopt(adopt), redial).await?;
        let clock = adopted(reply)?;
        let (streams, silence) = (Arc::<Streams>::default(), Arc::<Silence>::default());
        let (frames, queue) = mpsc::channel(QUEUE);
        let (control, controls) = mpsc::channel(1);
        let (end, ended) = watch::channel(None);
        let keeper = Keeper::new(transit, queue, controls, streams.clone(), silence.clone());
        let keeper = tokio::spawn({
            let streams = streams.clone();
            async move {
                end.send_replace(Some(keeper.keep(link).await));
                streams.close();
            }
        });
        let _keeper = AbortOnDropHandle::new(keeper);
        Ok((Self { inner: Arc::new(Inner { streams, frames, control, silence, ended, _keeper }) }, clock))
    }

    /// Has the agent finish what it is saying and then keep silent, with all that runs running on; then closes
    /// the connection. What is asked meanwhile waits.
    ///
    /// # Errors
    /// The session is over then.
    pub(crate) async fn park(&self, timeout: Duration) -> Result<(), AgentError> {
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
            let reason = format!("the agent connection could not be parked: {error}");
            // An error means that it has ended already.
            let _ = self.control(Control::Fail(reason)).await;
        }
        parked
    }

    /// Goes on over another connection after [`Self::park`]. The agent breaks its silence when it is asked something.
    ///
    /// # Errors
    /// The session is over then.
    pub(crate) async fn resume(&self) -> Result<(), AgentError> {
        let (resumed, done) = oneshot::channel();
        self.control(Control::Resume(resumed)).await?;
        // An error comes a moment before the end is known.
        match done.await {
            Ok(()) => Ok(()),
            Err(_) => Err(AgentError::Gone(self.ended().await.reason)),
        }
    }

    /// Completes when a command that began now should have ended, with a limit on the time for which it can be heard.
    pub(crate) async fn overdue(&self, limit: Duration) {
        self.inner.silence.overdue(limit).await;
    }

    async fn control(&self, control: Control) -> Result<(), AgentError> {
        self.inner.control.send(control).await.map_err(|_| self.gone())
    }

    /// Completes when the session has ended; says how.
    pub(crate) async fn ended(&self) -> End {
        let mut ended = self.inner.ended.clone();
        match ended.wait_for(Option::is_some).await {
            Ok(end) => end.clone().unwrap_or_else(End::closed),
            Err(_) => End::closed(),
        }
    }

    /// Has the agent answer.
    ///
    /// # Errors
    /// When it does not in time, or the session is over.
    pub(crate) async fn ping(&self, timeout: Duration) -> Result<(), AgentError> {
        let call = async {
            let mut open = self.request(Request::Ping).await?;
            self.event(&mut open).await.map(drop)
        };
        tokio::time::timeout(timeout, call).await.map_err(|_| AgentError::Timeout(timeout))?
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
        AgentError::Gone(end.unwrap_or_else(End::closed).reason)
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
