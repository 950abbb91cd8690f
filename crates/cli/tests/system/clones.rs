//! Clones of one snapshot: whatever must differ between them does, and nothing of one is seen in another.

use std::collections::BTreeSet;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::harness::{Host, INTERNET, Server, at_once, contents, entries, on_firecracker, scaled};

/// The first thing that runs in a clone. What it prints must be in no other, line by line.
const WHO: &str = "head -c 16 /dev/urandom | od -An -tx1 | tr -d ' \\n'; echo
python3 -c 'import os; print(os.urandom(16).hex())'
cat /proc/sys/kernel/random/uuid /proc/sys/kernel/random/boot_id /etc/machine-id
hostname";

const LINES: usize = 6;

fn now_ns() -> i128 {
    i128::try_from(SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_nanos())
        .expect("a time")
}

/// The guest's clock is within 100 ms (stretched where all is slower) of ours.
fn the_clock_is_right(server: &Server, id: &str) {
    let before = now_ns();
    let guest: i128 = server.stdout(id, "date +%s%N").parse().expect("a time");
    let after = now_ns();
    let error = i128::try_from(scaled(1).as_nanos() / 10).expect("a time");
    assert!(
        (before - error..=after + error).contains(&guest),
        "the clock of {id} is {} ms behind the question, {} ms before the answer",
        (before - guest) / 1_000_000,
        (after - guest) / 1_000_000,
    );
}

/// All that must hold for sandboxes just made of one snapshot, four at a time; gives their ids. None of them
/// prints a line of `source` about itself.
fn clones(
    host: &Host,
    server: &Server,
    count: usize,
    source: &str,
    make: impl Fn() -> String + Sync,
) -> Vec<String> {
    let who = at_once(4, count, |_| {
        let id = make();
        let who = server.stdout(&id, WHO);
        the_clock_is_right(server, &id);
        (id, who)
    });
    for line in 0..LINES {
        let all: BTreeSet<_> = who.iter().filter_map(|(_, who)| who.lines().nth(line)).collect();
        assert_eq!(all.len(), count, "line {line} of {who:#?}");
    }
    for (id, who) in &who {
        assert_eq!(who.lines().nth(LINES - 1), Some(id.as_str()), "the host name is the id");
        assert_eq!(who.lines().count(), LINES);
        assert!(!who.lines().any(|line| source.contains(line)), "of its source: {who}");
    }
    let ids: Vec<String> = who.into_iter().map(|(id, _)| id).collect();

    let address = |id: &String| server.info(id).expect("listed")["host_address"].to_string();
    assert_eq!(ids.iter().map(address).collect::<BTreeSet<_>>().len(), count);
    // All at once, from the same address inside and perhaps the same port.
    let cmd = format!(
        "cat /etc/hostname; getent hosts $(hostname) | cut -d' ' -f1; ip -4 -o addr show eth0 | wc -l; \
         curl -sS --max-time 30 {}",
        host.url(INTERNET)
    );
    let fetched = at_once(count, count, |n| (n, server.stdout(&ids[n], &cmd)));
    for (n, fetched) in fetched {
        assert_eq!(fetched, format!("{}\n172.16.0.2\n1\ninternet", ids[n]));
    }

    let write = |id: &String| format!("echo {id} | tee /root/mine /run/mine > /dev/shm/mine; sync");
    at_once(4, count, |n| server.stdout(&ids[n], &write(&ids[n])));
    at_once(4, count, |n| {
        let found =
            server.stdout(&ids[n], "cat /root/mine /run/mine /dev/shm/mine; ls -A /root | grep -v '^[.k]'");
        assert_eq!(found, format!("{0}\n{0}\n{0}\nmine", ids[n]));
    });
    let late = make();
    assert_eq!(server.stdout(&late, "ls -d /root/mine /run/mine /dev/shm/mine 2>/dev/null | wc -l"), "0");
    server.destroy(&late).ok();
    ids
}

#[test]
fn clones_of_a_snapshot_differ_where_they_must_and_see_nothing_of_each_other() {
    let host = Host::enter();
    // Where memory is scarce the default would be fewer.
    let server = Server::with(&[("MANTA_MAX_SANDBOXES", "40")]);
    let source = server.create();
    let started = "echo kept > /root/kept; echo kept > /run/kept
        (while :; do sleep 1; echo x >> /run/beats; done) > /dev/null 2>&1 &
        echo $!";
    let pid = server.stdout(&source, started);
    let mut who = server.stdout(&source, WHO);
    let names = "cat /proc/sys/kernel/random/boot_id /etc/machine-id; hostname; cat /root/kept /run/kept";
    let before = server.stdout(&source, names);
    let snapshot = server.snapshot(&source);
    // The next bytes after the snapshot: its clones must not have them, too.
    who.push_str(&server.stdout(&source, WHO));
    let files = contents(&server.snapshot_dir(&snapshot));
    assert_eq!(files.keys().collect::<Vec<_>>(), ["disk.ext4", "manifest.json", "memory", "state"]);

    let count = if on_firecracker() { 6 } else { 16 };
    let ids = clones(&host, &server, count, &who, || server.restore(&snapshot));
    for id in &ids {
        assert_eq!(server.stdout(id, "cat /root/kept /run/kept"), "kept\nkept");
        assert_eq!(server.info(id).expect("listed")["snapshot_id"], snapshot.as_str());
    }
    // The source noticed nothing.
    assert_eq!(server.stdout(&source, names), before);
    assert_eq!(server.stdout(&source, "ls /root/mine /run/mine 2>/dev/null | wc -l"), "0");
    let beats = || server.stdout(&source, "wc -l < /run/beats").parse::<u64>().expect("a count");
    let seen = beats();
    crate::harness::eventually("the source's process goes on", scaled(20), || beats() > seen);
    server.stdout(&source, &format!("kill -0 {pid}"));
    the_clock_is_right(&server, &source);

    at_once(4, ids.len(), |n| server.destroy(&ids[n]).ok());
    assert_eq!(contents(&server.snapshot_dir(&snapshot)), files, "a snapshot never changes");
}

#[test]
fn sandboxes_made_of_the_golden_snapshot_differ_where_they_must_and_see_nothing_of_each_other() {
    let host = Host::enter();
    // Where memory is scarce the default would be fewer.
    let server = Server::with(&[("MANTA_MAX_SANDBOXES", "40")]);
    let [golden] = &entries(&server.golden_dir())[..] else { panic!("not one golden snapshot") };
    let dir = server.golden_dir().join(golden);
    let files = contents(&dir);
    let ids = clones(&host, &server, 8, "", || server.create());
    for id in &ids {
        assert_eq!(server.info(id).expect("listed")["snapshot_id"], golden.as_str(), "it was booted");
    }
    at_once(4, ids.len(), |n| server.destroy(&ids[n]).ok());
    assert_eq!(contents(&dir), files, "the golden snapshot never changes");
}
