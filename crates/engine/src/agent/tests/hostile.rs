//! Agents that babble, dawdle, answer for others or read nothing: they end their own session, or go on to no avail, and
//! a neighbour notices nothing. What offends by what it claims is in `offences`.

use std::time::Duration;

use bytes::Bytes;
use manta_agent_proto::{Channel, ExecExit, Frame, Hello, MAX_DATA, MAX_FRAME, Reply, Request, encode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::{Instant, interval, sleep, timeout};

use super::super::{AgentError, Output, Redial, Session};
use super::scripted::{Scripted, open};
use super::{DEADLINE, adopt, sh};

/// More than any machine needs for what should take microseconds.
const PROMPT: Duration = Duration::from_secs(5);

fn exit(exit_code: i32) -> Reply {
    Reply::Exit(ExecExit {
        exit_code,
        timed_out: false,
        stdout_truncated: false,
        stderr_truncated: false,
        duration_us: 1,
    })
}

fn encoded(frame: &Frame) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode(frame, &mut bytes).unwrap();
    bytes
}

/// The stream of the command that is asked for next.
async fn asked(agent: &mut Scripted) -> u32 {
    loop {
        if let Frame::Request { id, request: Request::Exec(_) } = agent.hear().await {
            return id;
        }
    }
}

async fn run(session: &Session) -> (Result<ExecExit, AgentError>, Output) {
    let mut output = Output::default();
    let ran = timeout(DEADLINE, session.exec(sh("true"), Bytes::new(), &mut output)).await.expect("in time");
    (ran, output)
}

/// Commands in a sandbox of an honest agent are answered promptly.
async fn a_neighbour_works() {
    let (session, mut agent, _links) = open().await;
    for code in 0..10 {
        let answers = async {
            let id = asked(&mut agent).await;
            agent.say(&Frame::Reply { id, reply: exit(code) }).await;
        };
        let both = async { tokio::join!(run(&session), answers).0.0.unwrap() };
        assert_eq!(timeout(PROMPT, both).await.expect("promptly").exit_code, code);
    }
}

#[tokio::test]
async fn what_is_no_frame_or_only_a_hosts_ends_the_session_and_what_runs_in_it() {
    let bytes = |frame: Frame| encoded(&frame);
    let (stdin, stdout) = (Channel::Stdin, Channel::Stdout);
    let cases = [
        (b"garbage\0".to_vec(), "is not valid COBS"),
        (b"\x03\x09\x01\x01\x01\x01\0".to_vec(), "unknown frame kind 9"),
        (vec![b'x'; MAX_FRAME + 8192], "frame longer than"),
        (b"\x03\x02\x01\x01\x01\x02{\0".to_vec(), "is not understood"),
        (bytes(Frame::Request { id: 9, request: Request::Ping }), "a request"),
        (bytes(Frame::Cancel { id: 1 }), "a request"),
        (bytes(Frame::Hello(Hello { version: 3, session: 1 << 40, resume: None })), "a second hello"),
        (bytes(Frame::Credit { id: 1, channel: stdout, bytes: 1 }), "credit for its own output"),
        (bytes(Frame::Data { id: 1, channel: stdin, bytes: vec![1] }), "data on standard input"),
        (bytes(Frame::Data { id: 1, channel: stdout, bytes: vec![] }), "empty data"),
    ];
    for (said, words) in cases {
        let (session, mut agent, _links) = open().await;
        let misbehaves = async {
            asked(&mut agent).await;
            let _ = agent.stream.write_all(&said).await; // it is hung up on
        };
        let ((ran, _), ()) = tokio::join!(run(&session), misbehaves);
        assert!(matches!(&ran, Err(AgentError::Gone(why)) if why.contains(words)), "{words}: {ran:?}");
        let end = session.ended().await;
        assert!(end.offence && end.reason.len() < 300, "{end:?}");
    }
}

#[tokio::test]
async fn answers_for_other_commands_and_for_those_to_come_reach_nobody() {
    let (session, mut agent, _links) = open().await;
    for code in 1..=3 {
        let answers = async {
            let id = asked(&mut agent).await;
            let mut said = Vec::new();
            for other in (0..10_000).filter(|other| *other != id) {
                let data = Frame::Data { id: other, channel: Channel::Stdout, bytes: vec![b'!'] };
                said.extend(encoded(&data));
                said.extend(encoded(&Frame::Reply { id: other, reply: exit(99) }));
            }
            said.extend(encoded(&Frame::Data { id, channel: Channel::Stdout, bytes: vec![b'.'] }));
            said.extend(encoded(&Frame::Reply { id, reply: exit(code) }).repeat(10_000));
            let ((mut read, mut write), mut nowhere) = (agent.stream.split(), tokio::io::sink());
            let said = async { write.write_all(&said).await.unwrap() };
            // Acknowledgements, and pokes if it takes long: none of them is a request.
            tokio::select! {
                () = said => {}
                read = tokio::io::copy(&mut read, &mut nowhere) => panic!("hung up: {read:?}"),
            }
        };
        let ((ran, output), ()) = tokio::join!(run(&session), answers);
        assert_eq!((ran.unwrap().exit_code, output.stdout.as_slice()), (code, &b"."[..]));
    }
}

