//! Commands: what goes in comes out, all of it, once, with the right exit status.

use std::time::Instant;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

use crate::harness::{Host, Server, scaled};

#[test]
fn a_command_answers_with_output_error_output_and_exit_status() {
    let _host = Host::enter();
    let server = Server::start();
    let id = server.create();

    let ran = server.sh(&id, "echo out; echo err >&2; exit 3");
    assert_eq!(
        (&ran["stdout"], &ran["stderr"], &ran["exit_code"]),
        (&json!("out\n"), &json!("err\n"), &json!(3))
    );
    assert_eq!(server.sh(&id, "kill -9 $$")["exit_code"], 137);
    assert_eq!(server.sh(&id, "true")["stdout"], "");

    // Standard input is empty and closed, unless the request brings some.
    assert_eq!(server.stdout(&id, "wc -c"), "0");
    let ran = server.post("/exec", &json!({"sandbox_id": id, "argv": ["cat"], "stdin": "in\n"})).ok();
    assert_eq!(ran["stdout"], "in\n");

    // A shell expands, argv does not.
    assert_eq!(server.stdout(&id, "echo $((6 * 7)) $HOME"), "42 /root");
    let ran = server.post("/exec", &json!({"sandbox_id": id, "argv": ["echo", "$HOME", "a b"]})).ok();
    assert_eq!(ran["stdout"], "$HOME a b\n");

    let body =
        json!({"sandbox_id": id, "cmd": "pwd; echo $GREETING", "cwd": "/usr", "env": {"GREETING": "hi"}});
    assert_eq!(server.post("/exec", &body).ok()["stdout"], "/usr\nhi\n");
}

#[test]
fn the_promised_programs_are_there_and_work() {
    let _host = Host::enter();
    let server = Server::start();
    let id = server.create();
    assert_eq!(server.stdout(&id, "python3 -c 'import json, ssl, sqlite3; print(json.dumps([1]))'"), "[1]");
    assert_eq!(server.stdout(&id, "node -e 'console.log(6 * 7)'"), "42");
    assert_eq!(
        server.stdout(&id, "cd /tmp && git init -q r && cd r && git status --porcelain && echo ok"),
        "ok"
    );
    assert!(server.stdout(&id, "curl --version").starts_with("curl "));
    assert_eq!(server.stdout(&id, "test -s /etc/ssl/certs/ca-certificates.crt && echo ok"), "ok");
    assert_eq!(server.stdout(&id, "hostname"), id);
}

#[test]
fn output_is_never_lost_or_cut() {
    let _host = Host::enter();
    let server = Server::start();
    let id = server.create();
    // The original lost the output of 4 in 60 quick commands and cut 2 in 10 of 100 KB.
    for round in 0..60 {
        let cmd = format!("echo round {round}");
        assert_eq!(server.stdout(&id, &cmd), format!("round {round}"));
    }
    for _ in 0..10 {
        let ran = server.sh(&id, "head -c 100000 /dev/zero | tr '\\0' x");
        assert_eq!(ran["stdout"].as_str().expect("stdout").len(), 100_000);
        assert_eq!(ran["stdout_truncated"], false);
    }
    // The original blocked on more than 1 MiB.
    let ran = server.sh(&id, "head -c 3000000 /dev/zero | tr '\\0' y; echo end >&2");
    assert_eq!(ran["stdout"].as_str().expect("stdout").len(), 3_000_000);
    assert_eq!(ran["stderr"], "end\n");
}

#[test]
fn output_over_the_limit_is_cut_there_and_does_not_block_the_command() {
    let _host = Host::enter();
    let server = Server::with(&[("MANTA_OUTPUT_LIMIT", "1000")]);
    let id = server.create();
    let ran = server.sh(&id, "head -c 2000000 /dev/zero | tr '\\0' x; echo -n end >&2; exit 5");
    assert_eq!(ran["stdout"], "x".repeat(1000));
    assert_eq!(ran["stderr"], "end");
    assert_eq!((&ran["stdout_truncated"], &ran["stderr_truncated"]), (&json!(true), &json!(false)));
    assert_eq!(ran["exit_code"], 5);
    // A command that is cut off says so too.
    let cmd = "head -c 2000 /dev/zero; sleep 300";
    let cut = server.post("/exec", &json!({"sandbox_id": id, "cmd": cmd, "timeout_ms": 6000}));
    assert_eq!((&cut.body["stdout_truncated"], &cut.body["stderr_truncated"]), (&json!(true), &json!(false)));
    cut.error(504, "exec_timeout");
}

#[test]
fn binary_output_comes_back_exactly_as_base64() {
    let _host = Host::enter();
    let server = Server::start();
    let id = server.create();
    let all_bytes = "python3 -c 'import sys; sys.stdout.buffer.write(bytes(range(256)) * 64)'";
    let ran = server.post("/exec", &json!({"sandbox_id": id, "cmd": all_bytes, "encoding": "base64"})).ok();
    let bytes = BASE64_STANDARD.decode(ran["stdout"].as_str().expect("stdout")).expect("base64");
    let expected: Vec<u8> = (0..=255).cycle().take(256 * 64).collect();
    assert_eq!(bytes, expected);
    // As text, what is not UTF-8 is replaced, not lost.
    let ran = server.sh(&id, "printf 'a\\377b'");
    assert_eq!(ran["stdout"], "a\u{fffd}b");
}

