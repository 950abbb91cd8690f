//! Commands, run by a real agent process.
#![allow(clippy::unwrap_used)] // in the helpers too

mod common;

use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use common::{Agent, argv, exec, sh};
use manta_agent_proto::{Channel, Exec, Frame, INITIAL_CREDIT, MAX_STREAMS, Program, Reply, Request};

#[test]
fn output_error_and_exit_code_come_back() {
    let mut agent = Agent::start();
    let outcome = agent.run(sh("echo out; echo err >&2; exit 7"));
    assert_eq!((outcome.stdout(), outcome.stderr(), outcome.exit().exit_code), ("out\n", "err\n", 7));
    assert!(outcome.exit().duration_us > 0);
    assert!(!outcome.exit().timed_out && !outcome.exit().stdout_truncated);
}

#[test]
fn a_short_output_is_never_lost() {
    let mut agent = Agent::start();
    for round in 0..200 {
        let outcome = agent.run(argv(&["echo", &round.to_string()]));
        assert_eq!((outcome.stdout(), outcome.exit().exit_code), (format!("{round}\n").as_str(), 0));
    }
}

#[test]
fn shell_mode_is_a_login_shell() {
    let outcome = Agent::start().run(exec(Program::Shell("echo \"$0\" $((40 + 2))".into())));
    assert_eq!((outcome.stdout(), outcome.exit().exit_code), ("/bin/sh 42\n", 0));
}

#[test]
fn binary_output_is_unchanged() {
    let script = "for i in 0 1 2 3 4 5 6 7; do printf '\\000\\001\\377\\n'; done";
    assert_eq!(Agent::start().run(sh(script)).stdout, b"\0\x01\xff\n".repeat(8));
}

#[test]
fn large_output_passes_through_flow_control() {
    let outcome = Agent::start().run(sh("seq 1 600000; seq 1 200000 >&2"));
    let expected = |last: u32| (1..=last).map(|n| format!("{n}\n")).collect::<String>();
    assert!(outcome.stdout() == expected(600_000), "{} bytes", outcome.stdout.len());
    assert!(outcome.stderr() == expected(200_000), "{} bytes", outcome.stderr.len());
    assert_eq!(outcome.exit().exit_code, 0);
}

#[test]
fn without_credit_only_the_window_is_sent() {
    let mut agent = Agent::start();
    agent.request(1, Request::Exec(sh("head -c 1000000 /dev/zero; echo done >&2")));
    let mut received = 0;
    while received < INITIAL_CREDIT {
        let Frame::Data { channel: Channel::Stdout, bytes, .. } = agent.receive() else { panic!() };
        received += u32::try_from(bytes.len()).unwrap();
    }
    assert_eq!(received, INITIAL_CREDIT);
    // Nothing more of it, while others go on.
    agent.request(2, Request::Ping);
    assert_eq!(agent.receive(), Frame::Reply { id: 2, reply: Reply::Done });
    agent.send(&Frame::Credit { id: 1, channel: Channel::Stdout, bytes: 1_000_000 });
    let outcome = agent.finish(1);
    assert_eq!(outcome.stdout.len() as u32 + received, 1_000_000);
    assert_eq!(outcome.stderr(), "done\n");
}

#[test]
fn background_processes_do_not_hold_up_the_answer_and_live_on() {
    let mut agent = Agent::start();
    let started = Instant::now();
    let outcome = agent.run(sh("(while :; do echo log; sleep 0.01; done) & echo $!"));
    assert!(started.elapsed() < Duration::from_secs(10));
    let server = outcome.stdout().lines().find(|line| *line != "log").unwrap().to_owned();
    let outcome = agent.run(sh(&format!("kill {server}")));
    assert_eq!((outcome.stderr(), outcome.exit().exit_code), ("", 0), "it did not live on");
    assert_reaped(&mut agent, &server);
}

#[test]
fn output_of_an_orphan_is_drained() {
    let mut agent = Agent::start();
    let fifo = tempfile::tempdir().unwrap();
    let done = fifo.path().join("done");
    let done = done.to_str().unwrap();
    // Far more than the pipe holds, written after the command has ended.
    let script =
        format!("mkfifo {done}; (read go < {done}; seq 1 100000; echo finished > {done}) & echo started");
    assert_eq!(agent.run(sh(&script)).stdout(), "started\n");
    let outcome = agent.run(sh(&format!("echo go > {done}; cat {done}")));
    assert_eq!(outcome.stdout(), "finished\n");
}

