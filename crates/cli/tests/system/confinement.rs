//! What VMMs are kept in: limits on what they use.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::harness::{Host, Server, eventually, kill, on_firecracker, scaled};

/// The directories of the cgroups that a process is in and that bear a sandbox's name.
fn groups(pid: u32, id: &str) -> Vec<PathBuf> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).expect("its cgroups");
    text.lines()
        .filter(|line| line.ends_with(&format!("/{id}")))
        .map(|line| {
            let mut fields = line.splitn(3, ':').skip(1);
            let (controllers, group) = (fields.next().expect("controllers"), fields.next().expect("a group"));
            let below = if controllers.is_empty() { "/sys/fs/cgroup" } else { "/sys/fs/cgroup/HIERARCHY" };
            PathBuf::from(format!("{}{group}", below.replace("HIERARCHY", controllers)))
        })
        .collect()
}

/// The first of these files that one of the groups has.
fn file(groups: &[PathBuf], names: [&str; 2]) -> Option<PathBuf> {
    groups.iter().flat_map(|group| names.map(|name| group.join(name))).find(|path| path.exists())
}

fn only_vmm(server: &Server) -> u32 {
    let vmms = server.vmms();
    assert_eq!(vmms.len(), 1, "{vmms:?}");
    vmms[0]
}

fn lacks_cgroups(server: &Server) -> bool {
    let health: Value = server.get("/healthz");
    let degraded = health["degraded"].to_string();
    let lacks = degraded.contains("limit on VMMs'");
    if lacks {
        println!("skipped: {degraded}");
        assert!(std::env::var_os("MANTA_TEST_REQUIRE_CGROUPS").is_none(), "{degraded}");
    }
    lacks
}

#[test]
fn a_vmm_is_in_a_cgroup_of_its_own_with_limits_and_nothing_of_it_stays() {
    let _host = Host::enter();
    let mut server = Server::with(&[("MANTA_CPU_MAX", "1.5"), ("MANTA_MEM_MIB", "256")]);
    if lacks_cgroups(&server) {
        return;
    }
    let id = server.create();
    let groups = groups(only_vmm(&server), &id);
    let all = server.cgroups();
    assert!(groups.iter().all(|group| all.contains(group)), "{groups:?} are not among {all:?}");
    let read = |names| fs::read_to_string(file(&groups, names).expect("a file")).expect("a limit");
    let memory: u64 = read(["memory.limit_in_bytes", "memory.max"]).trim().parse().expect("a number");
    // The guest's, and 192 MiB, and one in 32.
    assert_eq!(memory >> 20, 256 + 192 + 8);
    assert!(["150000", "150000 100000"].contains(&read(["cpu.cfs_quota_us", "cpu.max"]).trim()));
    assert_eq!(read(["pids.max", "pids.max"]).trim(), "129");
    server.destroy(&id).ok();
    assert!(groups.iter().all(|group| !group.exists()), "left: {groups:?}");
    server.stop();
    assert_eq!(server.cgroups(), BTreeSet::new());
}

#[test]
fn a_vmm_killed_for_its_memory_is_known_for_it_and_takes_nobody_along() {
    let _host = Host::enter();
    let server = Server::start();
    if lacks_cgroups(&server) {
        return;
    }
    let id = server.create();
    let groups = groups(only_vmm(&server), &id);
    let other = server.create();
    // Less than it may take by itself: a stand-in for a VMM that was taken over.
    if let Some(both) = file(&groups, ["memory.memsw.limit_in_bytes", "memory.swap.max"])
        && both.ends_with("memory.memsw.limit_in_bytes")
    {
        lower(&both, &file(&groups, ["memory.limit_in_bytes", "memory.max"]).expect("a limit"));
    } else {
        let limit = file(&groups, ["memory.limit_in_bytes", "memory.max"]).expect("a limit");
        fs::write(limit, (48 << 20).to_string()).expect("lower the limit");
    }
    let cmd = "python3 -c 'x = b\"1\" * (150 << 20)'";
    let _asked = server.begin("/exec", &serde_json::json!({"sandbox_id": id, "cmd": cmd}));
    eventually("the sandbox fails", scaled(60), || {
        server.info(&id).is_some_and(|info| info["state"] == "failed")
    });
    let reason = server.info(&id).expect("it is listed")["reason"].to_string();
    assert!(reason.contains("more than its 48 MiB of memory"), "{reason}");
    // It fails when its VMM is dead; what that leaves is removed after that.
    eventually("its cgroups are gone", scaled(20), || groups.iter().all(|group| !group.exists()));
    assert_eq!(server.stdout(&other, "echo fine"), "fine");
}

/// Of version 1: first the limit of memory, which must not exceed that of memory and swap.
fn lower(both: &Path, memory: &Path) {
    for path in [memory, both] {
        fs::write(path, (48 << 20).to_string()).expect("lower the limit");
    }
}

#[test]
fn what_a_killed_server_left_in_cgroups_is_swept() {
    let _host = Host::enter();
    let server = Server::start();
    if lacks_cgroups(&server) {
        return;
    }
    let id = server.create();
    let vmm = only_vmm(&server);
    let groups = groups(vmm, &id);
    assert!(!groups.is_empty());
    let dir = server.kill();
    // Nobody is left to remove what it was in.
    kill(vmm);
    assert!(groups.iter().all(|group| group.exists()), "gone by themselves: {groups:?}");
    let server = Server::in_dir(dir, &[]);
    assert_eq!(server.info(&id), None);
    eventually("they are swept", scaled(20), || groups.iter().all(|group| !group.exists()));
}

