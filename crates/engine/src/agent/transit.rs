//! What a session has besides its link: what went to and fro in it, and the way to another link, over which it goes
//! on exactly where it was.

use std::fmt;
use std::time::Duration;

use manta_agent_proto::{Frame, Hello, Inbox, Outbox, PROTOCOL_VERSION, Reply, Request, Resume};
use manta_vmm::BoxFuture;
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::error::{AgentError, End};
use super::link::{FIRST, LINKS, Link, encoded};

/// How a session gets another link.
pub(crate) struct Redial {
    /// Connects to the agent of the same guest once more.
    pub(crate) dial: Box<dyn Fn() -> BoxFuture<'static, Result<UnixStream, String>> + Send + Sync>,
    /// For that, up to the agent's hello.
    pub(crate) limit: Duration,
    /// Whose guest that is, for the log.
    pub(crate) vmm_pid: u32,
}

impl fmt::Debug for Redial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Redial")
            .field("limit", &self.limit)
            .field("vmm_pid", &self.vmm_pid)
            .finish_non_exhaustive()
    }
}

#[derive(Debug)]
pub(super) struct Transit {
    /// By which the agent knows the session.
    name: u64,
    /// How many were said.
    hellos: u64,
    pub(super) outbox: Outbox,
    pub(super) inbox: Inbox,
    redial: Redial,
}

impl Transit {
    /// Opens a session of that name, and asks for the first thing in the same breath. The deadline is the caller's.
    pub(super) async fn open(
        stream: UnixStream,
        name: u64,
        first: Request,
        redial: Redial,
    ) -> Result<(Self, Link, Reply), AgentError> {
        let (outbox, inbox) = (Outbox::default(), Inbox::default());
        let mut transit = Self { name, hellos: 1, outbox, inbox, redial };
        transit.outbox.push(encoded(&Frame::Request { id: FIRST, request: first })?);
        let mut bytes = Vec::new();
        transit.outbox.take(&mut bytes, usize::MAX);
        let hello = Hello { version: PROTOCOL_VERSION, session: name, resume: None };
        let (mut link, _) = Link::open(stream, hello, &bytes).await?;
        let reply = link.first_reply().await?;
        if transit.inbox.count(link.decoder.frame_len()).is_some() {
            // No honest agent says so much at once that it must be acknowledged.
            return Err(AgentError::Gone("the agent's first answer is too long".to_owned()));
        }
        Ok((transit, link, reply))
    }

    pub(super) fn vmm_pid(&self) -> u32 {
        self.redial.vmm_pid
    }

    /// Goes on over another link, in time. An end that is no offence says why there is none.
    pub(super) async fn relink(&mut self) -> Result<Link, End> {
        let limit = self.redial.limit;
        let in_time = timeout(limit, self.try_links()).await;
        in_time.unwrap_or_else(|_| Err(End::loss(format!("no hello within {} ms", limit.as_millis()))))
    }

    async fn try_links(&mut self) -> Result<Link, End> {
        let mut lost = 0;
        loop {
            let stream = (self.redial.dial)().await.map_err(End::loss)?;
            // As random as the name; no other hello had it.
            let session = self.name.wrapping_add(self.hellos);
            self.hellos += 1;
            let resume = Some(Resume { session: self.name, received: self.inbox.received() });
            let hello = Hello { version: PROTOCOL_VERSION, session, resume };
            let (link, answer) = match Link::open(stream, hello, &[]).await {
                Ok(opened) => opened,
                Err(AgentError::LinkLost) if lost < LINKS => {
                    lost += 1;
                    continue;
                }
                Err(error) => return Err(End::loss(error.to_string())),
            };
            let Some(agent) = answer.resume.filter(|agent| agent.session == self.name) else {
                return Err(End::loss("the agent has forgotten the session"));
            };
            self.outbox.resume(agent.received).map_err(|bogus| End::offence(&format!("it sent {bogus}")))?;
            return Ok(link);
        }
    }
}