#[tokio::test]
async fn output_over_the_limit_is_neither_kept_nor_waited_for() {
    let (session, mut agent, _links) = open().await;
    let floods = async {
        let id = asked(&mut agent).await;
        let (mut sent, mut granted) = (0, 256 * 1024);
        while sent < 4 << 20 {
            if sent + MAX_DATA > granted {
                let Frame::Credit { bytes, .. } = agent.hear().await else { continue };
                granted += bytes as usize;
                continue;
            }
            agent.say(&Frame::Data { id, channel: Channel::Stderr, bytes: vec![b'x'; MAX_DATA] }).await;
            sent += MAX_DATA;
        }
        agent.say(&Frame::Reply { id, reply: exit(0) }).await;
    };
    let mut output = Output::default();
    let exec = manta_agent_proto::Exec { output_limit: 1000, ..sh("true") };
    let both = async { tokio::join!(session.exec(exec, Bytes::new(), &mut output), floods).0 };
    timeout(DEADLINE, both).await.expect("in time").unwrap();
    assert_eq!((output.stderr.len(), output.stderr_truncated), (1000, true));
    assert!(output.stderr.capacity() < 2 * MAX_DATA, "{} bytes are held", output.stderr.capacity());
}

#[tokio::test(start_paused = true)]
async fn an_answer_a_byte_a_second_or_half_of_one_is_waited_for_to_the_limit() {
    for bytes_sent in [usize::MAX, 20] {
        let (session, mut agent, _links) = open().await;
        let began = Instant::now();
        let limit = Duration::from_secs(30);
        let dawdles = async {
            let id = asked(&mut agent).await;
            let mut second = interval(Duration::from_secs(1));
            for byte in encoded(&Frame::Reply { id, reply: exit(0) }).into_iter().take(bytes_sent) {
                second.tick().await;
                agent.stream.write_all(&[byte]).await.unwrap();
            }
            std::future::pending::<()>().await;
        };
        let mut output = Output::default();
        tokio::select! {
            ended = session.exec(sh("true"), Bytes::new(), &mut output) => panic!("{ended:?}"),
            () = dawdles => {}
            () = session.overdue(limit) => {}
        }
        assert!(began.elapsed() < limit + Duration::from_secs(1), "after {:?}", began.elapsed());
    }
}

#[tokio::test(start_paused = true)]
async fn a_hello_a_byte_a_second_ends_the_session_in_time() {
    let (session, agent, mut links) = open().await;
    drop(agent);
    let began = Instant::now();
    let mut link = links.recv().await.unwrap();
    let dawdles = async {
        let mut second = interval(Duration::from_secs(1));
        loop {
            second.tick().await;
            if link.stream.write_all(b"x").await.is_err() {
                std::future::pending::<()>().await; // it has been hung up on
            }
        }
    };
    let end = tokio::select! {
        end = session.ended() => end,
        () = dawdles => unreachable!(),
        () = sleep(Duration::from_secs(3600)) => panic!("it goes on"),
    };
    assert!(end.reason.contains("no hello within") && began.elapsed() <= DEADLINE * 2, "{end:?}");
}

#[tokio::test]
async fn a_flood_of_hellos_that_are_not_the_answer_ends_at_the_deadline_and_holds_up_nobody() {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let flood = tokio::spawn(async move {
        let hello = Hello { version: 3, session: 1, resume: None };
        let hellos = encoded(&Frame::Hello(hello)).repeat(1000);
        while theirs.write_all(&hellos).await.is_ok() {}
    });
    let dial = || Box::pin(async { Err("nobody".to_owned()) }) as _;
    let redial = Redial { dial: Box::new(dial), limit: DEADLINE, vmm_pid: 0 };
    let opened = timeout(Duration::from_millis(500), Session::open(ours, 2, adopt(), redial));
    let (opened, ()) = timeout(DEADLINE, async { tokio::join!(opened, a_neighbour_works()) }).await.unwrap();
    assert!(opened.is_err(), "{opened:?}");
    timeout(DEADLINE, flood).await.expect("it is hung up on").unwrap();
}

#[tokio::test]
async fn an_agent_that_never_stops_talking_or_never_reads_holds_up_nobody() {
    let (session, agent, _links) = open().await;
    let Scripted { mut stream, .. } = agent;
    let talks = tokio::spawn(async move {
        let nonsense = encoded(&Frame::Reply { id: 1 << 30, reply: Reply::Done }).repeat(1000);
        while stream.write_all(&nonsense).await.is_ok() {}
    });
    let (deaf, mut agent, _its_links) = open().await;
    let asking: Vec<_> = (0..20)
        .map(|_| {
            let deaf = deaf.clone();
            let long = sh(&"x".repeat(100_000));
            tokio::spawn(async move { deaf.exec(long, Bytes::new(), &mut Output::default()).await.map(drop) })
        })
        .collect();
    agent.stream.read_u8().await.unwrap(); // it is being written to, and reads no more
    for _ in 0..5 {
        a_neighbour_works().await;
    }
    assert!(asking.iter().all(|asking| !asking.is_finished()));
    drop((session, deaf));
    asking.iter().for_each(tokio::task::JoinHandle::abort);
    timeout(DEADLINE, talks).await.expect("it is hung up on").unwrap();
}
