//! VMMs that wait, started ahead of time, for the golden snapshot.

use std::time::Instant;

use rustix::process::Signal;

use crate::harness::{Host, Server, eventually, kill, scaled, signal};

const POOL: [(&str, &str); 1] = [("MANTA_VMM_POOL_SIZE", "2")];

fn waiting(server: &Server) -> Vec<u32> {
    eventually("two VMMs wait", scaled(20), || server.vmms().len() == 2);
    server.vmms()
}

#[test]
fn a_sandbox_is_made_of_a_vmm_that_waited_and_another_takes_its_place() {
    let host = Host::enter();
    let links = host.links();
    let mut server = Server::with(&POOL);
    let waiting = waiting(&server);
    assert_eq!(
        server.get("/sandboxes")["sandboxes"].as_array().map(Vec::len),
        Some(0),
        "they are no sandboxes"
    );
    let id = server.create();
    assert!(waiting.contains(&server.vmm_of(&id)), "it waited for nothing");
    assert_eq!(server.stdout(&id, "hostname"), id);
    eventually("another takes its place", scaled(20), || server.vmms().len() == 3);
    server.destroy(&id).ok();
    assert_eq!(server.vmms().len(), 2);
    server.stop();
    assert_eq!(server.vmms(), [0u32; 0]);
    assert_eq!(server.sandbox_dirs(), 0);
    assert_eq!(host.links(), links);
}

#[test]
fn a_vmm_that_died_while_it_waited_is_not_handed_out() {
    let _host = Host::enter();
    let server = Server::with(&POOL);
    let dead = waiting(&server);
    dead.iter().for_each(|&pid| kill(pid));
    let ids = [server.create(), server.create()];
    for id in &ids {
        assert!(!dead.contains(&server.vmm_of(id)));
        assert_eq!(server.stdout(id, "echo alive"), "alive");
    }
    eventually("what is left of the dead is removed", scaled(20), || server.sandbox_dirs() == 4);
}

#[test]
fn a_guest_that_is_silent_after_its_restore_is_replaced_by_another_in_time() {
    let _host = Host::enter();
    let limit = scaled(8);
    let limit_text = format!("{}s", limit.as_secs());
    let server = Server::with(&[("MANTA_VMM_POOL_SIZE", "1"), ("MANTA_AGENT_WAIT_TIMEOUT", &limit_text)]);
    eventually("a VMM waits", scaled(20), || server.get("/healthz")["pools"]["vmms"]["depth"] == 1);
    let silent = server.vmms()[0];
    signal(silent, Signal::STOP);
    let began = Instant::now();
    let id = server.create();
    assert!(began.elapsed() < limit, "it took {:?}", began.elapsed());
    assert_ne!(server.vmm_of(&id), silent);
    assert_eq!(server.stdout(&id, "echo alive"), "alive");
    assert!(!server.vmms().contains(&silent), "it is still there");
}

#[test]
fn vmms_that_waited_for_a_killed_server_are_swept_by_the_next() {
    let _host = Host::enter();
    let server = Server::with(&POOL);
    let before = waiting(&server);
    let next = Server::in_dir(server.kill(), &POOL);
    let after = waiting(&next);
    assert!(after.iter().all(|pid| !before.contains(pid)));
    let id = next.create();
    assert_eq!(next.stdout(&id, "echo works"), "works");
}

#[test]
fn restores_of_users_snapshots_leave_them_alone() {
    let _host = Host::enter();
    let server = Server::with(&POOL);
    let source = server.create();
    let waiting = {
        eventually("two wait again", scaled(20), || server.vmms().len() == 3);
        server.vmms()
    };
    let snapshot = server.snapshot(&source);
    let clone = server.restore(&snapshot);
    assert_eq!(server.stdout(&clone, "echo restored"), "restored");
    assert!(waiting.iter().all(|pid| server.vmms().contains(pid)), "{waiting:?} {:?}", server.vmms());
}
