//! Everything that dies or runs out beside the VMM ([`crate::faults`]): agent, kernel, memory, disks, descriptors. Each
//! has the right state and reason within a bounded time, and takes nobody else along.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::fs::{FallocateFlags, fallocate};
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, prlimit};
use serde_json::{Value, json};

use crate::harness::{Answer, Host, Server, answer, eventually, on_firecracker, scaled, send, signal};

/// For a sandbox to be known as failed.
const NOTICED: u64 = 20;

fn exec(server: &Server, id: &str, cmd: &str) -> Answer {
    server.post("/exec", &json!({"sandbox_id": id, "cmd": cmd}))
}

fn sandbox(server: &Server, id: &str) -> Value {
    server.get(&format!("/sandboxes/{id}"))
}

/// What `GET /sandboxes/{id}` says is the reason, once the sandbox has failed.
fn reason(server: &Server, id: &str) -> String {
    eventually("the sandbox failed", scaled(NOTICED), || sandbox(server, id)["state"] == "failed");
    sandbox(server, id)["reason"].as_str().expect("a reason").to_owned()
}

/// Runs `cmd` in one of two sandboxes, which ends it, and gives the reason. The other one is none the worse for it, and
/// there is an event.
fn ended_by(cmd: &str) -> String {
    let host = Host::enter();
    let server = Server::with(&[("MANTA_NETNS_POOL_SIZE", "0")]);
    let (doomed, other) = (server.create(), server.create());
    let began = Instant::now();
    exec(&server, &doomed, cmd).error(502, "guest_gone");
    let reason = reason(&server, &doomed);
    assert!(began.elapsed() < scaled(NOTICED), "it took {:?}", began.elapsed());
    let events = server.raw("GET", &format!("/events?sandbox_id={doomed}"), "", b"").text;
    assert!(events.contains("\"crashed\""), "{events}");
    assert_eq!(server.stdout(&other, "echo fine"), "fine");
    for id in [&doomed, &other] {
        server.destroy(id).ok();
    }
    host.await_no_slots();
    assert_eq!(server.vmms(), [0u32; 0]);
    reason
}

#[test]
fn an_agent_that_is_killed_takes_its_guest_along_and_the_kernel_says_so() {
    // No signal ends PID 1; overwriting its code does, and Linux panics without it.
    let script = "import re
maps = open('/proc/1/maps').read()
start, end = (int(x, 16) for x in re.search(r'(?m)^(\\w+)-(\\w+) r-xp .*/', maps).groups())
memory = open('/proc/1/mem', 'r+b', 0)
memory.seek(start)
memory.write(b'\\xcc' * (end - start))";
    let reason = ended_by(&format!("python3 -c \"{script}\"; sleep 60"));
    assert!(reason.contains("panic") || reason.contains("Attempted to kill init"), "{reason}");
    // By these words `xtask test` tells what the lab's emulated processor does to a guest from what Manta does.
    let ended = if on_firecracker() { "exit status: 0" } else { "ended by its guest (guest-reset)" };
    assert!(reason.starts_with(&format!("the VMM ended: {ended}; console: ")), "{reason}");
}

#[test]
fn a_guest_that_powers_off_is_noticed() {
    const OFF: &str = "python3 -c 'import ctypes; ctypes.CDLL(None).reboot(0x4321fedc)'; sleep 60";
    if on_firecracker() {
        // It has no power switch: its guest stands still, and that is noticed when nothing is done in it.
        let _host = Host::enter();
        let server = Server::with(&[("MANTA_AGENT_CALL_TIMEOUT", "5s")]);
        let (id, other) = (server.create(), server.create());
        let limited = json!({"sandbox_id": id, "cmd": OFF, "timeout_ms": scaled(1).as_millis() as u64});
        server.post("/exec", &limited).error(504, "guest_timeout");
        // Two looks, 20 s apart, each as long as a call may take.
        eventually("it is noticed", Duration::from_secs(90).max(scaled(NOTICED)), || {
            sandbox(&server, &id)["state"] == "failed"
        });
        let reason = reason(&server, &id);
        assert!(reason.contains("neither runs nor answers"), "{reason}");
        assert_eq!((server.stdout(&other, "echo fine"), server.vmms().len()), ("fine".to_owned(), 1));
        return;
    }
    let reason = ended_by(OFF);
    assert!(reason.contains("VMM ended"), "{reason}");
}