#[test]
fn a_timeout_kills_the_group_and_keeps_the_output() {
    let mut agent = Agent::start();
    let command = Exec { timeout_ms: 300, ..sh("echo before; sleep 1000 & echo $!; wait") };
    let outcome = agent.run(command);
    let exit = outcome.exit();
    assert!(exit.timed_out);
    assert_eq!(exit.exit_code, 137);
    assert!((300_000..5_000_000).contains(&exit.duration_us), "{}", exit.duration_us);
    let lines: Vec<_> = outcome.stdout().lines().collect();
    assert_eq!(lines[0], "before");
    assert_reaped(&mut agent, lines[1]);
}

/// Waits until the process has ended, and checks that the agent has reaped it.
fn assert_reaped(agent: &mut Agent, pid: &str) {
    assert!(common::ends(pid.parse().unwrap()), "{pid} runs on");
    let process = std::path::Path::new("/proc").join(pid);
    // The agent inherits and reaps it; after a round trip it has handled every signal from before.
    for id in 100..110 {
        agent.request(id, Request::Ping);
        agent.finish(id);
        if !process.exists() {
            return;
        }
    }
    panic!("{pid} is still there");
}

#[test]
fn cancel_kills_and_still_answers() {
    let mut agent = Agent::start();
    agent.request(5, Request::Exec(sh("echo started; exec sleep 1000")));
    agent.wait_for(5, "started\n");
    agent.send(&Frame::Cancel { id: 5 });
    let outcome = agent.finish(5);
    assert_eq!(outcome.exit().exit_code, 137);
    assert!(!outcome.exit().timed_out);
}

#[test]
fn cancel_does_not_wait_for_credit() {
    let mut agent = Agent::start();
    agent.request(5, Request::Exec(sh("head -c 300000 /dev/zero; exec sleep 1000")));
    let mut received = 0;
    while received < INITIAL_CREDIT {
        let Frame::Data { bytes, .. } = agent.receive() else { panic!() };
        received += u32::try_from(bytes.len()).unwrap();
    }
    agent.send(&Frame::Cancel { id: 5 });
    let Frame::Reply { id: 5, reply: Reply::Exit(exit) } = agent.receive() else { panic!() };
    assert!(exit.stdout_truncated);
}

#[test]
fn standard_input_reaches_the_command_and_ends() {
    let mut agent = Agent::start();
    let input: Vec<u8> = (0..400_000_u32).flat_map(u32::to_le_bytes).collect();
    agent.request(1, Request::Exec(Exec { stdin: true, ..argv(&["cat"]) }));
    let mut credit = INITIAL_CREDIT as usize;
    let (mut sent, mut echoed) = (0, Vec::new());
    while echoed.len() < input.len() {
        while credit > 0 && sent < input.len() {
            let length = credit.min(10_000).min(input.len() - sent);
            let bytes = input[sent..sent + length].to_vec();
            agent.send(&Frame::Data { id: 1, channel: Channel::Stdin, bytes });
            (sent, credit) = (sent + length, credit - length);
        }
        match agent.receive() {
            Frame::Credit { id: 1, channel: Channel::Stdin, bytes } => credit += bytes as usize,
            Frame::Data { id: 1, channel: Channel::Stdout, bytes } => {
                let length = u32::try_from(bytes.len()).unwrap();
                agent.send(&Frame::Credit { id: 1, channel: Channel::Stdout, bytes: length });
                echoed.extend(bytes);
            }
            other => panic!("unexpected {other:?}"),
        }
    }
    agent.send(&Frame::Eof { id: 1, channel: Channel::Stdin });
    assert_eq!(agent.finish(1).exit().exit_code, 0);
    assert!(echoed == input);
}

#[test]
fn input_nobody_reads_is_dropped_and_credited() {
    let mut agent = Agent::start();
    agent.request(1, Request::Exec(Exec { stdin: true, ..sh("exec <&-; echo closed; exec sleep 1000") }));
    agent.wait_for(1, "closed\n");
    let mut credit = INITIAL_CREDIT as usize;
    for _ in 0..100 {
        let length = 16_000;
        while credit < length {
            let Frame::Credit { channel: Channel::Stdin, bytes, .. } = agent.receive() else { panic!() };
            credit += bytes as usize;
        }
        agent.send(&Frame::Data { id: 1, channel: Channel::Stdin, bytes: vec![b'x'; length] });
        credit -= length;
    }
    agent.send(&Frame::Cancel { id: 1 });
    assert_eq!(agent.finish(1).exit().exit_code, 137);
}