#[test]
fn a_timeout_kills_the_process_group_and_keeps_the_output() {
    let _host = Host::enter();
    let server = Server::start();
    let id = server.create();
    let cmd = "echo before; echo warn >&2; sleep 300 & sleep 301; echo after";
    let answer = server.post("/exec", &json!({"sandbox_id": id, "cmd": cmd, "timeout_ms": 6000}));
    assert_eq!((&answer.body["stdout"], &answer.body["stderr"]), (&json!("before\n"), &json!("warn\n")));
    let message = answer.error(504, "exec_timeout");
    assert!(message.contains("6000 ms"), "{message}");
    assert_eq!(server.stdout(&id, "pgrep -x sleep | wc -l"), "0");
}

#[test]
fn a_late_reply_never_answers_another_command_and_no_command_runs_twice() {
    let _host = Host::enter();
    // The original's agent call time-out cut the wait, after which every answer was one behind.
    let server = Server::with(&[("MANTA_AGENT_CALL_TIMEOUT", "5s")]);
    let id = server.create();
    let cmd = "echo ran >> /tmp/ran; sleep 12; echo late";
    server
        .post("/exec", &json!({"sandbox_id": id, "cmd": cmd, "timeout_ms": 6000}))
        .error(504, "exec_timeout");
    // A client that hangs up: its command is killed, not repeated.
    drop(server.begin("/exec", &json!({"sandbox_id": id, "cmd": "echo hung-up >> /tmp/ran; sleep 300"})));
    for round in 0..5 {
        assert_eq!(server.stdout(&id, &format!("echo {round}")), round.to_string());
    }
    assert_eq!(server.stdout(&id, "grep -c '^ran$' /tmp/ran"), "1");
    crate::harness::eventually("the hung-up command is killed", scaled(20), || {
        server.stdout(&id, "pgrep -x sleep | wc -l") == "0"
    });
    assert!(server.stdout(&id, "grep -c hung-up /tmp/ran || true").parse::<u32>().expect("a count") <= 1);
}

#[test]
fn eight_commands_run_at_once_in_one_sandbox() {
    let _host = Host::enter();
    let server = Server::start();
    let id = server.create();
    // Each waits until all eight are there: one after the other they would never end.
    let cmd = |n: usize| {
        format!(
            "mkdir -p /tmp/meet; touch /tmp/meet/{n}; until [ $(ls /tmp/meet | wc -l) -ge 8 ]; do sleep 0.1; done; echo {n}"
        )
    };
    std::thread::scope(|scope| {
        let runs: Vec<_> = (0..8)
            .map(|n| {
                (
                    n,
                    scope.spawn({
                        let (server, id) = (&server, &id);
                        move || server.stdout(id, &cmd(n))
                    }),
                )
            })
            .collect();
        for (n, run) in runs {
            assert_eq!(run.join().expect("a command"), n.to_string());
        }
    });
}

#[test]
fn a_program_that_cannot_be_started_is_a_normal_answer() {
    let _host = Host::enter();
    let server = Server::start();
    let id = server.create();
    let run = |argv: Value| server.post("/exec", &json!({"sandbox_id": id, "argv": argv})).ok();
    let missing = run(json!(["no-such-program"]));
    assert_eq!(missing["exit_code"], 127);
    assert!(missing["stderr"].as_str().expect("stderr").contains("no-such-program"), "{missing}");
    let directory = run(json!(["/etc"]));
    assert_eq!(directory["exit_code"], 126);
    assert!(!directory["stderr"].as_str().expect("stderr").is_empty());
    let cwd = server.post("/exec", &json!({"sandbox_id": id, "argv": ["true"], "cwd": "/no/such"})).ok();
    assert_eq!(cwd["exit_code"], 126);
    assert!(cwd["stderr"].as_str().expect("stderr").contains("/no/such"), "{cwd}");
    assert_eq!(server.sh(&id, "no-such-program")["exit_code"], 127);
}

#[test]
fn a_background_process_does_not_hold_up_the_answer_and_lives_on() {
    let _host = Host::enter();
    let server = Server::start();
    let id = server.create();
    let began = Instant::now();
    // It keeps the pipes open, and writes into them after the answer.
    let cmd = "(sleep 2; echo late; echo done > /tmp/done; sleep 300) & echo started";
    assert_eq!(server.stdout(&id, cmd), "started");
    assert!(began.elapsed() < scaled(60));
    crate::harness::eventually("the background process goes on", scaled(30), || {
        server.sh(&id, "cat /tmp/done")["stdout"] == "done\n"
    });
    assert_eq!(server.stdout(&id, "pgrep -x sleep | wc -l"), "1");
}
