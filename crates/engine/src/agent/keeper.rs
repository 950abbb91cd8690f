//! The task that keeps a session's frames moving, over one link after the other, until the session ends.
//!
//! A link that is lost is replaced at once, and nobody notices but for the delay. A session that is parked gives its
//! link back, and has none until it is resumed.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use manta_agent_proto::{Frame, encode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep};
use tracing::info;

use super::error::End;
use super::link::{Link, POKE, Patience};
use super::silence::{Cause, Silence};
use super::streams::Streams;
use super::transit::Transit;

/// Bytes sent and not acknowledged beyond which nothing more is taken from the queue: an agent that acknowledges
/// nothing has us keep this much, and one frame.
const WINDOW: usize = 512 * 1024;

/// Bytes gathered for one write.
const WRITE: usize = 64 * 1024;

/// An agent that keeps hanging up must not keep us busy: no more losses than this,
const LOSSES: usize = 8;
/// in this time.
const LOSSES_TIME: Duration = Duration::from_secs(10);

/// While somebody waits for a silent agent. Far less than the time for which an agent that has lost its link lets
/// commands run on (20 s): it may know of the loss when we do not.
const MOST_PATIENCE: Duration = Duration::from_secs(2);

/// What is to be sent.
#[derive(Debug)]
pub(super) enum Outgoing {
    /// An encoded frame.
    Frame(Vec<u8>),
    /// An encoded frame after which nothing is sent until the session was released and resumed.
    Last(Vec<u8>),
}

/// What becomes of the link.
#[derive(Debug)]
pub(super) enum Control {
    /// Close it; the session waits. Answered when it is closed.
    Release(oneshot::Sender<()>),
    /// Go on over another one. Answered when the agent has said hello on it.
    Resume(oneshot::Sender<()>),
    /// End the session.
    Fail(String),
}

pub(super) struct Keeper {
    transit: Transit,
    queue: mpsc::Receiver<Outgoing>,
    control: mpsc::Receiver<Control>,
    streams: Arc<Streams>,
    silence: Arc<Silence>,
    /// The last frame was taken from the queue.
    parked: bool,
    /// Who waits for the next link.
    resumed: Option<oneshot::Sender<()>>,
    /// An acknowledgement that is due; the newest says it all.
    ack: Option<Frame>,
    losses: VecDeque<Instant>,
}

/// Why there is no link.
enum Unlinked {
    Lost(String),
    Released(oneshot::Sender<()>),
}

impl Keeper {
    pub(super) fn new(
        transit: Transit,
        queue: mpsc::Receiver<Outgoing>,
        control: mpsc::Receiver<Control>,
        streams: Arc<Streams>,
        silence: Arc<Silence>,
    ) -> Self {
        let losses = VecDeque::new();
        Self { transit, queue, control, streams, silence, parked: false, resumed: None, ack: None, losses }
    }

    /// Works until the session ends; says how it did.
    pub(super) async fn keep(mut self, link: Link) -> End {
        let Err(end) = self.work(link).await;
        end
    }

    async fn work(&mut self, mut link: Link) -> Result<Infallible, End> {
        loop {
            match self.use_link(link).await? {
                Unlinked::Released(done) => self.rest(done).await?,
                Unlinked::Lost(reason) => {
                    self.silence.begin(Cause::Lost);
                    self.count_loss(&reason)?;
                }
            }
            link = self.relink().await?;
            if !self.parked {
                self.silence.end();
            }
            if let Some(resumed) = self.resumed.take() {
                let _ = resumed.send(()); // who asked for it may have gone
            }
        }
    }

