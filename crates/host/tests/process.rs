//! Processes as the server starts VMMs: where they run, as whom, with what, and how they end.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::ffi::OsString;
use std::fs::{read_link, read_to_string};
use std::io::{Seek, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use manta_host::process::Confinement;
use manta_host::process::SpawnStep;
use manta_host::{Credentials, Ended, NetNs, Process, ProcessError, Spawn, processes_in};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, Signal, kill_process};

const ROOT: Credentials = Credentials { uid: 0, gid: 0, groups: Vec::new() };
/// Longer than anything takes here; reached only when a test fails.
const TIMEOUT: Duration = Duration::from_secs(10);

fn shell(script: &str, dir: &Path) -> Process {
    spawn(script, dir, None, &ROOT, Vec::new()).unwrap()
}

fn spawn(
    script: &str,
    dir: &Path,
    netns: Option<&NetNs>,
    credentials: &Credentials,
    fds: Vec<(OwnedFd, i32)>,
) -> Result<Process, ProcessError> {
    let args = ["-c", script].map(OsString::from);
    Process::spawn(Spawn {
        program: Path::new("/bin/sh"),
        args: &args,
        dir,
        netns,
        credentials,
        fds,
        confinement: Confinement::default(),
    })
}

fn output_of(process: &Process) -> String {
    let status = process.wait_timeout(TIMEOUT).unwrap().expect("an end in time");
    assert!(status.success(), "{status}: {}", process.output());
    process.output()
}

#[test]
fn it_runs_in_its_own_session_directory_and_environment() {
    let dir = tempfile::tempdir().unwrap();
    let script = "pwd; /usr/bin/env; /bin/cat /proc/self/stat; readlink /proc/self/fd/0; \
        grep -E '^(NoNewPrivs|SigBlk|SigIgn)' /proc/self/status; ls /proc/self/fd";
    let output = output_of(&shell(script, dir.path()));
    let lines: Vec<&str> = output.lines().collect();
    assert_eq!(Path::new(lines[0]), dir.path().canonicalize().unwrap());
    // What the shell itself sets, no more.
    let shells_own = ["PWD=", "OLDPWD=", "SHLVL=", "_="];
    let environment = lines[1..].iter().take_while(|line| line.contains('='));
    assert!(environment.clone().all(|line| shells_own.iter().any(|own| line.starts_with(own))), "{output}");
    let rest = &lines[1 + environment.count()..];
    let stat: Vec<&str> = rest[0].rsplit(')').next().unwrap().split_whitespace().collect();
    let [parent, session] = [stat[1], stat[3]];
    assert_eq!(parent, session, "the shell leads its session");
    assert_eq!(rest[1], "/dev/null");
    assert_eq!(rest[2..5], ["SigBlk:\t0000000000000000", "SigIgn:\t0000000000001000", "NoNewPrivs:\t1"]);
    // The fourth is that of the listed directory.
    assert_eq!(rest[5..], ["0", "1", "2", "3"]);
}

#[test]
fn it_runs_as_whom_it_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let credentials = Credentials { uid: 4242, gid: 4343, groups: vec![4444, 4545] };
    let script = "grep -E '^(Uid|Gid|Groups|CapEff|CapPrm|CapInh)' /proc/self/status";
    // The directory is root's alone, and entered nevertheless.
    let process = spawn(script, dir.path(), None, &credentials, Vec::new()).unwrap();
    let output = output_of(&process).replace('\t', " ");
    let none = "0000000000000000";
    assert_eq!(
        output.lines().map(str::trim).collect::<Vec<_>>(),
        [
            "Uid: 4242 4242 4242 4242",
            "Gid: 4343 4343 4343 4343",
            "Groups: 4444 4545",
            &format!("CapInh: {none}"),
            &format!("CapPrm: {none}"),
            &format!("CapEff: {none}"),
        ]
    );
    assert_eq!(rustix::process::getuid().as_raw(), 0, "this process stays who it is");
}