#[test]
fn a_guest_that_runs_out_of_memory_loses_the_command_and_nothing_else() {
    let _host = Host::enter();
    let server = Server::start();
    let (greedy, other) = (server.create(), server.create());
    let ran = server.sh(&greedy, "tail /dev/zero");
    assert_eq!(ran["exit_code"], 137, "{ran:#}");
    assert_eq!(server.stdout(&greedy, "echo still here"), "still here");
    assert_eq!(sandbox(&server, &greedy)["state"], "running");
    assert_eq!(server.stdout(&other, "echo fine"), "fine");
}

#[test]
fn a_guest_that_fills_its_disk_is_told_so_and_can_make_room() {
    let _host = Host::enter();
    let server = Server::with(&[("MANTA_DISK_MIB", "64"), ("MANTA_ENABLE_SNAPSHOTS", "0")]);
    let id = server.create();
    let ran = server.sh(&id, "dd if=/dev/zero of=/root/full bs=1M count=1000");
    assert_eq!(ran["exit_code"], 1, "{ran:#}");
    assert!(ran["stderr"].as_str().expect("stderr").contains("No space left"), "{ran:#}");
    let room = "rm /root/full && sync && echo room > /root/room && cat /root/room";
    assert_eq!(server.stdout(&id, room), "room");
    assert_eq!(sandbox(&server, &id)["state"], "running");
}

/// Puts the work directory on a file system of its own, which nobody else sees and which goes with the server.
const SMALL_DISK: [&str; 8] = [
    "unshare",
    "--mount",
    "--propagation",
    "private",
    "sh",
    "-c",
    "mkdir $MANTA_WORK_DIR && truncate -s 2G $MANTA_WORK_DIR.img && mkfs.ext4 -q -m 0 $MANTA_WORK_DIR.img && \
     mount -o loop $MANTA_WORK_DIR.img $MANTA_WORK_DIR && exec \"$@\"",
    "sh",
];

#[test]
fn a_full_disk_of_the_host_refuses_new_work_and_stops_nobody() {
    let _host = Host::enter();
    let server = Server::under(&SMALL_DISK, &[]);
    let (writer, other, gone) = (server.create(), server.create(), server.create());
    server.stdout(&writer, "echo kept > /root/kept; sync");
    let inside = PathBuf::from(format!("/proc/{}/root", server.pid()));
    let filler = inside.join(server.work_dir.strip_prefix("/").expect("absolute")).join("filler");
    fill(&filler);

    // What a guest writes now, its disk cannot take: an error of the guest's disk, not the end of the guest.
    let ran = server.sh(&writer, "dd if=/dev/urandom of=/root/more bs=1M count=64 conv=fsync");
    assert_ne!(ran["exit_code"], 0, "{ran:#}");
    for id in [&writer, &other] {
        assert_eq!(server.stdout(id, "echo alive"), "alive");
        assert_eq!(sandbox(&server, id)["state"], "running");
    }
    let began = Instant::now();
    // Which of the two is noticed first depends on what the journal has to write.
    let refused = server.raw("POST", "/create", "", b"");
    let codes = ["host_disk_full", "journal_unwritable"];
    assert!(refused.status == 503 && codes.iter().any(|code| refused.body["code"] == *code), "{refused:?}");
    let unsaved = server.try_snapshot(&other);
    let codes = [(507, "snapshot_storage_full"), (503, "journal_unwritable")];
    let told = |&(status, code): &(u16, &str)| unsaved.status == status && unsaved.body["code"] == code;
    assert!(codes.iter().any(told), "{unsaved:?}");
    assert_eq!(server.snapshots(), [Value::Null; 0]);
    server.get("/healthz");
    // Who goes needs no room.
    server.destroy(&gone).ok();
    assert!(began.elapsed() < scaled(20), "it took {:?}", began.elapsed());
    assert!(server.info(&gone).is_none());

    fs::remove_file(&filler).expect("make room again");
    assert_eq!(server.stdout(&other, "echo alive"), "alive");
    eventually("sandboxes can be made again", scaled(30), || {
        let created = server.raw("POST", "/create", "", b"");
        created.status == 200
            && server.destroy(created.body["sandbox_id"].as_str().expect("an id")).status == 200
    });
    assert_eq!(server.stdout(&writer, "cat /root/kept"), "kept");
}