    /// Sends and receives over one link, until that is gone.
    async fn use_link(&mut self, link: Link) -> Result<Unlinked, End> {
        let Link { mut stream, mut decoder, .. } = link;
        self.ack = None; // the hello has said it
        let (mut reader, mut writer) = stream.split();
        let mut buffer = vec![0; 64 * 1024];
        // Whole frames on their way, and how much of them is written.
        let (mut out, mut written) = (Vec::new(), 0);
        // The newest stream that is waited for, whether anything was heard since, and how long before it is poked.
        let (mut awaited, mut heard, mut patience) = (None, false, Patience::new());
        let mut tick = std::pin::pin!(sleep(patience.now()));
        loop {
            while let Some(frame) = decoder.next_frame() {
                let frame = frame.map_err(|error| End::offence(&error.to_string()))?;
                self.receive(frame, decoder.frame_len())?;
            }
            if written == out.len() {
                out.clear();
                written = 0;
                if let Some(ack) = self.ack.take() {
                    encode(&ack, &mut out).map_err(|error| End::loss(error.to_string()))?;
                }
            }
            self.transit.outbox.take(&mut out, WRITE);
            let more = !self.parked && self.transit.outbox.held() < WINDOW;
            let newest = self.streams.newest();
            if newest != awaited {
                (awaited, heard, patience) = (newest, false, Patience::new());
                tick.as_mut().reset(Instant::now() + patience.now());
            }
            tokio::select! {
                read = reader.read(&mut buffer) => match read {
                    Ok(0) => return Ok(Unlinked::Lost("it was closed".to_owned())),
                    Ok(length) => {
                        heard = true;
                        decoder.feed(&buffer[..length]);
                    }
                    Err(error) => return Ok(Unlinked::Lost(format!("reading: {error}"))),
                },
                wrote = writer.write(&out[written..]), if written < out.len() => match wrote {
                    Ok(length) => written += length,
                    Err(error) => return Ok(Unlinked::Lost(format!("writing: {error}"))),
                },
                Some(next) = self.queue.recv(), if more => self.gather(next),
                asked = self.control.recv() => match asked {
                    Some(Control::Release(done)) => return Ok(Unlinked::Released(done)),
                    asked => return Err(end_of(asked)),
                },
                // An idle session wakes nobody, unless what is asked next would wait for room without our knowing.
                () = &mut tick, if awaited.is_some() || !more => {
                    if !heard && written == out.len() && self.streams.newest().is_some() {
                        out.push(POKE);
                    }
                    heard = false;
                    patience.grow(MOST_PATIENCE);
                    tick.as_mut().reset(Instant::now() + patience.now());
                }
            }
        }
    }

    fn receive(&mut self, frame: Frame, length: usize) -> Result<(), End> {
        if let Frame::Ack { frames } = frame {
            let acknowledged = self.transit.outbox.acknowledge(frames);
            return acknowledged.map_err(|bogus| End::offence(&format!("it sent {bogus}")));
        }
        self.streams.dispatch(frame).map_err(|what| End::offence(&format!("it sent {what}")))?;
        self.ack = self.transit.inbox.count(length).or(self.ack.take());
        Ok(())
    }

    /// Takes that and whatever else waits, as far as there is room.
    fn gather(&mut self, first: Outgoing) {
        let mut next = Some(first);
        while let Some(outgoing) = next {
            self.parked = matches!(outgoing, Outgoing::Last(_));
            let (Outgoing::Frame(bytes) | Outgoing::Last(bytes)) = outgoing;
            self.transit.outbox.push(bytes);
            let more = !self.parked && self.transit.outbox.held() < WINDOW;
            next = more.then(|| self.queue.try_recv().ok()).flatten();
        }
        if self.parked {
            self.silence.begin(Cause::Parked);
        }
    }

    fn count_loss(&mut self, reason: &str) -> Result<(), End> {
        info!(
            vmm_pid = self.transit.vmm_pid(),
            reason, "the connection to an agent was lost: making another one"
        );
        let now = Instant::now();
        self.losses.retain(|at| now - *at < LOSSES_TIME);
        self.losses.push_back(now);
        if self.losses.len() <= LOSSES {
            return Ok(());
        }
        let reason = format!("the agent connection was lost too often; at last, {reason}");
        Err(End { reason, offence: true })
    }

    /// Another link, unless the session is released or ended meanwhile.
    async fn relink(&mut self) -> Result<Link, End> {
        loop {
            let done = tokio::select! {
                linked = self.transit.relink() => return linked.map_err(|end| End {
                    reason: format!("the agent connection was lost, and could not be made anew: {}", end.reason),
                    ..end
                }),
                asked = self.control.recv() => match asked {
                    Some(Control::Release(done)) => done,
                    asked => return Err(end_of(asked)),
                },
            };
            self.rest(done).await?;
        }
    }

    /// Without a link until somebody wants one again.
    async fn rest(&mut self, done: oneshot::Sender<()>) -> Result<(), End> {
        let _ = done.send(()); // who asked for it may have gone; the session waits all the same
        match self.control.recv().await {
            Some(Control::Resume(resumed)) => {
                self.parked = false;
                self.resumed = Some(resumed);
                Ok(())
            }
            asked => Err(end_of(asked)),
        }
    }
}

/// What ends the session, or is out of order.
fn end_of(asked: Option<Control>) -> End {
    match asked {
        Some(Control::Fail(reason)) => End::loss(reason),
        Some(Control::Release(_) | Control::Resume(_)) => End::loss("it was released or resumed out of turn"),
        None => End::closed(),
    }
}
