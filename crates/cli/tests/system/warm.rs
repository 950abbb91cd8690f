//! Sandboxes that wait, restored and exercised, to be claimed.

use std::collections::BTreeSet;
use std::fs;

use serde_json::Value;

use crate::harness::{Host, Server, at_once, entries, eventually, kill, on_firecracker, scaled};

const POOL: [(&str, &str); 2] = [("MANTA_WARM_POOL_SIZE", "2"), ("MANTA_MAX_SANDBOXES", "8")];

fn pool(server: &Server) -> Value {
    server.get("/healthz")["pools"]["warm"].clone()
}

fn depth(server: &Server, wanted: u64) {
    eventually(&format!("{wanted} sandboxes wait"), scaled(40), || pool(server)["depth"] == wanted);
}

/// What a create or a restore found in the pool, and what it made.
fn begun(server: &Server, path: &str, body: &str) -> (String, String) {
    let answer = server.raw("POST", path, "content-type: application/json\r\n", body.as_bytes());
    let timing = answer.header("server-timing").expect("a Server-Timing header").to_owned();
    let found =
        ["hit", "prepared", "miss"].into_iter().find(|word| timing.contains(&format!("desc=\"{word}\"")));
    let id = answer.ok()["sandbox_id"].as_str().expect("an id").to_owned();
    (found.unwrap_or_else(|| panic!("no pool in {timing:?}")).to_owned(), id)
}

fn create(server: &Server) -> (String, String) {
    begun(server, "/create", "")
}

/// Ticks of processor time that these processes used so far.
fn ticks(pids: &[u32]) -> u64 {
    let used = |pid: &u32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("a living VMM");
        let fields: Vec<_> = stat.rsplit_once(')').expect("a name").1.split_whitespace().collect();
        [fields[11], fields[12]].map(|ticks| ticks.parse::<u64>().expect("ticks")).iter().sum::<u64>()
    };
    pids.iter().map(used).sum()
}

/// VMMs of sandboxes that wait and were restored from this snapshot: its memory is their descriptor 15.
fn waiting_of(server: &Server, snapshot: &str) -> Vec<u32> {
    let listed = server.get("/sandboxes")["sandboxes"].as_array().expect("a list").clone();
    let claimed: Vec<_> = listed.iter().filter_map(|info| info["pid"].as_u64()).collect();
    let dir = server.snapshot_dir(snapshot);
    let is_of =
        |pid: &u32| fs::read_link(format!("/proc/{pid}/fd/15")).is_ok_and(|file| file.starts_with(&dir));
    server.vmms().into_iter().filter(|pid| !claimed.contains(&u64::from(*pid)) && is_of(pid)).collect()
}

#[test]
fn a_sandbox_that_waited_is_as_any_other_and_another_takes_its_place() {
    let host = Host::enter();
    let links = host.links();
    let mut server = Server::with(&POOL);
    depth(&server, 2);
    assert_eq!(
        server.get("/sandboxes")["sandboxes"].as_array().map(Vec::len),
        Some(0),
        "they are no sandboxes"
    );
    let who = "hostname; head -c 16 /dev/urandom | od -An -tx1; cat /etc/machine-id /proc/sys/kernel/random/boot_id";
    let mut seen = BTreeSet::new();
    for _ in 0..4 {
        depth(&server, 2);
        let (found, id) = create(&server);
        assert_eq!(found, "hit");
        let now = || {
            std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("a time").as_secs_f64()
        };
        let before = now();
        let clock: f64 = server.stdout(&id, "date +%s.%N").parse().expect("a time");
        let slack = scaled(1).as_secs_f64() / 10.0;
        assert!((before - slack..=now() + slack).contains(&clock), "{clock} is not {before}");
        let lines = server.stdout(&id, who);
        assert_eq!(lines.lines().next(), Some(id.as_str()));
        assert!(lines.lines().all(|line| seen.insert(line.to_owned())), "not all of its own: {lines}");
        assert_eq!(server.stdout(&id, "cat /root/.used 2>/dev/null; echo used > /root/.used; sync"), "");
    }
    let status = pool(&server);
    assert_eq!((&status["hits"], &status["misses"]), (&4.into(), &0.into()));
    depth(&server, 2);
    server.stop();
    assert_eq!(server.vmms(), [0u32; 0]);
    assert_eq!(server.sandbox_dirs(), 0);
    assert_eq!(host.links(), links);
    assert_eq!(host.ruleset().trim(), "");
}

