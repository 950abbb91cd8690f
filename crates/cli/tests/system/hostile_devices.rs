//! What a guest's root does to its memory, processors, disk and the agent's port: it hurts itself. The server and the
//! sandbox beside it go on as if nothing were, and destroying it leaves nothing.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::harness::{Host, Server, eventually, on_firecracker, scaled};

/// What a VMM may take beside its guest's memory here, KiB: QEMU's cache of translated code most of all.
const VMM_OVERHEAD_KIB: u64 = 200 * 1024;
/// Of a guest, by default, KiB.
const MEMORY_KIB: u64 = 256 * 1024;

/// Runs `cmd` in one sandbox, whatever becomes of it, while another is asked to answer promptly; then destroys both.
fn hurts_itself_only(cmd: &str, settings: &[(&str, &str)], check: impl FnOnce(&Server, &str)) {
    let host = Host::enter();
    // No slots that wait, so that those in use can be counted.
    let settings: Vec<_> = settings.iter().copied().chain([("MANTA_NETNS_POOL_SIZE", "0")]).collect();
    let server = Server::with(&settings);
    let (victim, neighbour) = (server.create(), server.create());
    let body = json!({"sandbox_id": victim, "cmd": cmd, "timeout_ms": scaled(6).as_millis() as u64});
    std::thread::scope(|scope| {
        let bomb = scope.spawn(|| server.post("/exec", &body));
        let mut asked = 0;
        while !bomb.is_finished() || asked == 0 {
            let began = Instant::now();
            assert_eq!(server.stdout(&neighbour, "echo works"), "works");
            assert!(began.elapsed() < scaled(20), "the neighbour took {:?}", began.elapsed());
            asked += 1;
        }
        // Whatever it says, it is an answer.
        let answer = bomb.join().expect("an answer");
        eprintln!("the command was answered: {answer:?}; the neighbour {asked} times");
    });
    check(&server, &victim);
    assert_eq!(server.stdout(&neighbour, "echo works"), "works");
    let answer = server.destroy(&victim);
    eprintln!("destroying it was answered: {answer:?}");
    server.destroy(&neighbour).ok();
    host.await_no_slots();
    eventually("nothing is left", scaled(20), || server.vmms().is_empty() && server.sandbox_dirs() == 0);
}

/// What a process has in memory, KiB.
fn resident_kib(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0)
}

#[test]
fn a_fork_bomb_is_the_guests_own_trouble() {
    let bomb =
        "python3 -c 'import os, time\nwhile True:\n try:\n  os.fork()\n except OSError:\n  time.sleep(0.1)'";
    hurts_itself_only(bomb, &[], |server, _| {
        assert_eq!(server.vmms().len(), 2, "what it forked is not on the host");
    });
}

#[test]
fn a_memory_bomb_takes_no_more_than_the_guests_memory() {
    let bomb = "python3 -c 'held = []\nwhile True: held.append(b\"x\" * (1 << 20))'";
    hurts_itself_only(bomb, &[], |server, victim| {
        for pid in server.vmms() {
            let resident = resident_kib(pid);
            assert!(resident <= MEMORY_KIB + VMM_OVERHEAD_KIB, "{resident} KiB");
        }
        // The guest's kernel killed it, not the agent.
        assert_eq!(server.stdout(victim, "echo lives"), "lives");
    });
}

#[test]
fn a_disk_bomb_takes_no_more_than_the_guests_disk() {
    const DISK_MIB: u64 = 64;
    // What is on a disk of another size is booted, not restored.
    let settings = [("MANTA_DISK_MIB", "64"), ("MANTA_ENABLE_SNAPSHOTS", "0")];
    let bomb = "dd if=/dev/zero of=/root/bomb bs=1M; sync; i=0; while [ $i -lt 50 ] && : > /root/file$i; do i=$((i+1)); done";
    hurts_itself_only(bomb, &settings, |server, victim| {
        assert_eq!(server.stdout(victim, "echo lives"), "lives");
        let taken = allocated(&server.work_dir.join("sandboxes")) >> 20;
        // The other's is nearly empty.
        assert!((DISK_MIB / 2..=DISK_MIB + 16).contains(&taken), "{taken} MiB");
    });
}

#[test]
fn limits_of_disks_hold_also_for_what_was_saved_without_them() {
    let _host = Host::enter();
    let server = Server::start();
    let id = server.create();
    let snapshot = server.snapshot(&id);
    let dir = server.end();
    // 4 MiB/s, of which 20 MiB may go at once; 60 MiB take ten seconds then.
    let server = Server::in_dir(dir, &[("MANTA_DISK_MAX_KIB_PER_S", "4096")]);
    let id = server.restore(&snapshot);
    let write = |mib: u32| {
        let began = Instant::now();
        server.stdout(&id, &format!("dd if=/dev/zero of=/root/file bs=1M count={mib} conv=fsync 2>&1"));
        began.elapsed()
    };
    let short = write(1);
    let long = write(60);
    assert!(long >= Duration::from_secs(7), "60 MiB in {long:?}");
    assert!(short < long / 2, "1 MiB in {short:?}");
}

/// Takes what PID 1 has open to the host out of its hands, and writes garbage to it: first what is no frame at all, then
/// an endless one.
const GARBAGE: &str = r#"
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
pidfd = libc.syscall(434, 1, 0)
assert pidfd >= 0, os.strerror(ctypes.get_errno())
taken = 0
for name in os.listdir("/proc/1/fd"):
    try:
        target = os.readlink("/proc/1/fd/" + name)
    except OSError:
        continue
    if not (target.startswith("/dev/vport") or target.startswith("socket:")):
        continue
    fd = libc.syscall(438, pidfd, int(name), 0)
    if fd < 0:
        continue
    taken += 1
    os.set_blocking(fd, True)
    for block in (bytes(range(256)) * 256, b"\x01" * 65536):
        for _ in range(BLOCKS):
            try:
                os.write(fd, block)
            except OSError:
                break
assert taken, "PID 1 has nothing open to the host"
"#;

#[test]
fn garbage_on_the_agents_port_ends_that_sandbox_and_nothing_else() {
    // All of it within the command's time.
    let garbage = GARBAGE.replace("BLOCKS", if on_firecracker() { "64" } else { "512" });
    let cmd = format!("cat > /root/garbage.py <<'END'\n{garbage}\nEND\npython3 /root/garbage.py");
    hurts_itself_only(&cmd, &[], |server, victim| {
        let memory = resident_kib(server.pid());
        assert!(memory <= 256 * 1024, "the server took in {memory} KiB");
        // Its session was ended for it, so the garbage did arrive.
        let gone = server.info(victim).is_none_or(|info| info["state"] != "running");
        let refused =
            gone || server.post("/exec", &json!({"sandbox_id": victim, "cmd": "true"})).status != 200;
        assert!(refused, "the sandbox works on: {:?}", server.info(victim));
    });
}

/// Bytes that VMMs' own files below a directory take. Those of root are links to what all have in common; a file of two
/// names is one.
fn allocated(dir: &Path) -> u64 {
    let mut sizes = BTreeMap::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            match entry.metadata() {
                Ok(found) if found.is_dir() => dirs.push(entry.path()),
                Ok(found) if found.uid() != 0 => drop(sizes.insert(found.ino(), found.blocks() * 512)),
                _ => {}
            }
        }
    }
    sizes.values().sum()
}
