//! Sandboxes that do not come up, and guests that die: the right error, in time, nothing left.

use std::time::Instant;

use serde_json::json;

use crate::harness::{Host, Server, artifact, eventually, kill, scaled};

/// Every sandbox boots; what happens when the golden snapshot cannot be made is tested elsewhere.
const BOOT: (&str, &str) = ("MANTA_ENABLE_SNAPSHOTS", "0");

fn nothing_is_left(server: &Server, host: &Host) {
    assert_eq!(server.vmms(), [0u32; 0]);
    assert_eq!(server.sandbox_dirs(), 0);
    host.await_no_slots();
}

#[test]
fn a_broken_kernel_is_told_at_once_and_leaves_nothing() {
    let host = Host::enter();
    let kernel = artifact(b"this is not a kernel");
    let path = kernel.path().to_str().expect("a path");
    let server = Server::with(&[BOOT, ("MANTA_KERNEL_PATH", path), ("MANTA_NETNS_POOL_SIZE", "0")]);
    let began = Instant::now();
    let message = server.raw("POST", "/create", "", b"").error(502, "boot_failed");
    assert!(began.elapsed() < scaled(20), "it took {:?}: {message}", began.elapsed());
    nothing_is_left(&server, &host);
}

#[test]
fn artifacts_that_are_not_there_stop_the_start() {
    let _host = Host::enter();
    for name in ["MANTA_KERNEL_PATH", "MANTA_ROOTFS_PATH", "MANTA_AGENT_PATH"] {
        let log = Server::try_with(&[(name, "/no/such/file")]).err().expect("it must not start");
        assert!(log.contains("/no/such/file") && log.contains("image build"), "{log}");
    }
}

#[test]
fn a_guest_without_a_working_agent_is_told_and_leaves_nothing() {
    let host = Host::enter();
    // A root image without a file system: the agent cannot mount it, says so and gives up.
    let rootfs = artifact(&[0; 1 << 20]);
    let path = rootfs.path().to_str().expect("a path");
    let server = Server::with(&[BOOT, ("MANTA_ROOTFS_PATH", path), ("MANTA_NETNS_POOL_SIZE", "0")]);
    let message = server.raw("POST", "/create", "", b"").error(502, "boot_failed");
    assert!(message.contains("console"), "the guest's own words are missing: {message}");
    nothing_is_left(&server, &host);
}

#[test]
fn a_guest_that_never_answers_is_given_up_in_time_and_kept_for_inspection_on_request() {
    let host = Host::enter();
    let server = Server::with(&[
        BOOT,
        ("MANTA_AGENT_WAIT_TIMEOUT", "50ms"),
        ("MANTA_NETNS_POOL_SIZE", "0"),
        ("MANTA_DEBUG_KEEP_FAILED_SANDBOX", "1"),
    ]);
    let message = server.raw("POST", "/create", "", b"").error(502, "boot_failed");
    assert!(message.contains("50 ms"), "{message}");
    assert_eq!(server.sandbox_dirs(), 1, "the directory should be kept");
    assert_eq!(server.vmms(), [0u32; 0]);
    let next = Server::in_dir(server.kill(), &[("MANTA_NETNS_POOL_SIZE", "0")]);
    nothing_is_left(&next, &host);
}

#[test]
fn a_vmm_killed_while_booting_is_told_at_once_and_leaves_nothing() {
    let host = Host::enter();
    let server = Server::with(&[BOOT, ("MANTA_NETNS_POOL_SIZE", "0")]);
    std::thread::scope(|scope| {
        let creating = scope.spawn(|| server.raw("POST", "/create", "", b""));
        eventually("the VMM starts", scaled(20), || !server.vmms().is_empty());
        kill(server.vmms()[0]);
        let began = Instant::now();
        creating.join().expect("an answer").error(502, "boot_failed");
        assert!(began.elapsed() < scaled(10), "it took {:?}", began.elapsed());
    });
    nothing_is_left(&server, &host);
}

#[test]
fn a_client_that_hangs_up_while_creating_leaves_no_sandbox() {
    let host = Host::enter();
    let server = Server::with(&[BOOT, ("MANTA_NETNS_POOL_SIZE", "0")]);
    let request = server.begin("/create", &json!({}));
    eventually("the VMM starts", scaled(20), || !server.vmms().is_empty());
    drop(request);
    eventually("the sandbox is taken apart", scaled(20), || {
        server.get("/sandboxes") == json!({"sandboxes": []})
    });
    nothing_is_left(&server, &host);
}

#[test]
fn a_guest_that_dies_fails_its_commands_and_nobody_else() {
    let host = Host::enter();
    let server = Server::with(&[("MANTA_NETNS_POOL_SIZE", "0")]);
    let (doomed, other) = (server.create(), server.create());
    let pid = server.vmm_of(&doomed);
    let cmd = "echo begun; touch /tmp/begun; sleep 300";
    let exec = std::thread::scope(|scope| {
        let exec = scope.spawn(|| server.post("/exec", &json!({"sandbox_id": doomed, "cmd": cmd})));
        eventually("the command runs", scaled(30), || {
            server.sh(&doomed, "test -e /tmp/begun")["exit_code"] == 0
        });
        kill(pid);
        exec.join().expect("an answer")
    });
    assert_eq!(exec.body["stdout"], "begun\n");
    exec.error(502, "guest_gone");
    eventually("the sandbox failed", scaled(10), || {
        server.info(&doomed).is_some_and(|info| info["state"] == "failed")
    });
    let info = server.info(&doomed).expect("listed");
    assert!(info["reason"].as_str().expect("a reason").contains("VMM"), "{info}");
    server.post("/exec", &json!({"sandbox_id": doomed, "cmd": "true"})).error(409, "sandbox_not_running");
    server.destroy(&doomed).ok();
    assert_eq!(server.stdout(&other, "echo fine"), "fine");
    server.destroy(&other).ok();
    nothing_is_left(&server, &host);
}

#[test]
fn a_guest_that_reboots_is_noticed() {
    let _host = Host::enter();
    let server = Server::start();
    let id = server.create();
    // As root in the guest one can: the agent, PID 1, is not asked.
    let reboot = "python3 -c 'import ctypes; ctypes.CDLL(None).reboot(0x01234567)'; sleep 60";
    server.post("/exec", &json!({"sandbox_id": id, "cmd": reboot})).error(502, "guest_gone");
    eventually("the sandbox failed", scaled(20), || {
        server.info(&id).is_some_and(|info| info["state"] == "failed")
    });
    assert_eq!(server.vmms(), [0u32; 0]);
}
