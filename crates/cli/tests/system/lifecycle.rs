//! From create to destroy, and what is left afterwards: nothing.

use std::time::Instant;

use serde_json::json;

use crate::harness::{Host, Server, eventually, scaled};

#[test]
fn eight_sandboxes_are_created_at_once_from_a_pool_of_two() {
    let _host = Host::enter();
    // The original handed out addresses twice once its pool was empty.
    let server = Server::with(&[("MANTA_NETNS_POOL_SIZE", "2"), ("MANTA_AGENT_WAIT_TIMEOUT", "300s")]);
    let ids: Vec<String> = std::thread::scope(|scope| {
        let creating: Vec<_> = (0..8).map(|_| scope.spawn(|| server.create())).collect();
        creating.into_iter().map(|created| created.join().expect("a sandbox")).collect()
    });
    let mut addresses: Vec<_> =
        ids.iter().map(|id| server.info(id).expect("listed")["host_address"].to_string()).collect();
    addresses.sort();
    addresses.dedup();
    assert_eq!(addresses.len(), 8);
    for (n, id) in ids.iter().enumerate() {
        assert_eq!(
            server.stdout(id, &format!("echo {n} > /tmp/n; cat /tmp/n; hostname")),
            format!("{n}\n{id}")
        );
    }
    std::thread::scope(|scope| {
        ids.iter().for_each(|id| drop(scope.spawn(|| server.destroy(id).ok())));
    });
    assert_eq!(server.vmms(), [0u32; 0]);
    assert_eq!(server.sandbox_dirs(), 0);
}

#[test]
fn destroying_twice_is_fine_and_a_destroyed_sandbox_takes_no_commands() {
    let _host = Host::enter();
    let server = Server::start();
    let id = server.create();
    assert_eq!(server.destroy(&id).ok(), json!({"sandbox_id": id, "status": "destroyed"}));
    assert_eq!(server.vmms(), [0u32; 0], "the VMM outlived the answer");
    assert_eq!(server.sandbox_dirs(), 0);
    server.destroy(&id).ok();
    server.post("/exec", &json!({"sandbox_id": id, "cmd": "true"})).error(404, "sandbox_not_found");
}

#[test]
fn destroying_during_a_command_is_quick_and_the_command_says_so() {
    let _host = Host::enter();
    let server = Server::start();
    let id = server.create();
    let cmd = "echo begun; touch /tmp/begun; sleep 300; echo not reached";
    let (exec, took) = std::thread::scope(|scope| {
        let exec = scope.spawn(|| server.post("/exec", &json!({"sandbox_id": id, "cmd": cmd})));
        eventually("the command runs", scaled(30), || server.sh(&id, "test -e /tmp/begun")["exit_code"] == 0);
        let began = Instant::now();
        server.destroy(&id).ok();
        (exec.join().expect("an answer"), began.elapsed())
    });
    // The original took 7 s instead of its drain of 2 s, and the command answered 200 and nothing.
    assert!(took < scaled(5), "the destroy took {took:?}");
    assert_eq!(exec.body["stdout"], "begun\n");
    exec.error(409, "sandbox_destroyed");
}

#[test]
fn a_command_that_ends_within_the_drain_answers_normally() {
    let _host = Host::enter();
    let server = Server::with(&[("MANTA_DESTROY_DRAIN", "60s")]);
    let id = server.create();
    let cmd = "touch /tmp/begun; n=0; while [ $((n += 1)) -lt 30 ]; do sleep 0.1; done; echo drained";
    std::thread::scope(|scope| {
        let exec = scope.spawn(|| server.post("/exec", &json!({"sandbox_id": id, "cmd": cmd})));
        eventually("the command runs", scaled(30), || server.sh(&id, "test -e /tmp/begun")["exit_code"] == 0);
        let destroy = scope.spawn(|| server.destroy(&id));
        eventually("the destroy began", scaled(10), || {
            server.info(&id).is_none_or(|info| info["state"] == "stopping")
        });
        let refused = server.post("/exec", &json!({"sandbox_id": id, "cmd": "true"}));
        assert!([404, 409].contains(&refused.status), "a stopping sandbox took a command: {refused:?}");
        assert_eq!(exec.join().expect("an answer").ok()["stdout"], "drained\n");
        destroy.join().expect("an answer").ok();
    });
}

