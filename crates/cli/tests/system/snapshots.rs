//! What a snapshot keeps, and what it leaves alone: all that runs in the sandbox, in its clones and beside.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use manta_host::disk::{CloneMode, clone_file};
use serde_json::{Value, json};

use crate::harness::{Host, Server, at_once, binary, contents, entries, eventually, new_dir, scaled};

/// Counts in its memory, writes each number to the disk, and holds a file that has no name any more.
const COUNTER: &str = "cat > /root/counter.py <<'END'
import os, time
gone = open('/root/gone', 'w+')
gone.write('deleted but open')
gone.flush()
os.unlink('/root/gone')
log = open('/root/log', 'a')
print(os.getpid(), gone.fileno(), file=open('/run/counter', 'w'), flush=True)
n = 0
while True:
    n += 1
    log.write(f'{n}\\n')
    log.flush()
    os.fsync(log.fileno())
    time.sleep(0.02)
END
python3 /root/counter.py > /dev/null 2>&1 &
until test -s /run/counter; do sleep 0.1; done; cat /run/counter";

/// How far the counter is; there must be no gap.
fn counted(server: &Server, id: &str) -> u64 {
    let gaps = "awk 'NR != $1 { gaps += 1 } END { print NR, gaps + 0 }' /root/log";
    let (count, gaps) =
        server.stdout(id, gaps).split_once(' ').map(|(a, b)| (a.to_owned(), b.to_owned())).expect("two");
    assert_eq!(gaps, "0", "the log of {id} has gaps");
    count.parse().expect("a count")
}

fn the_counter_goes_on(server: &Server, id: &str, at_least: u64) {
    assert!(counted(server, id) >= at_least, "{} < {at_least}: it was set back", counted(server, id));
    let seen = counted(server, id);
    eventually("the counter goes on", scaled(20), || counted(server, id) > seen);
    assert_eq!(server.stdout(id, "dmesg | grep -iE 'ext4.*error|i/o error|hung task' | head -5"), "");
}

#[test]
fn processes_memory_open_files_and_disk_are_of_one_moment() {
    let _host = Host::enter();
    let server = Server::start();
    let source = server.create();
    let counter = server.stdout(&source, COUNTER);
    let (pid, fd) = counter.split_once(' ').expect("a pid and a descriptor");
    server.stdout(&source, "echo shared > /dev/shm/tmpfs");
    server.stdout(&source, "mkdir /mnt/t; mount -t tmpfs -o size=1m none /mnt/t; echo own > /mnt/t/own");
    // Not on the medium yet, as far as the guest is concerned.
    server.stdout(&source, "head -c 3000000 /dev/urandom > /root/cached; sha256sum /root/cached > /root/sum");
    eventually("the counter counts", scaled(20), || counted(&server, &source) > 20);
    let before = counted(&server, &source);
    let snapshot = server.snapshot(&source);
    let after = counted(&server, &source);
    the_counter_goes_on(&server, &source, before);

    for _ in 0..2 {
        let clone = server.restore(&snapshot);
        let count = counted(&server, &clone);
        assert!((before..after + 500).contains(&count), "{count} is not between {before} and {after}");
        the_counter_goes_on(&server, &clone, before);
        assert_eq!(server.stdout(&clone, &format!("cat /proc/{pid}/fd/{fd}")), "deleted but open");
        assert_eq!(server.stdout(&clone, "cat /dev/shm/tmpfs /mnt/t/own"), "shared\nown");
        assert_eq!(server.stdout(&clone, "sha256sum --status -c /root/sum; echo $?"), "0");
        // Also past what is cached in the memory it was saved with.
        let drop = "sync; echo 3 > /proc/sys/vm/drop_caches; sha256sum --status -c /root/sum; echo $?";
        assert_eq!(server.stdout(&clone, drop), "0");
        server.destroy(&clone).ok();
    }
    the_disk_is_consistent(&server.snapshot_dir(&snapshot).join("disk.ext4"));
}

/// As after a power cut at worst: the journal mends it.
fn the_disk_is_consistent(disk: &Path) {
    let dir = new_dir();
    let copy = dir.path().join("disk.ext4");
    clone_file(disk, &copy, CloneMode::Auto).expect("copy the disk");
    let fsck = Command::new("/usr/sbin/e2fsck").args(["-f", "-p"]).arg(&copy).output().expect("run e2fsck");
    assert!(fsck.status.code().is_some_and(|code| code <= 1), "{}", String::from_utf8_lossy(&fsck.stdout));
}