#[test]
fn without_input_a_command_reads_an_end() {
    assert_eq!(Agent::start().run(sh("wc -c")).stdout().trim(), "0");
}

#[test]
fn eight_at_once_all_answer_with_their_own() {
    let mut agent = Agent::start();
    let ids: Vec<u32> = (1..=8).collect();
    for id in &ids {
        agent.request(*id, Request::Exec(sh(&format!("seq 1 50000; echo {id}; exit {id}"))));
    }
    for (id, outcome) in agent.collect(&ids) {
        assert_eq!(outcome.exit().exit_code, id as i32);
        assert_eq!(outcome.stdout().lines().count(), 50_001);
        assert!(outcome.stdout().ends_with(&format!("\n50000\n{id}\n")));
    }
}

#[test]
fn more_streams_than_allowed_are_refused() {
    let mut agent = Agent::start();
    for id in 0..MAX_STREAMS as u32 {
        agent.request(id, Request::Exec(argv(&["sleep", "1000"])));
    }
    agent.request(9999, Request::Exec(argv(&["true"])));
    let refused = agent.finish(9999);
    assert!(matches!(refused.reply, Some(Reply::Failed { .. })), "{refused:?}");
    agent.send(&Frame::Cancel { id: 3 });
    assert_eq!(agent.finish(3).exit().exit_code, 137);
    agent.request(9999, Request::Exec(argv(&["true"])));
    assert_eq!(agent.finish(9999).exit().exit_code, 0);
}