#[test]
fn a_sandbox_being_created_takes_no_commands_and_can_be_destroyed_at_once() {
    let _host = Host::enter();
    // Boots, so that there is time to see it.
    let server = Server::with(&[("MANTA_ENABLE_SNAPSHOTS", "0")]);
    std::thread::scope(|scope| {
        let creating = scope.spawn(|| server.raw("POST", "/create", "", b""));
        let listed = || server.get("/sandboxes")["sandboxes"][0].clone();
        eventually("the sandbox is listed", scaled(20), || !server.vmms().is_empty());
        let info = listed();
        assert_eq!(info["state"], "creating");
        let id = info["id"].as_str().expect("an id");
        server.post("/exec", &json!({"sandbox_id": id, "cmd": "true"})).error(409, "sandbox_not_running");
        server.destroy(id).ok();
        creating.join().expect("an answer").error(409, "sandbox_not_running");
    });
    assert_eq!(server.vmms(), [0u32; 0]);
    assert_eq!(server.sandbox_dirs(), 0);
}

#[test]
fn sigterm_while_sandboxes_are_being_created_answers_everybody_and_leaves_nothing() {
    let host = Host::enter();
    let links = host.links();
    let mut server = Server::with(&[("MANTA_NETNS_POOL_SIZE", "0"), ("MANTA_ENABLE_SNAPSHOTS", "0")]);
    std::thread::scope(|scope| {
        let creating: Vec<_> =
            (0..4).map(|_| scope.spawn(|| server.raw("POST", "/create", "", b""))).collect();
        eventually("a VMM starts", scaled(20), || !server.vmms().is_empty());
        server.signal(rustix::process::Signal::TERM);
        for created in creating {
            created.join().expect("an answer").error(503, "shutting_down");
        }
    });
    assert!(server.wait(scaled(40)).success(), "{}", server.log());
    assert_eq!(server.vmms(), [0u32; 0]);
    assert_eq!(host.links(), links);
    assert_eq!(host.ruleset().trim(), "");
    assert_eq!(server.sandbox_dirs(), 0);
}

#[test]
fn sigterm_with_sandboxes_alive_leaves_nothing() {
    let host = Host::enter();
    let (links, forwarding) = (host.links(), host.forwarding());
    let mut server = Server::start();
    let ids = [server.create(), server.create(), server.create()];
    assert_eq!(server.vmms().len(), 3);
    assert!(host.links().len() > links.len(), "there should be links to remove");
    assert!(host.ruleset().contains("table inet manta"));
    std::thread::scope(|scope| {
        let running =
            scope.spawn(|| server.post("/exec", &json!({"sandbox_id": ids[0], "cmd": "sleep 300"})));
        eventually("the command runs", scaled(30), || server.sh(&ids[0], "pgrep -x sleep")["exit_code"] == 0);
        server.signal(rustix::process::Signal::TERM);
        let cut = running.join().expect("an answer");
        assert!([409, 502].contains(&cut.status), "{cut:?}");
    });
    assert!(server.wait(scaled(40)).success(), "{}", server.log());
    assert_eq!(server.vmms(), [0u32; 0]);
    assert_eq!(host.links(), links);
    assert_eq!(host.ruleset().trim(), "");
    assert_eq!(host.forwarding(), forwarding);
    assert_eq!(server.sandbox_dirs(), 0);
}

#[test]
fn creating_and_destroying_does_not_grow_the_server() {
    let host = Host::enter();
    let server = Server::with(&[("MANTA_NETNS_POOL_SIZE", "0")]);
    let round = || {
        let id = server.create();
        server.stdout(&id, "true");
        server.destroy(&id).ok();
    };
    round();
    host.await_no_slots();
    let (descriptors, links, rules) = (server.descriptors(), host.links(), host.ruleset());
    (0..3).for_each(|_| round());
    host.await_no_slots();
    assert_eq!((host.links(), host.ruleset()), (links, rules));
    eventually("no more descriptors than before", scaled(20), || server.descriptors() <= descriptors);
}

#[test]
fn only_one_server_runs_in_a_network_namespace() {
    let _host = Host::enter();
    let server = Server::start();
    let log = Server::try_with(&[]).err().expect("a second server must not start");
    assert!(log.contains("another manta server"), "{log}");
    let id = server.create();
    assert_eq!(server.stdout(&id, "echo undisturbed"), "undisturbed");
}