#[test]
fn commands_notice_nothing_of_snapshots_taken_meanwhile() {
    let _host = Host::enter();
    let server = Server::start();
    let id = server.create();
    let printing = "n=0; until test -e /tmp/stop; do n=$((n + 1)); echo $n; sleep 0.02; done
        echo end; echo ended > /tmp/ended # the_printer";
    let copying = "import os, sys, time
for chunk in iter(lambda: os.read(0, 4096), b''):
    sys.stdout.buffer.write(chunk); sys.stdout.flush()
    if not os.path.exists('/tmp/stop'): time.sleep(0.01)
while not os.path.exists('/tmp/stop'): time.sleep(0.05)
print('y' * 1000000, end='')
print('warning', file=sys.stderr)
sys.exit(7)";
    let stdin = (0..200_000).map(|n| format!("line {n}\n")).collect::<String>();
    let timeout_ms = u64::try_from(scaled(60).as_millis()).expect("a time");
    let run = |mut body: Value| {
        body["sandbox_id"] = json!(id);
        body["timeout_ms"] = json!(timeout_ms);
        server.post("/exec", &body).ok()
    };
    let (printed, copied, snapshots) = std::thread::scope(|scope| {
        let printer = scope.spawn(|| run(json!({"cmd": printing})));
        let copier = scope.spawn(|| run(json!({"argv": ["python3", "-c", copying], "stdin": stdin})));
        eventually("both run", scaled(30), || {
            server.stdout(&id, "pgrep -fc '[t]he_printer|[p]ython3 -c' || true") == "2"
        });
        let saving = scope.spawn(|| [(); 3].map(|()| server.snapshot(&id)));
        let mut echoes = 0;
        while !saving.is_finished() {
            assert_eq!(server.stdout(&id, &format!("echo {echoes}")), echoes.to_string());
            echoes += 1;
        }
        assert!(echoes > 0);
        server.stdout(&id, "touch /tmp/stop");
        let joined = (printer.join().expect("an answer"), copier.join().expect("an answer"));
        (joined.0, joined.1, saving.join().expect("three snapshots"))
    });
    assert_eq!((&printed["exit_code"], &printed["stderr"]), (&json!(0), &json!("")));
    let lines: Vec<_> = printed["stdout"].as_str().expect("stdout").lines().collect();
    let expected: Vec<_> = (1..lines.len()).map(|n| n.to_string()).chain(["end".to_owned()]).collect();
    assert_eq!(lines, expected);
    assert_eq!((&copied["exit_code"], &copied["stderr"]), (&json!(7), &json!("warning\n")));
    assert!(copied["stdout"] == stdin + &"y".repeat(1_000_000), "what was copied is not what was sent");

    // In the clone they live on, and nobody reads what they print.
    let clone = server.restore(&snapshots[2]);
    assert_eq!(server.stdout(&clone, "pgrep -fc '[t]he_printer|[p]ython3 -c'"), "2");
    server.stdout(&clone, "touch /tmp/stop");
    eventually("they end as they would have", scaled(30), || {
        server.stdout(&clone, "cat /tmp/ended 2>/dev/null; pgrep -fc '[t]he_printer|[p]ython3 -c' || true")
            == "ended\n0"
    });
}

#[test]
fn restores_are_not_held_up() {
    let _host = Host::enter();
    let server = Server::start();
    let id = server.create();
    let snapshot = server.snapshot(&id);
    let mut took: Vec<_> = (0..9)
        .map(|_| {
            let began = Instant::now();
            let clone = server.restore(&snapshot);
            assert_eq!(server.stdout(&clone, "echo works"), "works");
            let took = began.elapsed();
            server.destroy(&clone).ok();
            took
        })
        .collect();
    took.sort();
    // The original waited 2 s whenever the link to a restored agent had died without a word.
    assert!(took[took.len() / 2] < scaled(1), "{took:?}");
}

#[test]
fn snapshots_of_one_sandbox_asked_for_at_once_are_all_made() {
    let _host = Host::enter();
    let server = Server::start();
    let id = server.create();
    server.stdout(&id, "echo kept > /root/kept");
    let mut made = at_once(4, 4, |_| server.snapshot(&id));
    made.sort();
    made.dedup();
    assert_eq!(made.len(), 4);
    assert_eq!(entries(&server.snapshots_dir()), made);
    for clone in at_once(4, 4, |n| server.restore(&made[n])) {
        assert_eq!(server.stdout(&clone, "cat /root/kept"), "kept");
    }
    assert_eq!(server.stdout(&id, "cat /root/kept"), "kept");
}

