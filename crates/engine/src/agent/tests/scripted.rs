//! Sessions with an agent that says and hears what the test wants.

use manta_agent_proto::{Decoder, Frame, Hello, PROTOCOL_VERSION, Reply, Resume, encode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::super::{AgentError, Redial, Session};
use super::{DEADLINE, adopt};

/// The agent's end of a link.
pub(super) struct Scripted {
    pub(super) stream: UnixStream,
    decoder: Decoder,
}

impl Scripted {
    pub(super) async fn say(&mut self, frame: &Frame) {
        let mut bytes = Vec::new();
        encode(frame, &mut bytes).unwrap();
        self.stream.write_all(&bytes).await.unwrap();
    }

    pub(super) async fn hear(&mut self) -> Frame {
        loop {
            if let Some(frame) = self.decoder.next_frame() {
                return frame.unwrap();
            }
            let mut buffer = [0; 4096];
            let length = timeout(DEADLINE, self.stream.read(&mut buffer)).await.expect("in time").unwrap();
            assert_ne!(length, 0, "the host hung up");
            self.decoder.feed(&buffer[..length]);
        }
    }

    /// Answers the hello with that many frames received.
    pub(super) async fn go_on(&mut self, received: u64) {
        let Frame::Hello(hello) = self.hear().await else { panic!("no hello") };
        let resume = hello.resume.map(|host| Resume { received, ..host });
        self.say(&Frame::Hello(Hello { version: PROTOCOL_VERSION, session: hello.session, resume })).await;
    }
}

/// A session, the agent's end of its link, and those of the links to come.
pub(super) async fn open() -> (Session, Scripted, mpsc::UnboundedReceiver<Scripted>) {
    let (opened, agent, links) = adopted_with(Reply::Adopted { unix_ns: 1 }).await;
    (opened.unwrap(), agent, links)
}

/// The same with an agent that answers so when it is to adopt its guest.
pub(super) async fn adopted_with(
    reply: Reply,
) -> (Result<Session, AgentError>, Scripted, mpsc::UnboundedReceiver<Scripted>) {
    let pair = || {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (ours, Scripted { stream: theirs, decoder: Decoder::new() })
    };
    let (links, dialled) = mpsc::unbounded_channel();
    let dial = move || {
        let (ours, theirs) = pair();
        let sent = links.send(theirs).map_err(|_| "nobody answers".to_owned());
        Box::pin(async move { sent.map(|()| ours) }) as _
    };
    let redial = Redial { dial: Box::new(dial), limit: DEADLINE, vmm_pid: 0 };
    let (ours, mut agent) = pair();
    let greet = async {
        agent.go_on(0).await;
        let Frame::Request { id, .. } = agent.hear().await else { panic!("no request") };
        agent.say(&Frame::Reply { id, reply }).await;
    };
    let (opened, ()) = tokio::join!(Session::open(ours, 1 << 40, adopt(), redial), greet);
    (opened.map(|(session, _)| session), agent, dialled)
}