#[test]
fn its_program_may_lie_where_its_user_may_not_look() {
    let (dir, private) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let program = private.path().join("true");
    std::fs::copy("/bin/true", &program).unwrap();
    let credentials = Credentials { uid: 4242, gid: 4343, groups: Vec::new() };
    let (args, fds) = (&[], Vec::new());
    let spawn = Spawn {
        program: &program,
        args,
        dir: dir.path(),
        netns: None,
        credentials: &credentials,
        fds,
        confinement: Confinement::default(),
    };
    output_of(&Process::spawn(spawn).unwrap());
}

#[test]
fn it_runs_in_the_namespace_it_is_given() {
    let dir = tempfile::tempdir().unwrap();
    let netns = NetNs::create().unwrap();
    let here = read_link("/proc/thread-self/ns/net").unwrap();
    let credentials = Credentials { uid: 4242, gid: 4242, groups: Vec::new() };
    let process = spawn("exec sleep 60", dir.path(), Some(&netns), &credentials, Vec::new()).unwrap();
    let link = || read_link("/proc/thread-self/ns/net").unwrap();
    let there = netns.run(link).unwrap();
    assert_eq!(NetNs::of_process(process.pid()).unwrap().run(link).unwrap(), there);
    process.kill().unwrap();
    process.wait_timeout(TIMEOUT).unwrap().unwrap();
    assert_ne!(here, there);
    assert_eq!(read_link("/proc/thread-self/ns/net").unwrap(), here, "the caller stays where it is");
}

#[test]
fn descriptors_arrive_under_their_numbers_and_no_others() {
    let dir = tempfile::tempdir().unwrap();
    let file = |text: &str| {
        let mut file = tempfile::tempfile().unwrap();
        write!(file, "{text}").unwrap();
        file.rewind().unwrap();
        file
    };
    // One that a library would have left open, and two that are to swap numbers.
    let leaked = file("leaked");
    rustix::io::fcntl_setfd(&leaked, rustix::io::FdFlags::empty()).unwrap();
    let (a, b) = (OwnedFd::from(file("a")), OwnedFd::from(file("b")));
    let (a_number, b_number) = (a.as_raw_fd(), b.as_raw_fd());
    let script = format!(
        "ls /proc/self/fd | wc -l; for n in {a_number} {b_number} 200; do cat /proc/self/fd/$n; done"
    );
    let fds = vec![(a, b_number), (b, a_number), (OwnedFd::from(file("c")), 200)];
    let process = spawn(&script, dir.path(), None, &ROOT, fds).unwrap();
    let output = output_of(&process);
    let (count, text) = output.split_once('\n').unwrap();
    assert_eq!(text, "bac");
    // Three standard ones, these three, and that of the listed directory.
    assert_eq!(count.trim(), "7");
    let bad = vec![(OwnedFd::from(leaked), 2)];
    assert!(matches!(spawn(":", dir.path(), None, &ROOT, bad), Err(ProcessError::FdNumber(2))));
}

#[test]
fn output_is_kept_up_to_a_limit_and_blocks_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let process = shell("echo out; echo err >&2; printf '\\377\\n'", dir.path());
    assert_eq!(output_of(&process), "out\nerr\n\u{fffd}\n");
    // More than the pipe holds: the program sees EAGAIN, and goes on.
    let chatty = shell("head -c 1000000 /dev/zero 2>/dev/null; exit 0", dir.path());
    assert_eq!(output_of(&chatty).len(), 64 * 1024);
}

#[test]
fn a_host_without_memory_ends_it_before_the_server() {
    let process = shell("exec sleep 60", Path::new("/"));
    let score = |pid: &str| std::fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap();
    assert_eq!(score(&process.pid().to_string()).trim(), "500");
    assert_ne!(score("self").trim(), "500");
    process.kill().unwrap();
}

#[test]
fn it_ends_once_and_is_reaped() {
    let dir = tempfile::tempdir().unwrap();
    let process = shell("exit 7", dir.path());
    let status = process.wait_timeout(TIMEOUT).unwrap().unwrap();
    assert!(matches!(status, Ended::Status(status) if status.code() == Some(7)), "{status}");
    assert_eq!(process.try_wait().unwrap(), Some(status), "remembered");
    process.kill().unwrap();

    let process = shell("exec sleep 1000", dir.path());
    assert_eq!(process.try_wait().unwrap(), None);
    assert_eq!(process.wait_timeout(Duration::from_millis(1)).unwrap(), None);
    process.kill().unwrap();
    poll(&mut [PollFd::from_borrowed_fd(process.pidfd(), PollFlags::IN)], None).unwrap();
    assert_eq!(process.try_wait().unwrap().unwrap().signal(), Some(9));

    let process = shell("exec sleep 1000", dir.path());
    let pid = process.pid();
    drop(process);
    assert!(!Path::new(&format!("/proc/{pid}")).exists(), "killed and reaped");
}

