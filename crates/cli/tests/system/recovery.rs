//! What becomes of sandboxes whose server is killed: the next one takes them back, or removes all of them.

use std::time::Instant;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::harness::{Host, INTERNET, Server, at_once, eventually, kill, scaled, signal};

fn kinds(server: &Server, query: &str) -> Vec<String> {
    let answer = server.raw("GET", &format!("/events?{query}"), "", b"");
    let events = answer.text.lines().filter(|line| line.starts_with('{'));
    let events = events.map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    events.map(|event| event["event"].as_str().expect("a kind").to_owned()).collect()
}

#[test]
fn a_sandbox_outlives_its_server_with_all_it_is() {
    let host = Host::enter();
    let links = host.links();
    let server = Server::start();
    let id = server.post("/create", &json!({"timeout_s": 3000})).ok()["sandbox_id"]
        .as_str()
        .expect("an id")
        .to_owned();
    let saved = server.create();
    let snapshot = server.snapshot(&saved);
    let restored = server.restore(&snapshot);
    server.destroy(&saved).ok();
    server.delete_snapshot(&snapshot).ok();
    let who = "cat /etc/machine-id /proc/sys/kernel/random/boot_id; hostname";
    server.stdout(&id, "echo kept > /root/kept; echo memory > /dev/shm/kept");
    server.stdout(&id, "nohup sh -c 'while sleep 0.1; do echo x >> /tmp/ticks; done' > /dev/null 2>&1 &");
    let (was, info) = (server.stdout(&id, who), server.info(&id).expect("listed"));
    let others = server.info(&restored).expect("listed");

    let mut next = Server::in_dir(server.kill(), &[]);
    assert_eq!(next.info(&id), Some(info));
    assert_eq!(next.info(&restored), Some(others));
    assert_eq!(next.stdout(&id, who), was, "it is another now");
    assert_eq!(next.stdout(&id, "cat /root/kept /dev/shm/kept"), "kept\nmemory");
    let ticks = || next.stdout(&id, "wc -l < /tmp/ticks").parse::<u32>().expect("a number");
    let before = ticks();
    eventually("what was started in it goes on", scaled(20), || ticks() > before);
    assert_eq!(next.stdout(&restored, "echo fine"), "fine");
    let url = host.url(INTERNET);
    assert_eq!(next.stdout(&id, &format!("curl -s -m 20 {url}")), "internet");
    let message =
        next.post("/exec", &json!({"sandbox_id": saved, "cmd": "true"})).error(404, "sandbox_not_found");
    assert!(message.contains("by request"), "the one that was destroyed is remembered: {message}");
    assert!(kinds(&next, &format!("sandbox_id={id}")).iter().any(|kind| kind == "adopted"));

    // It can all that it could.
    let extended = next.post(&format!("/sandboxes/{id}/extend"), &json!({"timeout_s": 2000})).ok();
    let copy = next.restore(&next.snapshot(&id));
    assert_eq!(next.stdout(&copy, "cat /root/kept /dev/shm/kept; hostname"), format!("kept\nmemory\n{copy}"));
    // Also a second time; and what was changed last counts.
    next = Server::in_dir(next.kill(), &[]);
    assert_eq!(next.info(&id), Some(extended));
    assert_eq!(next.stdout(&id, "cat /root/kept"), "kept");
    assert_eq!(next.stdout(&copy, "cat /root/kept"), "kept");
    next.destroy(&id).ok();
    // Beside them, for a while, that of the golden snapshot's trial.
    eventually("only the other two are left", scaled(20), || next.vmms().len() == 2);
    next.stop();
    assert_eq!(next.vmms(), [0u32; 0]);
    assert_eq!(next.sandbox_dirs(), 0);
    assert_eq!(host.links(), links);
    assert_eq!(host.ruleset().trim(), "");
}

#[test]
fn what_cannot_or_must_not_live_on_is_removed_and_it_is_told_why() {
    let host = Host::enter();
    let server = Server::with(&[("MANTA_NETNS_POOL_SIZE", "0")]);
    let [dying, rebooting, living] = [(); 3].map(|()| server.create());
    let (doomed, silent) = (server.vmm_of(&dying), server.vmm_of(&rebooting));
    // The last, so that it does not expire under this server.
    let expiring = server.post("/create", &json!({"timeout_s": 2})).ok();
    let expiring = expiring["sandbox_id"].as_str().expect("an id").to_owned();
    let created = Instant::now();
    let dir = server.kill();
    kill(doomed);
    // Stands for a guest that does not answer any more, though its VMM lives.
    signal(silent, Signal::STOP);
    eventually("one lifetime ends", scaled(10), || created.elapsed().as_secs() > 2);

    let next = Server::in_dir(dir, &[("MANTA_NETNS_POOL_SIZE", "0")]);
    assert_eq!(next.stdout(&living, "echo lives"), "lives");
    for (id, why) in [(&expiring, "expired"), (&dying, "ended"), (&rebooting, "killed")] {
        eventually("it is removed", scaled(30), || {
            kinds(&next, &format!("sandbox_id={id}")).last().is_some_and(|last| last == "swept")
        });
        let message = next.raw("GET", &format!("/sandboxes/{id}"), "", b"").error(404, "sandbox_not_found");
        assert!(message.contains(why), "{message}");
    }
    // The golden snapshot's trial comes and goes meanwhile.
    eventually("only the living one is there", scaled(30), || {
        next.vmms() == [next.vmm_of(&living)] && next.sandbox_dirs() == 1
    });
    next.destroy(&living).ok();
    host.await_no_slots();
}

