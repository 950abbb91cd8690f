//! cgroups with real processes in them: limits in force, ends told apart, nothing left.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::time::Duration;

use manta_host::process::Confinement;
use manta_host::{Cgroup, CgroupLimits, Cgroups, Credentials, Process, Spawn};

/// Longer than anything takes here; reached only when a test fails.
const TIMEOUT: Duration = Duration::from_secs(20);
const LIMITS: CgroupLimits = CgroupLimits { memory_bytes: 64 << 20, cpu_percent: 50, processes: 10 };

/// A tree that no other test uses. None where this machine lets nobody limit anything.
fn tree(test: &str) -> Option<Cgroups> {
    let tree = Cgroups::set_up(&format!("manta-test-{test}-{}", std::process::id()), 100, &LIMITS);
    if !tree.missing().is_empty() {
        println!("skipped: {:?}", tree.missing());
        assert!(std::env::var_os("MANTA_TEST_REQUIRE_CGROUPS").is_none(), "{:?}", tree.missing());
        tree.tear_down().unwrap();
        return None;
    }
    Some(tree)
}

fn python(script: &str, group: &Cgroup) -> Process {
    spawn("/usr/bin/python3", script, group)
}

fn shell(script: &str, group: &Cgroup) -> Process {
    spawn("/bin/sh", script, group)
}

fn spawn(program: &str, script: &str, group: &Cgroup) -> Process {
    let args = ["-c", script].map(OsString::from);
    let entry = group.entry().unwrap();
    Process::spawn(Spawn {
        program: Path::new(program),
        args: &args,
        dir: Path::new("/"),
        netns: None,
        credentials: &Credentials { uid: 4242, gid: 4242, groups: Vec::new() },
        fds: Vec::new(),
        confinement: Confinement { cgroup: Some(&entry), ..Confinement::default() },
    })
    .unwrap()
}

fn finish(tree: Cgroups) {
    let dirs = tree.dirs();
    tree.tear_down().unwrap();
    assert!(dirs.iter().all(|dir| !dir.exists()), "left: {dirs:?}");
}

#[test]
fn what_takes_too_much_memory_is_killed_and_known_for_it() {
    let Some(tree) = tree("memory") else { return };
    let group = tree.create("bomb", &LIMITS).unwrap();
    let modest = python("x = bytearray(16 << 20); x[::4096] = b'1' * len(x[::4096])", &group);
    assert!(modest.wait_timeout(TIMEOUT).unwrap().unwrap().success(), "{}", modest.output());
    assert_eq!(group.oom_kills(), 0);
    let bomb = python("x = bytearray(256 << 20); x[::4096] = b'1' * len(x[::4096])", &group);
    assert_eq!(bomb.wait_timeout(TIMEOUT).unwrap().unwrap().signal(), Some(9), "{}", bomb.output());
    assert_eq!(group.oom_kills(), 1);
    let killed = shell("exec sleep 1000", &group);
    killed.kill().unwrap();
    assert_eq!(killed.wait_timeout(TIMEOUT).unwrap().unwrap().signal(), Some(9));
    assert_eq!(group.oom_kills(), 1, "not every SIGKILL is one of these");
    group.destroy().unwrap();
    finish(tree);
}

#[test]
fn what_forks_without_end_stops_at_the_limit_and_goes_as_a_whole() {
    let Some(tree) = tree("forks") else { return };
    let group = tree.create("bomb", &LIMITS).unwrap();
    let script = "import os, time\nmade = 0\ntry:\n  while os.fork(): made += 1\nexcept OSError: print(made, flush=True)\ntime.sleep(1000)";
    let bomb = python(script, &group);
    let end = std::time::Instant::now() + TIMEOUT;
    while bomb.output().is_empty() {
        assert!(std::time::Instant::now() < end, "no limit was reached");
        std::thread::park_timeout(Duration::from_millis(5));
    }
    assert_eq!(bomb.output().trim(), "9", "and itself");
    group.destroy().unwrap();
    assert_eq!(bomb.wait_timeout(TIMEOUT).unwrap().unwrap().signal(), Some(9));
    finish(tree);
}

#[test]
fn what_never_rests_gets_its_share_of_a_processor() {
    let Some(tree) = tree("cpu") else { return };
    let group = tree.create("loop", &LIMITS).unwrap();
    // By its own clock: whatever else the machine does only takes from it.
    let script = "import time\nbegin = time.monotonic()\nwhile time.monotonic() < begin + 1: pass\nprint(time.process_time())";
    let busy = python(script, &group);
    assert!(busy.wait_timeout(TIMEOUT).unwrap().unwrap().success());
    let used: f64 = busy.output().trim().parse().unwrap();
    assert!(used < 0.75, "{used} s of one");
    group.destroy().unwrap();
    finish(tree);
}