#[test]
fn it_outlives_the_thread_that_started_it() {
    let dir = tempfile::tempdir().unwrap();
    let process =
        std::thread::scope(|scope| scope.spawn(|| shell("exec sleep 1000", dir.path())).join()).unwrap();
    assert_eq!(process.try_wait().unwrap(), None);
    process.kill().unwrap();
    assert_eq!(process.wait_timeout(TIMEOUT).unwrap().unwrap().signal(), Some(9));
}

#[test]
fn a_failed_spawn_says_where_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let program = Path::new("/does/not/exist");
    let spawn = Spawn {
        program,
        args: &[],
        dir: dir.path(),
        netns: None,
        credentials: &ROOT,
        fds: Vec::new(),
        confinement: Confinement::default(),
    };
    match Process::spawn(spawn) {
        Err(ProcessError::Spawn { step: SpawnStep::Exec, source, .. }) => {
            assert_eq!(source, rustix::io::Errno::NOENT);
        }
        other => panic!("{other:?}"),
    }
    let nowhere = dir.path().join("nowhere");
    let error = self::spawn(":", &nowhere, None, &ROOT, Vec::new()).unwrap_err();
    assert!(matches!(error, ProcessError::Spawn { step: SpawnStep::Dir, .. }), "{error}");
    let children = read_to_string("/proc/thread-self/children").unwrap();
    assert_eq!(children, "", "none left to reap");
}

#[test]
fn strays_are_found_by_their_directory_and_killed() {
    let dir = tempfile::tempdir().unwrap();
    let inner = dir.path().join("sandbox");
    std::fs::create_dir(&inner).unwrap();
    let other = tempfile::tempdir().unwrap();
    let mine = shell("exec sleep 1000", &inner);
    let bystander = shell("exec sleep 1000", other.path());
    // Also when the directory is gone.
    std::fs::remove_dir(&inner).unwrap();
    let strays = processes_in(dir.path()).unwrap();
    assert_eq!(strays.iter().map(|stray| stray.pid()).collect::<Vec<_>>(), [mine.pid()]);
    for stray in strays {
        stray.kill_and_wait(TIMEOUT).unwrap();
    }
    assert_eq!(mine.wait_timeout(TIMEOUT).unwrap().unwrap().signal(), Some(9));
    assert_eq!(bystander.try_wait().unwrap(), None);
    assert_eq!(processes_in(dir.path()).unwrap().len(), 0);
    assert_eq!(processes_in(&dir.path().join("none")).unwrap().len(), 0);
    bystander.kill().unwrap();
    assert_eq!(bystander.wait_timeout(TIMEOUT).unwrap().unwrap().signal(), Some(9));
}

#[test]
fn how_long_its_threads_have_run_is_told_unless_it_is_stopped() {
    let dir = tempfile::tempdir().unwrap();
    let process = shell("while :; do :; done", dir.path());
    let time = |prefix| process.time_of_threads(prefix).unwrap();
    assert_eq!(time("other"), None);
    let (before, deadline) = (time("sh").unwrap(), Instant::now() + TIMEOUT);
    while time("sh").unwrap() < before + Duration::from_millis(20) {
        assert!(Instant::now() < deadline, "it does not run");
        std::thread::yield_now();
    }
    let pid = Pid::from_raw(i32::try_from(process.pid()).unwrap()).unwrap();
    kill_process(pid, Signal::STOP).unwrap();
    while time("sh").is_some() {
        assert!(Instant::now() < deadline, "it does not stop");
    }
    process.kill().unwrap();
    process.wait_timeout(TIMEOUT).unwrap().expect("an end in time");
}