#[test]
fn a_clone_of_a_clone_of_a_clone_has_everything_and_needs_none_of_them() {
    let _host = Host::enter();
    let server = Server::start();
    let mut id = server.create();
    let counter = server.stdout(&id, COUNTER);
    let pid = counter.split(' ').next().expect("a pid").to_owned();
    let mut count = 0;
    for level in 1..=4 {
        server.stdout(&id, &format!("echo {level} >> /root/levels; echo {level} >> /run/levels"));
        let file = format!("/root/level{level}");
        server.stdout(&id, &format!("head -c 2000000 /dev/urandom > {file}; sha256sum {file} >> /root/sums"));
        count = counted(&server, &id);
        let snapshot = server.snapshot(&id);
        server.destroy(&id).ok();
        id = server.restore(&snapshot);
        // Each is whole: what it was made from is not needed any more.
        server.delete_snapshot(&snapshot).ok();
        the_counter_goes_on(&server, &id, count);
        server.stdout(&id, &format!("kill -0 {pid}"));
    }
    assert_eq!(server.stdout(&id, "cat /root/levels /run/levels"), "1\n2\n3\n4\n1\n2\n3\n4");
    let sums = "sync; echo 3 > /proc/sys/vm/drop_caches; sha256sum --status -c /root/sums; echo $?";
    assert_eq!(server.stdout(&id, sums), "0");
    the_counter_goes_on(&server, &id, count);
    assert!(entries(&server.snapshots_dir()).is_empty());
}

#[test]
fn clones_outlive_their_snapshot_and_its_name_is_free_again() {
    let _host = Host::enter();
    let server = Server::start();
    let source = server.create();
    server.stdout(&source, "head -c 8000000 /dev/urandom > /root/cached; sha256sum /root/cached > /root/sum");
    let body = json!({"sandbox_id": source, "name": "ready"});
    let made = server.post("/snapshot/create", &body).ok();
    let snapshot = made["snapshot_id"].as_str().expect("an id");
    let clones = at_once(2, 2, |_| server.restore(snapshot));
    let deleted = server.delete_snapshot(snapshot).ok();
    assert_eq!(deleted, json!({"snapshot_id": snapshot, "status": "deleted"}));
    assert!(server.snapshots().is_empty());
    assert!(entries(&server.snapshots_dir()).is_empty());
    server.try_restore(snapshot).error(404, "snapshot_not_found");
    server.delete_snapshot(snapshot).error(404, "snapshot_not_found");
    for clone in clones.iter().chain([&source]) {
        // Memory, and programs, that nobody had touched when the snapshot was there.
        assert_eq!(server.stdout(clone, "python3 -c 'x = bytearray(20_000_000); print(len(x))'"), "20000000");
        assert_eq!(
            server.stdout(clone, "perl -e 'print 6 * 7'; sha256sum --status -c /root/sum; echo $?"),
            "420"
        );
    }
    let again = server.post("/snapshot/create", &json!({"sandbox_id": clones[0], "name": "ready"})).ok();
    assert_ne!(again["snapshot_id"], snapshot);
}

#[test]
fn a_snapshot_is_listed_with_what_it_is() {
    let _host = Host::enter();
    let server = Server::with(&[("MANTA_VCPUS", "1"), ("MANTA_MEM_MIB", "256")]);
    let id = server.create();
    let made = server.post("/snapshot/create", &json!({"sandbox_id": id, "name": "first.one_1-a"})).ok();
    assert!(made["pause_us"].as_u64().expect("a pause") > 0);
    let other = server.snapshot(&id);
    let listed = server.snapshots();
    let ids: Vec<_> = listed.iter().map(|info| &info["id"]).collect();
    assert_eq!(ids, [&made["snapshot_id"], &json!(other)], "oldest first");
    let info = &listed[0];
    assert_eq!((&info["name"], &info["sandbox_id"]), (&json!("first.one_1-a"), &json!(id)));
    assert_eq!(
        (&info["vcpus"], &info["mem_mib"], &info["restorable"]),
        (&json!(1), &json!(256), &json!(true))
    );
    assert_eq!((listed[1].get("name"), info.get("reason")), (None, None));
    let health = server.get("/healthz");
    assert_eq!((&info["vmm"], &info["vmm_version"]), (&health["vmm"]["name"], &health["vmm"]["version"]));
    for file in ["state", "memory", "disk"] {
        assert!(info["disk_bytes"][file].as_u64().expect("bytes") > 0, "{file}: {info:#}");
    }
    let age = info["created_unix_ms"].as_u64().expect("a time").abs_diff(
        u64::try_from(std::time::UNIX_EPOCH.elapsed().expect("after 1970").as_millis()).expect("a time"),
    );
    assert!(age < u64::try_from(scaled(60).as_millis()).expect("a time"), "{age} ms old");
}

