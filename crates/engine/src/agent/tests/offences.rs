//! Agents that no honest one is like: what they do ends the session, and costs a bounded amount of memory and time.

use std::time::Duration;

use bytes::Bytes;
use manta_agent_proto::{Frame, INITIAL_CREDIT, LINK_PATIENCE, MAX_FRAME, Reply};
use tokio::io::AsyncReadExt;
use tokio::time::{Instant, sleep, timeout};

use super::super::{AgentError, Output, Session};
use super::scripted::{adopted_with, open};
use super::{DEADLINE, sh};

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

#[tokio::test(start_paused = true)]
async fn hanging_up_now_and_then_does_not_put_off_a_time_limit_for_ever() {
    let (session, agent, mut links) = open().await;
    let mut output = Output::default();
    let began = Instant::now();
    let (limit, hour) = (Duration::from_secs(30), Duration::from_secs(3600));
    let hangs_up = async {
        drop(agent);
        while let Some(mut link) = links.recv().await {
            sleep(Duration::from_millis(4900)).await;
            link.go_on(1).await;
        }
    };
    tokio::select! {
        ended = session.exec(sh("true"), Bytes::new(), &mut output) => panic!("{ended:?}"),
        () = hangs_up => panic!("no more links"),
        () = session.overdue(limit) => {}
        () = sleep(hour) => panic!("it goes on"),
    }
    assert!(began.elapsed() < limit + LINK_PATIENCE + Duration::from_secs(1), "after {:?}", began.elapsed());
}

#[tokio::test]
async fn a_first_answer_that_would_have_to_be_acknowledged() {
    let long = Reply::Failed { message: "x".repeat(MAX_FRAME / 2) };
    let (opened, _agent, _links) = adopted_with(long).await;
    assert!(matches!(opened, Err(AgentError::Gone(reason)) if reason.contains("too long")));
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