#[test]
fn a_server_without_limits_removes_the_cgroups_of_what_it_takes_back() {
    let _host = Host::enter();
    let server = Server::start();
    if lacks_cgroups(&server) {
        return;
    }
    let id = server.create();
    let groups = groups(only_vmm(&server), &id);
    let mut next = Server::in_dir(server.kill(), &[("MANTA_CGROUP", "off")]);
    assert_eq!(next.stdout(&id, "echo here"), "here");
    assert!(!groups.is_empty() && groups.iter().all(|group| group.exists()), "{groups:?}");
    next.destroy(&id).ok();
    assert!(groups.iter().all(|group| !group.exists()), "left: {groups:?}");
    next.stop();
    assert_eq!(next.cgroups(), BTreeSet::new());
}

#[test]
fn limits_can_be_demanded_or_done_without() {
    let _host = Host::enter();
    match Server::try_with(&[("MANTA_CGROUP", "required"), ("MANTA_ENABLE_SNAPSHOTS", "0")]) {
        Ok(server) => assert!(!lacks_cgroups(&server)),
        Err(log) => assert!(log.contains("MANTA_CGROUP=required") && log.contains("no limit on"), "{log}"),
    }
    let server = Server::with(&[("MANTA_CGROUP", "off")]);
    assert!(!server.get("/healthz")["degraded"].to_string().contains("limit on VMMs'"));
    let id = server.create();
    assert_eq!(groups(only_vmm(&server), &id), Vec::<PathBuf>::new());
}

#[test]
fn every_vmm_of_a_server_is_kept_to_itself() {
    let _host = Host::enter();
    let server = Server::with(&[("MANTA_WARM_POOL_SIZE", "1")]);
    let ids = [server.create(), server.create()];
    // One on its way to its confinement has not all of it yet.
    eventually("the one that is made ahead waits", scaled(60), || {
        server.get("/healthz")["pools"]["warm"]["depth"] == 1
    });
    let mut users = Vec::new();
    for pid in server.vmms() {
        let of = |name: &str| format!("/proc/{pid}/{name}");
        let status = fs::read_to_string(of("status")).expect("its status");
        // The jailer leaves Firecracker a bounding set that nothing can draw on without new privileges.
        let bounding = (!on_firecracker()).then_some("CapBnd:\t0000000000000000");
        let empty =
            ["NoNewPrivs:\t1", "Seccomp:\t2", "CapPrm:\t0000000000000000", "CapEff:\t0000000000000000"];
        for line in empty.into_iter().chain(bounding) {
            assert!(status.contains(line), "{line}: {status}");
        }
        let uid = status.lines().find_map(|line| line.strip_prefix("Uid:\t")).expect("a user");
        let uid = uid.split('\t').next().expect("one").to_owned();
        assert!(uid != "0" && !users.contains(&uid), "a user of its own: {uid}, {users:?}");
        users.push(uid);
        // Nothing of the host's is in its root: neither the work directory nor anything to find it by.
        let root = Path::new(&of("root")).to_owned();
        // The jailer makes an empty `run`.
        let run = (!on_firecracker()).then_some("run");
        for path in ["etc/passwd", "home", "tmp", "var", "sys", "root"].into_iter().chain(run) {
            assert!(!root.join(path).exists(), "{path} is in the root of {pid}");
        }
        let work_dir = server.work_dir.strip_prefix("/").expect("an absolute path");
        assert!(!root.join(work_dir).exists(), "the work directory is in the root of {pid}");
    }
    assert!(users.len() >= ids.len());
}

/// Whether this user, who is nobody else and has no privilege, can read a file, or connect to a socket.
fn gets_at(uid: u32, path: &Path, is_socket: bool) -> bool {
    let mut command = Command::new("setpriv");
    command.args([format!("--reuid={uid}"), format!("--regid={uid}"), "--clear-groups".into(), "--".into()]);
    if is_socket {
        command.args(["curl", "--silent", "--max-time", "1", "http://vmm/", "--unix-socket"]).arg(path);
    } else {
        command.args(["head", "-c", "1"]).arg(path);
    }
    let tried = command.output().expect("setpriv");
    // curl's number for a connection that could not be made; who answers need not speak HTTP.
    if is_socket { tried.status.code() != Some(7) } else { tried.status.success() }
}

#[test]
fn a_vmms_user_gets_at_nothing_of_another_vmm() {
    let _host = Host::enter();
    let server = Server::start();
    let ids = [server.create(), server.create()];
    let uids = ids.each_ref().map(|id| {
        let status = fs::read_to_string(format!("/proc/{}/status", server.vmm_of(id))).expect("its status");
        let uid = status.lines().find_map(|line| line.strip_prefix("Uid:\t")).expect("a user");
        uid.split('\t').next().expect("one").parse::<u32>().expect("a number")
    });
    let (mut sockets, mut files) = (0, 0);
    for id in &ids {
        for entry in fs::read_dir(server.work_dir.join("sandboxes").join(id)).expect("its directory") {
            let entry = entry.expect("an entry");
            let kind = entry.file_type().expect("its kind");
            if !kind.is_socket() && !kind.is_file() {
                continue;
            }
            let path = entry.path();
            let other = if *id == ids[0] { uids[1] } else { uids[0] };
            assert!(!gets_at(other, &path, kind.is_socket()), "{other} gets at {}", path.display());
            // Nobody would, if it were tried in a wrong way.
            assert!(gets_at(0, &path, kind.is_socket()), "root does not get at {}", path.display());
            *(if kind.is_socket() { &mut sockets } else { &mut files }) += 1;
        }
    }
    // Of each its disk at least, and the ways to its VMM and its guest.
    assert!(sockets >= 4 && files >= 2, "{sockets} sockets, {files} files");
}