#[test]
fn those_that_wait_use_no_processor() {
    let _host = Host::enter();
    let server = Server::with(&POOL);
    depth(&server, 2);
    let waiting = server.vmms();
    let before = ticks(&waiting);
    let (_, id) = create(&server);
    let rest: Vec<u32> = {
        let taken = server.vmm_of(&id);
        waiting.iter().copied().filter(|pid| *pid != taken).collect()
    };
    assert_eq!(rest.len(), 1);
    let one = ticks(&rest);
    assert!(one <= before);
    // Time passes for those who run.
    server.stdout(&id, "sleep 3");
    assert!(ticks(&rest) - one <= 2, "{} ticks in three seconds", ticks(&rest) - one);
}

#[test]
fn one_that_died_while_it_waited_is_not_handed_out() {
    let _host = Host::enter();
    let server = Server::with(&POOL);
    depth(&server, 2);
    let dead = server.vmms();
    dead.iter().for_each(|&pid| kill(pid));
    for _ in 0..2 {
        let (_, id) = create(&server);
        assert!(!dead.contains(&server.vmm_of(&id)));
        assert_eq!(server.stdout(&id, "echo alive"), "alive");
    }
    depth(&server, 2);
    assert!(server.vmms().iter().all(|pid| !dead.contains(pid)));
    eventually("what is left of the dead is removed", scaled(20), || server.sandbox_dirs() == 4);
}

#[test]
fn a_template_that_cannot_be_restored_is_not_tried_all_the_time() {
    let _host = Host::enter();
    let server = Server::with(&POOL);
    depth(&server, 2);
    let [golden] = &entries(&server.golden_dir())[..] else { panic!("not one golden snapshot") };
    let state = server.golden_dir().join(golden).join("state");
    fs::remove_file(&state).expect("remove a file of the golden snapshot");
    let hits = [create(&server), create(&server)];
    assert!(
        hits.iter().all(|(found, _)| found == "hit"),
        "those that waited are as good as before: {hits:?}"
    );
    let complaints = || server.log().matches("cannot make a sandbox ahead of time").count();
    eventually("it is tried again", scaled(30), || complaints() >= 3);
    // After 1 and 2 s: a fourth comes 4 s later.
    assert!(complaints() <= 4, "{} complaints", complaints());
    // Who asks meanwhile gets one that was booted.
    let (_, id) = create(&server);
    assert_eq!(server.stdout(&id, "echo booted"), "booted");
    let health = server.get("/healthz");
    assert_eq!(health["status"], "degraded");
    assert_eq!(health["pools"]["warm"]["depth"], 0);
}

#[test]
fn a_snapshot_that_is_restored_often_waits_too_until_it_is_deleted() {
    let _host = Host::enter();
    let server = Server::with(&[("MANTA_WARM_POOL_SIZE", "4"), ("MANTA_MAX_SANDBOXES", "16")]);
    let source = server.create();
    server.stdout(&source, "echo kept > /root/kept");
    let snapshot = server.snapshot(&source);
    let body = format!("{{\"snapshot_id\": \"{snapshot}\"}}");
    let restore = || begun(&server, "/snapshot/restore", &body);
    let first: Vec<_> = (0..3).map(|_| restore()).collect();
    assert!(first.iter().all(|(found, _)| found != "hit"), "once or twice is not often: {first:?}");
    eventually("it is restored ahead of time", scaled(60), || {
        let (found, id) = restore();
        assert_eq!(server.stdout(&id, "cat /root/kept; hostname"), format!("kept\n{id}"));
        server.destroy(&id).ok();
        found == "hit"
    });
    depth(&server, 4);
    let waiting = waiting_of(&server, &snapshot);
    // On Firecracker the pool may take so long to be full that no restore has been asked for of late.
    assert!(on_firecracker() || !waiting.is_empty());
    server.delete_snapshot(&snapshot).ok();
    eventually("none of it waits any more", scaled(40), || {
        let vmms = server.vmms();
        !waiting.iter().any(|pid| vmms.contains(pid))
    });
    // New sandboxes in their place.
    depth(&server, 4);
    server.try_restore(&snapshot).error(404, "snapshot_not_found");
    let ids: Vec<_> = (0..4).map(|_| create(&server)).collect();
    assert!(ids.iter().all(|(found, _)| found == "hit"), "{ids:?}");
    assert_eq!(server.stdout(&ids[3].1, "ls /root/kept 2>/dev/null | wc -l"), "0");
}

