//! Agents that no honest one is like: what they do ends the session, and costs a bounded amount of memory.

use bytes::Bytes;
use manta_agent_proto::{
    Decoder, Frame, Hello, INITIAL_CREDIT, MAX_FRAME, PROTOCOL_VERSION, Reply, Resume, encode,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::super::{Output, Redial, Session};
use super::{DEADLINE, adopt, sh};

/// The agent's ends of links, which say and hear what the test wants.
struct Hostile {
    stream: UnixStream,
    decoder: Decoder,
}

impl Hostile {
    async fn say(&mut self, frame: &Frame) {
        let mut bytes = Vec::new();
        encode(frame, &mut bytes).unwrap();
        self.stream.write_all(&bytes).await.unwrap();
    }

    async fn hear(&mut self) -> Frame {
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
    async fn go_on(&mut self, received: u64) {
        let Frame::Hello(hello) = self.hear().await else { panic!("no hello") };
        let resume = hello.resume.map(|host| Resume { received, ..host });
        self.say(&Frame::Hello(Hello { version: PROTOCOL_VERSION, session: hello.session, resume })).await;
    }
}

/// A session, the agent's end of its link, and those of the links to come.
async fn open() -> (Session, Hostile, mpsc::UnboundedReceiver<Hostile>) {
    let pair = || {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (ours, Hostile { stream: theirs, decoder: Decoder::new() })
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
        agent.say(&Frame::Reply { id, reply: Reply::Adopted { unix_ns: 1 } }).await;
    };
    let (opened, ()) = tokio::join!(Session::open(ours, 1 << 40, adopt(), redial), greet);
    (opened.unwrap().0, agent, dialled)
}

async fn is_an_offence(session: &Session, words: &str) {
    let end = timeout(DEADLINE, session.ended()).await.expect("it goes on");
    assert!(end.offence && end.reason.contains(words), "{end:?}");
}

#[tokio::test]
async fn more_acknowledged_than_was_sent() {
    let (session, mut agent, _links) = open().await;
    agent.say(&Frame::Ack { frames: 1 }).await;
    agent.say(&Frame::Ack { frames: 2 }).await;
    is_an_offence(&session, "a count of 2 received frames, with 1 acknowledged before and 1 sent").await;
}

#[tokio::test]
async fn less_acknowledged_than_before() {
    let (session, mut agent, _links) = open().await;
    agent.say(&Frame::Ack { frames: 1 }).await;
    agent.say(&Frame::Ack { frames: 0 }).await;
    is_an_offence(&session, "a count of 0").await;
}

#[tokio::test]
async fn a_hello_with_a_count_that_cannot_be_true() {
    let (session, agent, mut links) = open().await;
    drop(agent);
    links.recv().await.unwrap().go_on(7).await;
    is_an_offence(&session, "a count of 7").await;
}

#[tokio::test]
async fn hanging_up_again_and_again() {
    let (session, agent, mut links) = open().await;
    drop(agent);
    let answered = async {
        let mut answered = 0;
        while let Some(mut link) = links.recv().await {
            link.go_on(1).await;
            answered += 1;
        }
        answered
    };
    let ((), answered) = tokio::join!(is_an_offence(&session, "too often"), answered);
    assert_eq!(answered, 8);
}

#[tokio::test]
async fn what_is_never_acknowledged_is_bounded() {
    let (session, mut agent, _links) = open().await;
    let asking = (0..200).map(|_| {
        let session = session.clone();
        tokio::spawn(async move {
            let long = sh(&"x".repeat(10_000));
            session.exec(long, Bytes::from(vec![0; INITIAL_CREDIT as usize]), &mut Output::default()).await
        })
    });
    let asking: Vec<_> = asking.collect();
    let mut received = 0;
    let mut buffer = vec![0; 64 * 1024];
    // Until nothing but the pokes of a host that waits for an answer come.
    loop {
        let length = timeout(DEADLINE, agent.stream.read(&mut buffer)).await.expect("in time").unwrap();
        if buffer[..length] == [0] {
            break;
        }
        received += length;
    }
    assert!((400_000..512 * 1024 + MAX_FRAME).contains(&received), "{received} bytes were sent");
    asking.iter().for_each(tokio::task::JoinHandle::abort);
}
