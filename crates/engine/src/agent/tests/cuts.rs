//! Links that are cut, at any byte of either direction: nothing is lost, nothing is done twice.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use manta_agent_proto::Exec;
use proptest::prelude::*;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use tokio::time::timeout;

use super::super::{AgentError, Output, Session};
use super::proxy::{Agent, Cut};
use super::{DEADLINE, adopt, sh};

/// Runs a command that leaves one line in a file of its name; its exit code, and what it printed.
async fn run(session: &Session, dir: &Path, name: &str, script: &str, stdin: Bytes) -> (i32, Output) {
    let trace = dir.join(name);
    let exec = Exec { stdin: !stdin.is_empty(), ..sh(&format!("echo ran >> {}; {script}", trace.display())) };
    let mut output = Output::default();
    let exit = timeout(DEADLINE, session.exec(exec, stdin, &mut output)).await.expect("in time").unwrap();
    assert_eq!(std::fs::read_to_string(trace).unwrap(), "ran\n", "{name}");
    (exit.exit_code, output)
}

fn lines(prefix: &str, last: u32) -> String {
    (1..=last).map(|number| format!("{prefix}{number}\n")).collect()
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

/// Output and input larger than the windows, both outputs, short commands, and a parking, all at once.
async fn all_at_once(cuts: Vec<Cut>) {
    let agent = Agent::start();
    let session = agent.session(cuts).await;
    let dir = agent.dir();
    let input: Bytes = (0..100_000_u32).flat_map(u32::to_le_bytes).collect::<Vec<u8>>().into();
    let long = run(&session, dir, "long", "seq 1 70000; exit 1", Bytes::new());
    let echo = run(&session, dir, "echo", "cat; exit 2", input.clone());
    let both =
        run(&session, dir, "both", "for i in $(seq 1 500); do echo $i; echo e$i >&2; done", Bytes::new());
    let short = async {
        for number in 0..10 {
            let (code, output) =
                run(&session, dir, &format!("short-{number}"), "echo short; exit 4", Bytes::new()).await;
            assert_eq!((code, output.stdout.as_slice()), (4, &b"short\n"[..]));
        }
    };
    let parking = async {
        session.park(DEADLINE).await.unwrap();
        session.resume().await.unwrap();
        session.adopt(adopt(), DEADLINE).await.unwrap();
    };
    let (long, echo, both, (), ()) = tokio::join!(long, echo, both, short, parking);
    assert!(long == (1, Output { stdout: lines("", 70_000).into(), ..Output::default() }));
    assert!(echo == (2, Output { stdout: input.to_vec(), ..Output::default() }));
    let both_outputs =
        Output { stdout: lines("", 500).into(), stderr: lines("e", 500).into(), ..Output::default() };
    assert!(both == (0, both_outputs));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, max_shrink_iters: 0, ..ProptestConfig::default() })]

    #[test]
    fn whatever_runs_goes_on_over_links_cut_anywhere(
        cuts in prop::collection::vec((0_usize..150_000, 0_usize..150_000, any::<bool>()), 0..=7)
    ) {
        let cut = |(up, down, told)| if told { Cut::After { up, down } } else { Cut::HalfOpen { up, down } };
        runtime().block_on(all_at_once(cuts.into_iter().map(cut).collect()));
    }
}

#[test]
fn a_command_goes_on_when_its_link_is_cut_at_each_byte() {
    runtime().block_on(async {
        let agent = Agent::start();
        let all = usize::MAX;
        let up = (0..340).step_by(3).map(|up| Cut::After { up, down: all });
        let down = (0..160).step_by(2).map(|down| Cut::After { up: all, down });
        for (number, cut) in up.chain(down).enumerate() {
            let session = agent.session([cut]).await;
            let got = run(&session, agent.dir(), &format!("{number}"), "cat; exit 3", "word\n".into()).await;
            assert_eq!(got, (3, Output { stdout: b"word\n".to_vec(), ..Output::default() }), "{cut:?}");
        }
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn the_hello_on_the_next_link_may_be_cut_too() {
    let agent = Agent::start();
    let cuts = (0..8).map(|number| Cut::After { up: 30 * number, down: 30 * number });
    let session = agent.session(cuts).await;
    let got = run(&session, agent.dir(), "it", "echo it", Bytes::new()).await;
    assert_eq!(got.1.stdout, b"it\n");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_connection_that_was_dropped_without_a_word_is_noticed_while_a_command_runs() {
    let agent = Agent::start();
    let session = agent.session([Cut::HalfOpen { up: usize::MAX, down: 0 }]).await;
    let began = std::time::Instant::now();
    let got = run(&session, agent.dir(), "it", "sleep 0.2; echo it", Bytes::new()).await;
    assert_eq!(got.1.stdout, b"it\n");
    assert!(began.elapsed() < Duration::from_secs(5), "it took {:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_command_nobody_waits_for_is_killed_over_the_next_link() {
    let agent = Agent::start();
    let session = agent.session([Cut::After { up: usize::MAX, down: 0 }]).await;
    let fifo = agent.dir().join("fifo");
    mknodat(CWD, &fifo, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    let script = format!("echo $$ > {}; exec sleep 1000", fifo.display());
    let mut output = Output::default();
    let pid = tokio::select! {
        ended = session.exec(sh(&script), Bytes::new(), &mut output) => panic!("{ended:?}"),
        pid = timeout(DEADLINE, tokio::fs::read_to_string(fifo)) => pid.expect("in time").unwrap(),
    };
    let Ok(pidfd) = pidfd_open(Pid::from_raw(pid.trim().parse().unwrap()).unwrap(), PidfdFlags::empty())
    else {
        return; // it has ended already
    };
    let limit = Timespec { tv_sec: DEADLINE.as_secs() as i64, tv_nsec: 0 };
    let ended =
        tokio::task::spawn_blocking(move || poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&limit)));
    assert_eq!(ended.await.unwrap().unwrap(), 1, "it runs on");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn an_agent_that_is_gone_ends_the_session() {
    let agent = Agent::start();
    let session = agent.session([Cut::Never]).await;
    kill_process(Pid::from_raw(i32::try_from(agent.pid()).unwrap()).unwrap(), Signal::KILL).unwrap();
    drop(agent);
    let end = timeout(DEADLINE, session.ended()).await.unwrap();
    assert!(!end.offence && end.reason.contains("could not be made anew"), "{end:?}");
    let error = session.exec(sh("true"), Bytes::new(), &mut Output::default()).await.unwrap_err();
    assert!(matches!(error, AgentError::Gone(reason) if reason == end.reason));
}