#[test]
fn a_process_is_in_its_group_from_the_start_and_the_group_is_found_by_its_name() {
    let Some(tree) = tree("find") else { return };
    let group = tree.create("sandbox-1", &LIMITS).unwrap();
    let process = shell("echo $$; for i in $(seq 3); do sleep 1000 & done; wait", &group);
    let dirs: Vec<_> = group.dirs().map(Path::to_owned).collect();
    assert!(!dirs.is_empty());
    for dir in &dirs {
        let inside = fs::read_to_string(dir.join("cgroup.procs")).unwrap();
        assert!(inside.lines().any(|pid| pid == process.pid().to_string()), "{inside}");
    }
    assert!(tree.find("sandbox-2").unwrap().is_none());
    let found = tree.find("sandbox-1").unwrap().unwrap();
    assert_eq!(found.memory_limit(), Some(LIMITS.memory_bytes));
    assert_eq!(found.name(), "sandbox-1");
    assert_eq!(found.dirs().collect::<Vec<_>>(), dirs);
    // Two guards of one group: the second finds nothing.
    found.destroy().unwrap();
    assert!(dirs.iter().all(|dir| !dir.exists()));
    assert_eq!(process.wait_timeout(TIMEOUT).unwrap().unwrap().signal(), Some(9));
    group.destroy().unwrap();
    assert!(tree.find("sandbox-1").unwrap().is_none());
    finish(tree);
}

#[test]
fn a_sweep_takes_all_but_what_is_to_stay() {
    let name = format!("manta-test-sweep-{}", std::process::id());
    let Some(tree) = tree("sweep") else { return };
    let groups = ["gone", "kept", "empty"].map(|name| tree.create(name, &LIMITS).unwrap());
    let [gone, kept] = [0, 1].map(|index| shell("exec sleep 1000", &groups[index]));
    // A server that is killed drops nothing.
    std::mem::forget((tree, groups));
    let next = Cgroups::set_up(&name, 100, &LIMITS);
    let mut swept = next.sweep(&BTreeSet::from(["kept".to_owned()])).unwrap();
    swept.sort();
    assert_eq!(swept, ["empty", "gone"]);
    assert_eq!(gone.wait_timeout(TIMEOUT).unwrap().unwrap().signal(), Some(9));
    assert!(kept.try_wait().unwrap().is_none());
    assert_eq!(next.find("kept").unwrap().unwrap().name(), "kept");
    kept.kill().unwrap();
    assert!(kept.wait_timeout(TIMEOUT).unwrap().is_some());
    finish(next);
}

#[test]
fn what_is_in_a_tree_of_the_same_name_elsewhere_is_found_and_swept() {
    let name = format!("manta-test-elsewhere-{}", std::process::id());
    let Some(tree) = tree("elsewhere") else { return };
    // As of a server that ran in another group of its own.
    let others: Vec<_> = tree.dirs().iter().map(|dir| dir.with_file_name(format!("other-{name}"))).collect();
    for other in &others {
        fs::create_dir_all(other.join(&name).join("sandbox-1")).unwrap();
    }
    finish(tree);
    for has_limits in [true, false] {
        let next = if has_limits { Cgroups::set_up(&name, 100, &LIMITS) } else { Cgroups::off(&name) };
        let found = next.find("sandbox-1").unwrap().unwrap();
        assert!(found.dirs().all(|dir| others.iter().any(|other| dir.starts_with(other))), "{found:?}");
        assert_eq!(found.dirs().count(), others.len());
        std::mem::forget(found);
        assert_eq!(next.sweep(&BTreeSet::from(["sandbox-1".to_owned()])).unwrap(), Vec::<String>::new());
        finish(next);
    }
    let last = Cgroups::off(&name);
    assert_eq!(last.sweep(&BTreeSet::new()).unwrap(), ["sandbox-1"]);
    for other in &others {
        assert!(!other.join(&name).exists(), "an empty tree stays");
        fs::remove_dir(other).unwrap();
    }
    finish(last);
}

#[test]
fn names_are_single_file_names() {
    let Some(tree) = tree("names") else { return };
    for name in ["", ".", "..", "a/b", ".trial", "a b", &"x".repeat(200)] {
        assert!(tree.create(name, &LIMITS).is_err(), "{name:?}");
        assert!(tree.find(name).is_err(), "{name:?}");
    }
    tree.create("twice", &LIMITS).unwrap().destroy().unwrap();
    let first = tree.create("twice", &LIMITS).unwrap();
    assert!(tree.create("twice", &LIMITS).is_err());
    assert!(first.dirs().all(Path::is_dir), "the first stays");
    drop(first);
    finish(tree);
}

#[test]
fn without_a_tree_groups_are_nowhere() {
    let tree = Cgroups::off("manta-test-off");
    let group = tree.create("nowhere", &LIMITS).unwrap();
    let process = shell("exit 3", &group);
    assert_eq!(process.wait_timeout(TIMEOUT).unwrap().unwrap().to_string(), "exit status: 3");
    assert_eq!((group.dirs().count(), group.oom_kills()), (0, 0));
    group.destroy().unwrap();
    finish(tree);
}