#[test]
fn what_cannot_be_started_is_an_answer() {
    let mut agent = Agent::start();
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str, content: &str, mode: u32| {
        let path = directory.path().join(name);
        std::fs::write(&path, content).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let plain = file("plain", "#!/bin/sh\n", 0o644);
    let foreign = file("foreign", "not a program", 0o755);
    let orphan = file("orphan", "#!/no/such/interpreter\n", 0o755);
    let path = [("PATH".to_owned(), directory.path().to_str().unwrap().to_owned())].to_vec();
    let cases = [
        (argv(&["nosuch-program"]), 127, "manta: nosuch-program: not found\n".to_owned()),
        (argv(&["/no/such"]), 127, "manta: /no/such: not found\n".to_owned()),
        (argv(&[&plain]), 126, format!("manta: {plain}: Permission denied")),
        (argv(&[&foreign]), 126, format!("manta: {foreign}: Exec format error")),
        (argv(&[&orphan]), 126, format!("manta: {orphan}: its interpreter is missing\n")),
        (Exec { env: path, ..argv(&["plain"]) }, 126, "manta: plain: Permission denied".to_owned()),
        (argv(&["/"]), 126, "manta: /: Permission denied".to_owned()),
        (argv(&["echo", &"x".repeat(60_000)]), 0, String::new()),
        (
            Exec { cwd: Some("/no/dir".into()), ..argv(&["true"]) },
            126,
            "manta: cannot enter directory /no/dir: No such file or directory".to_owned(),
        ),
        (argv(&["a\0b"]), 126, "manta: an argument is empty or contains a NUL byte".to_owned()),
        (argv(&[]), 126, "manta: the argument list is empty".to_owned()),
        (argv(&[""]), 127, "manta: : not found\n".to_owned()),
        (
            Exec { env: vec![("A=B".into(), "c".into())], ..argv(&["true"]) },
            126,
            "manta: an environment variable's name".to_owned(),
        ),
    ];
    for (command, code, why) in cases {
        let outcome = agent.run(command.clone());
        assert_eq!(outcome.exit().exit_code, code, "{command:?}: {}", outcome.stderr());
        assert!(outcome.stderr().starts_with(&why), "{:?} for {command:?}", outcome.stderr());
    }
}

#[test]
fn output_over_the_limit_is_dropped_without_blocking() {
    let command = Exec { output_limit: 100_000, ..sh("head -c 3000000 /dev/zero; echo small >&2; exit 3") };
    let outcome = Agent::start().run(command);
    let exit = outcome.exit();
    assert_eq!((outcome.stdout.len(), outcome.stderr(), exit.exit_code), (100_000, "small\n", 3));
    assert!(exit.stdout_truncated && !exit.stderr_truncated);
}

#[test]
fn output_of_exactly_the_limit_is_not_truncated() {
    let outcome = Agent::start().run(Exec { output_limit: 6, ..sh("echo 12345") });
    assert_eq!(outcome.stdout(), "12345\n");
    assert!(!outcome.exit().stdout_truncated);
}

#[test]
fn an_endless_output_over_the_limit_still_times_out() {
    let outcome = Agent::start().run(Exec { output_limit: 10, timeout_ms: 300, ..argv(&["yes"]) });
    assert!(outcome.exit().timed_out && outcome.exit().stdout_truncated);
    assert_eq!(outcome.stdout.len(), 10);
}

#[test]
fn environment_and_directory_are_as_asked() {
    let mut agent = Agent::start();
    let outcome = agent.run(argv(&["env"]));
    let mut names: Vec<_> = outcome.stdout().lines().map(|line| line.split_once('=').unwrap().0).collect();
    names.sort_unstable();
    assert_eq!(names, ["HOME", "LANG", "LOGNAME", "PATH", "SHELL", "TERM", "USER"]);
    let outcome = agent.run(Exec {
        env: vec![("LANG".into(), "C".into()), ("X".into(), "a b=c".into())],
        cwd: Some("/usr".into()),
        ..sh("echo $LANG \"$X\"; pwd")
    });
    assert_eq!(outcome.stdout(), "C a b=c\n/usr\n");
    assert_eq!(agent.run(sh("pwd")).stdout(), "/root\n");
}

#[test]
fn commands_start_with_clean_signals_and_descriptors_in_their_own_group() {
    let mut agent = Agent::start();
    let outcome = agent.run(argv(&["cat", "/proc/self/status"]));
    let sets = |status: &str| -> Vec<(String, u64)> {
        let lines = status.lines().filter(|line| line.starts_with("Sig") && !line.starts_with("SigQ"));
        let parts = lines.map(|line| line.split_once(":\t").unwrap());
        parts.map(|(name, set)| (name.to_owned(), u64::from_str_radix(set, 16).unwrap())).collect()
    };
    // What whoever runs the tests ignores is inherited; a guest's kernel hands down nothing.
    let own = sets(&std::fs::read_to_string("/proc/self/status").unwrap());
    let inherited = own.iter().find(|(name, _)| name == "SigIgn").unwrap().1;
    for (name, set) in sets(outcome.stdout()) {
        // 32 and 33 are the C library's own.
        assert_eq!(set & !(inherited | 3 << 31), 0, "{name}");
    }
    // No more than what everything here inherits from whoever runs the tests.
    agent.request(2, Request::Exec(Exec { stdin: true, ..sh("echo up; cat") }));
    agent.wait_for(2, "up\n");
    let inherited = std::process::Command::new("ls").arg("/proc/self/fd").output().unwrap().stdout;
    assert_eq!(agent.run(argv(&["ls", "/proc/self/fd"])).stdout(), String::from_utf8(inherited).unwrap());
    let outcome = agent.run(sh("read pid comm state ppid pgrp rest < /proc/$$/stat; echo $$ $pgrp"));
    let (pid, group) = outcome.stdout().trim().split_once(' ').unwrap();
    assert_eq!(pid, group);
}

#[test]
fn signals_are_reported_as_128_and_n() {
    let mut agent = Agent::start();
    assert_eq!(agent.run(sh("kill -TERM $$")).exit().exit_code, 143);
    assert_eq!(agent.run(sh("kill -SEGV $$")).exit().exit_code, 139);
}

#[test]
fn a_pipe_of_packets_is_read_like_any_other() {
    // Each write to a pipe with O_DIRECT (0o40000) is read apart, so a short read means nothing.
    let script = "import fcntl, os\nfcntl.fcntl(1, fcntl.F_SETFL, os.O_DIRECT | os.O_WRONLY)\nfor i in range(500): os.write(1, b'%d\\n' % i)";
    let outcome = Agent::start().run(argv(&["python3", "-c", script]));
    assert_eq!((outcome.stderr(), outcome.stdout().lines().count()), ("", 500));
}

#[test]
fn orphans_are_reaped() {
    let mut agent = Agent::start();
    let outcome = agent.run(sh("for i in 1 2 3 4 5; do (sleep 0.05 & echo $!) ; done"));
    let pids: Vec<_> = outcome.stdout().lines().map(str::to_owned).collect();
    assert_eq!(pids.len(), 5);
    for pid in pids {
        assert_reaped(&mut agent, &pid);
    }
}