#[test]
fn those_that_wait_make_room_where_the_host_is_full() {
    let _host = Host::enter();
    let server = Server::with(&[("MANTA_WARM_POOL_SIZE", "2"), ("MANTA_MAX_SANDBOXES", "3")]);
    depth(&server, 2);
    let mut ids: Vec<_> = (0..3).map(|_| create(&server).1).collect();
    server.raw("POST", "/create", "", b"").error(503, "host_full");
    eventually("nobody waits in a full host", scaled(20), || server.vmms().len() == 3);
    server.destroy(&ids.pop().expect("three")).ok();
    eventually("one has room to wait again", scaled(40), || pool(&server)["depth"] == 1);
    assert_eq!(create(&server).0, "hit");
}

#[test]
fn who_waits_too_long_for_a_turn_is_told_when_to_come_back() {
    let _host = Host::enter();
    let server = Server::with(&[("MANTA_START_WIDTH", "1"), ("MANTA_QUEUE_TIMEOUT", "1ms")]);
    let answers = at_once(4, 4, |_| server.raw("POST", "/create", "", b""));
    let (made, refused): (Vec<_>, Vec<_>) = answers.into_iter().partition(|answer| answer.status == 200);
    assert!(!made.is_empty() && !refused.is_empty(), "{made:?} {refused:?}");
    for answer in refused {
        assert!(answer.header("retry-after").is_some_and(|after| after.parse::<u32>().is_ok()), "{answer:?}");
        answer.error(503, "overloaded");
    }
    drop(server);
    let patient = Server::with(&[("MANTA_START_WIDTH", "1")]);
    at_once(4, 4, |_| patient.create());
}

#[test]
fn sigterm_during_a_burst_answers_everybody_and_leaves_nothing() {
    let host = Host::enter();
    let links = host.links();
    let mut server = Server::with(&[("MANTA_WARM_POOL_SIZE", "3"), ("MANTA_MAX_SANDBOXES", "16")]);
    depth(&server, 3);
    std::thread::scope(|scope| {
        let creating: Vec<_> =
            (0..12).map(|_| scope.spawn(|| server.raw("POST", "/create", "", b""))).collect();
        eventually("some are made", scaled(20), || pool(&server)["hits"].as_u64() >= Some(2));
        server.signal(rustix::process::Signal::TERM);
        for created in creating {
            let answer = created.join().expect("an answer");
            if answer.status != 200 {
                answer.error(503, "shutting_down");
            }
        }
    });
    assert!(server.wait(scaled(40)).success(), "{}", server.log());
    assert_eq!(server.vmms(), [0u32; 0]);
    assert_eq!(host.links(), links);
    assert_eq!(host.ruleset().trim(), "");
    assert_eq!(server.sandbox_dirs(), 0);
}

#[test]
fn those_that_waited_for_a_killed_server_are_swept_by_the_next() {
    let _host = Host::enter();
    let server = Server::with(&POOL);
    depth(&server, 2);
    let before = server.vmms();
    let next = Server::in_dir(server.kill(), &POOL);
    depth(&next, 2);
    assert!(next.vmms().iter().all(|pid| !before.contains(pid)));
    assert_eq!(create(&next).0, "hit");
}

#[test]
fn those_that_waited_long_enough_are_replaced() {
    let _host = Host::enter();
    let server = Server::with(&[("MANTA_WARM_POOL_SIZE", "2"), ("MANTA_WARM_MAX_AGE", "5s")]);
    depth(&server, 2);
    let first: BTreeSet<_> = server.vmms().into_iter().collect();
    eventually("all are new", scaled(60), || server.vmms().iter().all(|pid| !first.contains(pid)));
    assert_eq!(create(&server).0, "hit");
}