#[test]
fn one_that_answers_late_is_waited_for_by_who_wants_it_and_nobody_else() {
    let _host = Host::enter();
    let server = Server::start();
    let [slow, quick] = [(); 2].map(|()| server.create());
    let (vmm, info) = (server.vmm_of(&slow), server.info(&slow));
    let dir = server.kill();
    signal(vmm, Signal::STOP);
    let next = Server::in_dir(dir, &[]);
    assert_eq!(next.stdout(&quick, "echo here"), "here");
    assert_eq!(next.info(&slow), info, "it is listed all the time");
    std::thread::scope(|scope| {
        let answer = scope.spawn(|| next.stdout(&slow, "echo late"));
        assert_eq!(next.stdout(&quick, "echo still here"), "still here");
        assert!(!answer.is_finished(), "it was not waited for");
        signal(vmm, Signal::CONT);
        assert_eq!(answer.join().expect("an answer"), "late");
    });
}

#[test]
fn more_sandboxes_than_the_settings_allow_now_live_on_and_no_more_are_made() {
    let _host = Host::enter();
    let server = Server::start();
    let ids = at_once(2, 4, |_| server.create());
    let next = Server::in_dir(server.kill(), &[("MANTA_MAX_SANDBOXES", "3")]);
    for id in &ids {
        assert_eq!(next.stdout(id, "hostname"), *id);
    }
    next.raw("POST", "/create", "", b"").error(503, "host_full");
    next.destroy(&ids[0]).ok();
    next.raw("POST", "/create", "", b"").error(503, "host_full");
    next.destroy(&ids[1]).ok();
    let fresh = next.create();
    assert_eq!(next.stdout(&fresh, "echo works"), "works");
}

#[test]
fn a_server_for_another_vmm_or_without_artifacts_does_not_cost_a_sandbox() {
    let _host = Host::enter();
    let server = Server::start();
    let id = server.create();
    let dir = server.kill();
    let work = dir.path().join("work");
    let work = work.to_str().expect("UTF-8");
    let log = Server::try_with(&[("MANTA_WORK_DIR", work), ("MANTA_KERNEL_PATH", "/no/such/file")]);
    assert!(log.err().expect("it must not start").contains("/no/such/file"));
    let next = Server::in_dir(dir, &[]);
    assert_eq!(next.stdout(&id, "hostname"), id);
}

#[test]
fn a_journal_that_cannot_be_written_stops_what_is_new_and_nothing_else() {
    let _host = Host::enter();
    let server = Server::with(&[("MANTA_WARM_POOL_SIZE", "1")]);
    let (kept, gone) = (server.create(), server.create());
    // Whoever holds SQLite's lock keeps the server from writing.
    let journal = rusqlite::Connection::open(server.work_dir.join("journal.db")).expect("open the journal");
    journal.execute_batch("BEGIN IMMEDIATE").expect("lock it");
    let refused = server.raw("POST", "/create", "", b"");
    assert_eq!(refused.header("retry-after"), Some("1"));
    refused.error(503, "journal_unwritable");
    let health = server.get("/healthz");
    assert_eq!(health["status"], "degraded");
    assert!(health["degraded"].to_string().contains("journal"), "{health:#}");
    server.post("/snapshot/create", &json!({"sandbox_id": kept})).error(503, "journal_unwritable");
    assert_eq!(server.stdout(&kept, "echo runs"), "runs");
    server.destroy(&gone).ok();

    journal.execute_batch("ROLLBACK").expect("let go of it");
    eventually("it recovers by itself", scaled(20), || server.get("/healthz")["status"] == "ok");
    let fresh = server.create();
    let next = Server::in_dir(server.kill(), &[]);
    assert_eq!(next.stdout(&fresh, "echo here"), "here");
    let message = next.raw("GET", &format!("/sandboxes/{gone}"), "", b"").error(404, "sandbox_not_found");
    assert!(message.contains("by request"), "what happened meanwhile was written: {message}");
}

#[test]
fn a_journal_of_a_newer_server_or_of_nobody_is_refused_or_put_aside() {
    let _host = Host::enter();
    let server = Server::start();
    let id = server.create();
    let dir = server.kill();
    let path = dir.path().join("work/journal.db");
    let journal = rusqlite::Connection::open(&path).expect("open the journal");
    journal.pragma_update(None, "user_version", 1000).expect("write");
    drop(journal);
    let work = dir.path().join("work");
    let work = ("MANTA_WORK_DIR", work.to_str().expect("UTF-8"));
    let log = Server::try_with(&[work]).err().expect("it must not start");
    assert!(log.contains("newer manta") && log.contains("journal.db"), "{log}");
    let journal = rusqlite::Connection::open(&path).expect("open the journal");
    journal.pragma_update(None, "user_version", 2).expect("write");
    drop(journal);
    // One that says nothing, while its sandboxes live.
    let whole = std::fs::read(&path).expect("read the journal");
    std::fs::write(&path, vec![0x55; whole.len()]).expect("spoil it");
    let log = Server::try_with(&[work]).err().expect("it must not start");
    assert!(log.contains("cannot be read") && log.contains("are alive"), "{log}");
    std::fs::write(&path, whole).expect("restore it");
    let next = Server::in_dir(dir, &[]);
    assert_eq!(next.stdout(&id, "hostname"), id);
    // And when nobody lives who could be in it.
    let dir = next.end();
    let _ = std::fs::remove_file(path.with_extension("db-wal"));
    std::fs::write(&path, "this is no journal, but long enough to be one; ".repeat(100)).expect("spoil it");
    let last = Server::in_dir(dir, &[]);
    assert!(last.get("/healthz")["degraded"].to_string().contains("put aside"));
    let fresh = last.create();
    assert_eq!(last.stdout(&fresh, "echo works"), "works");
}
