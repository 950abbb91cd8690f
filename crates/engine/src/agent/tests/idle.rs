//! Sessions in which nobody waits for anything: they cost nothing, and the next who does is not the worse for it.

use std::time::Duration;

use bytes::Bytes;
use manta_agent_proto::{ExecExit, Frame, Reply};
use tokio::io::AsyncReadExt;
use tokio::runtime::Handle;
use tokio::time::{Instant, sleep, timeout};

use super::super::{Output, Session};
use super::scripted::{Scripted, open};
use super::sh;

const HOUR: Duration = Duration::from_secs(3600);

/// A command that takes so long.
async fn command(session: &Session, agent: &mut Scripted, time: Duration) {
    let answers = async {
        let Frame::Request { id, .. } = agent.hear().await else { panic!("no request") };
        sleep(time).await;
        let exit = ExecExit {
            exit_code: 0,
            timed_out: false,
            stdout_truncated: false,
            stderr_truncated: false,
            duration_us: 1,
        };
        agent.say(&Frame::Reply { id, reply: Reply::Exit(exit) }).await;
    };
    let mut output = Output::default();
    let (exit, ()) = tokio::join!(session.exec(sh("true"), Bytes::new(), &mut output), answers);
    exit.unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_idle_session_wakes_nobody() {
    let (session, mut agent, _links) = open().await;
    for busy in [Duration::ZERO, Duration::from_secs(60)] {
        command(&session, &mut agent, busy).await;
        let metrics = Handle::current().metrics();
        let before = metrics.worker_park_count(0);
        sleep(HOUR).await;
        let woken = metrics.worker_park_count(0) - before;
        // The wheel of timers takes a few turns by itself.
        assert!(woken < 100, "{woken} times in an hour after a command of {busy:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_first_question_after_a_long_time_is_followed_by_a_poke_soon() {
    let (session, mut agent, _links) = open().await;
    command(&session, &mut agent, Duration::from_secs(60)).await;
    sleep(HOUR).await;
    let poked = async {
        agent.hear().await;
        poke(&mut agent).await
    };
    let after = unanswered(&session, "true", poked).await;
    assert!(after < Duration::from_millis(300), "after {after:?}");
}

#[tokio::test(start_paused = true)]
async fn a_question_that_waits_behind_what_nobody_acknowledged_is_noticed() {
    let (session, mut agent, _links) = open().await;
    let long = "x".repeat(100_000);
    for _ in 0..5 {
        unanswered(&session, &long, agent.hear()).await;
        agent.hear().await; // that it is to be killed
    }
    unanswered(&session, &long, agent.hear()).await; // with which the window is full
    sleep(HOUR).await;
    assert!(agent.stream.try_read(&mut [0; 1]).is_err(), "it is poked though nobody waits");
    let after = unanswered(&session, "true", poke(&mut agent)).await;
    assert!(after < Duration::from_secs(3), "after {after:?}");
}

/// After how long a poke comes, and nothing else before.
async fn poke(agent: &mut Scripted) -> Duration {
    let began = Instant::now();
    assert_eq!(agent.stream.read_u8().await.unwrap(), 0);
    began.elapsed()
}

/// What comes while a command is asked for that is not answered.
async fn unanswered<T>(session: &Session, script: &str, come: impl Future<Output = T>) -> T {
    let mut output = Output::default();
    tokio::select! {
        ended = session.exec(sh(script), Bytes::new(), &mut output) => panic!("{ended:?}"),
        come = timeout(HOUR, come) => come.expect("it comes"),
    }
}