/// Has a file take all the room there is.
fn fill(path: &PathBuf) {
    let file = File::create(path).expect("make a file");
    let (mut end, mut step) = (0, 1 << 30);
    while step >= 4096 {
        match fallocate(&file, FallocateFlags::empty(), end, step) {
            Ok(()) => end += step,
            Err(_) => step /= 2,
        }
    }
}

#[test]
fn a_server_without_descriptors_refuses_new_work_and_recovers() {
    let host = Host::enter();
    let links = host.links();
    let server = Server::with(&[("MANTA_NETNS_POOL_SIZE", "0")]);
    let (id, gone) = (server.create(), server.create());
    let pid = Pid::from_raw(i32::try_from(server.pid()).expect("a pid"));
    // Enough for a connection or two, and not for a sandbox.
    let few = u64::try_from(server.descriptors() + 4).expect("a number");
    let most = getrlimit(Resource::Nofile).maximum;
    let limit = |current| prlimit(pid, Resource::Nofile, Rlimit { current, maximum: most });
    limit(Some(few)).expect("limit the server");
    let message = server.raw("POST", "/create", "", b"").error(503, "host_full");
    assert!(message.contains("file descriptors"), "{message}");
    assert_eq!(server.stdout(&id, "echo alive"), "alive");
    // None at all to open what is to be removed with: its guest is dead all the same, and the rest goes when it can.
    limit(most).expect("lift the limit");
    let vmm = server.vmm_of(&id);
    let mut connection = TcpStream::connect(server.address).expect("connect");
    connection.set_read_timeout(Some(scaled(60))).expect("set a time limit");
    // Answered, it has been accepted.
    connection.write_all(b"HEAD /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n").expect("ask");
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        connection.read_exact(&mut byte).expect("an answer");
        head.extend(byte);
    }
    limit(Some(3)).expect("limit it to nothing");
    let body = json!({"sandbox_id": gone}).to_string();
    send(&mut connection, "POST", "/destroy", "content-type: application/json\r\n", body.as_bytes());
    answer(connection).ok();
    assert_eq!((server.vmms(), server.sandbox_dirs()), (vec![vmm], 2));
    limit(most).expect("lift the limit");
    eventually("nothing is left of what was destroyed meanwhile", scaled(30), || {
        let groups = server.cgroups();
        let groups = groups.iter().any(|dir| dir.ends_with(&gone));
        server.sandbox_dirs() == 1 && !groups && host.links().len() == links.len() + 1
    });
    let next = server.create();
    assert_eq!(server.stdout(&next, "echo fine"), "fine");
    assert_eq!(server.stdout(&id, "echo alive"), "alive");
    for id in [&id, &next] {
        server.destroy(id).ok();
    }
    host.await_no_slots();
    assert_eq!(server.vmms(), [0u32; 0]);
    assert_eq!(server.sandbox_dirs(), 0);
}

#[test]
fn a_vmm_that_stands_still_times_out_and_can_be_destroyed() {
    let _host = Host::enter();
    let server = Server::with(&[("MANTA_AGENT_CALL_TIMEOUT", "5s")]);
    let (frozen, other) = (server.create(), server.create());
    let vmm = server.vmm_of(&frozen);
    signal(vmm, Signal::STOP);
    let began = Instant::now();
    let limited = json!({"sandbox_id": frozen, "cmd": "echo late", "timeout_ms": 500});
    server.post("/exec", &limited).error(504, "guest_timeout");
    assert!(began.elapsed() < scaled(20), "it took {:?}", began.elapsed());
    assert_eq!(server.stdout(&other, "echo fine"), "fine");
    signal(vmm, Signal::CONT);
    eventually("the guest answers again", scaled(30), || {
        exec(&server, &frozen, "echo back").body["stdout"] == "back\n"
    });
    signal(vmm, Signal::STOP);
    let began = Instant::now();
    server.destroy(&frozen).ok();
    assert!(began.elapsed() < scaled(10), "it took {:?}", began.elapsed());
    assert_eq!(server.vmms().len(), 1);
}

#[test]
fn a_server_whose_log_nobody_reads_serves_on() {
    let _host = Host::enter();
    // Who would read its standard error has gone.
    let server =
        Server::under(&["bash", "-c", "exec \"$@\" 2> >(exit 0)", "bash"], &[("MANTA_LOG", "trace")]);
    let id = server.create();
    assert_eq!(server.stdout(&id, "echo fine"), "fine");
    server.destroy(&id).ok();
    assert_eq!(server.get("/sandboxes"), json!({"sandboxes": []}));
}