#[test]
fn snapshots_outlive_their_server_however_it_ends_and_no_id_comes_twice() {
    let _host = Host::enter();
    let mark = |server: &Server, mark: &str| {
        let id = server.create();
        server.stdout(&id, &format!("echo {mark} > /root/mark; echo {mark} > /run/mark"));
        server.snapshot(&id)
    };
    let first = Server::start();
    let mut made = vec![mark(&first, "0")];
    let files = contents(&first.snapshot_dir(&made[0]));
    // The original began to count anew, and wrote over what was there.
    let second = Server::in_dir(first.end(), &[]);
    made.push(mark(&second, "1"));
    let third = Server::in_dir(second.kill(), &[]);
    made.push(mark(&third, "2"));
    let listed: Vec<_> =
        third.snapshots().iter().map(|info| info["id"].as_str().expect("an id").to_owned()).collect();
    assert_eq!(listed, made);
    for (n, snapshot) in made.iter().enumerate() {
        let clone = third.restore(snapshot);
        assert_eq!(third.stdout(&clone, "cat /root/mark /run/mark"), format!("{n}\n{n}"));
    }
    assert_eq!(contents(&third.snapshot_dir(&made[0])), files);
}

#[test]
fn without_a_golden_snapshot_sandboxes_boot_and_can_be_saved() {
    let _host = Host::enter();
    let server = Server::in_dir(new_dir(), &[("MANTA_ENABLE_SNAPSHOTS", "0")]);
    assert_eq!(server.get("/healthz")["status"], "ok");
    assert!(entries(&server.golden_dir()).is_empty());
    let id = server.create();
    assert_eq!(server.info(&id).expect("listed").get("snapshot_id"), None);
    server.stdout(&id, "echo kept > /root/kept");
    let snapshot = server.snapshot(&id);
    let clone = server.restore(&snapshot);
    assert_eq!(server.stdout(&clone, "cat /root/kept; hostname"), format!("kept\n{clone}"));
    assert_eq!(server.info(&clone).expect("listed")["snapshot_id"], snapshot.as_str());
    assert_eq!(server.stdout(&id, "cat /root/kept; hostname"), format!("kept\n{id}"));
    server.create();
}

#[test]
fn the_restore_benchmark_measures_this_server_and_leaves_nothing() {
    let _host = Host::enter();
    let server = Server::start();
    let endpoint = format!("http://{}", server.address);
    let bench = |more: &[&str]| {
        Command::new(binary())
            .args(["bench-restore", "--iterations", "3", "--warmup", "1", "--endpoint", &endpoint])
            .args(more)
            .output()
            .expect("run the benchmark")
    };
    let run = bench(&[]);
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    let result: Value = serde_json::from_slice(&run.stdout).expect("one JSON object on stdout");
    assert_eq!((&result["iterations_requested"], &result["iterations_success"]), (&json!(3), &json!(3)));
    for part in ["restore_only", "restore_tti"] {
        let ns = ["min", "p50", "p95", "p99", "max"].map(|name| {
            let value = &result[format!("{part}_{name}_ns")];
            value.as_u64().unwrap_or_else(|| panic!("{part}_{name}_ns: {result:#}"))
        });
        assert!(ns[0] > 0 && ns.is_sorted(), "{part}: {ns:?}");
    }
    assert_eq!(result["failures"], json!({"restore_api": 0, "sanity_exec": 0, "destroy": 0, "other": 0}));
    assert_eq!(result["samples"].as_array().map(Vec::len), Some(3));
    let nothing_is_left = || {
        assert_eq!(server.get("/sandboxes"), json!({"sandboxes": []}));
        assert!(server.snapshots().is_empty() && entries(&server.snapshots_dir()).is_empty());
    };
    nothing_is_left();
    let failed = bench(&["--expect-stdout", "something else"]);
    assert!(!failed.status.success(), "an output that is never right must not count as success");
    nothing_is_left();
}
