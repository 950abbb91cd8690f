//! What the server after a killed one can take over: processes and network slots. The killed server is a process of
//! its own: this program again, told by [`ROLE`] what to do until it is killed.

#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::ffi::OsString;
use std::io::{BufRead, BufReader, ErrorKind};
use std::net::UdpSocket;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use manta_host::{
    Credentials, Ended, HostNetwork, NetError, NetNs, NetSlot, Process, ProcessId, Spawn, sweep_network,
};
use support::guest::Guest;
use support::internet::{HOST, Internet, PORT, SERVER, denied_hosts, listen_in, receive};
use support::{in_own_netns, ip, nft, nft_ruleset, sysctl};

const ROLE: &str = "MANTA_TEST_ROLE";
/// Longer than anything takes here; reached only when a test fails.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The slots the killed server had, each with a process in it.
const SLOTS: [u16; 4] = [3, 4, 5, 6];

fn start(script: &str, netns: Option<&NetNs>) -> Process {
    let args = ["-c", script].map(OsString::from);
    Process::spawn(Spawn {
        program: Path::new("/bin/sh"),
        args: &args,
        dir: Path::new("/"),
        netns,
        credentials: &Credentials { uid: 0, gid: 0, groups: Vec::new() },
        fds: Vec::new(),
        confinement: manta_host::process::Confinement::default(),
    })
    .unwrap()
}

/// Does nothing as a test. In its role it is a server, which says what it has started and waits to be killed.
#[test]
fn a_server_to_be_killed() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let (mut slots, mut processes) = (Vec::new(), Vec::new());
    if role == "network" {
        let host = Arc::new(HostNetwork::set_up(Some("egress0")).unwrap());
        for index in SLOTS {
            let slot = NetSlot::create(&host, index, 0).unwrap();
            processes.push(start("exec sleep 600", Some(slot.netns())));
            slots.push(slot);
        }
    } else {
        processes.push(start("exec sleep 600", None));
        let ended = start("exit 0", None);
        // Not reaped.
        rustix::event::poll(
            &mut [rustix::event::PollFd::from_borrowed_fd(ended.pidfd(), rustix::event::PollFlags::IN)],
            None,
        )
        .unwrap();
        processes.push(ended);
    }
    for process in &processes {
        println!("\nid {} {}", process.id().pid, process.id().start_ticks);
    }
    println!("\nready");
    std::io::stdin().read_line(&mut String::new()).unwrap();
    panic!("not killed");
}

/// A server in its role, in the network namespace of the calling thread.
struct Server {
    child: Child,
    ids: Vec<ProcessId>,
}

impl Server {
    fn start(role: &str) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "a_server_to_be_killed", "--nocapture"])
            .env(ROLE, role)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut ids = Vec::new();
        for line in BufReader::new(child.stdout.take().unwrap()).lines() {
            match line.unwrap().split(' ').collect::<Vec<_>>()[..] {
                ["id", pid, ticks] => {
                    ids.push(ProcessId { pid: pid.parse().unwrap(), start_ticks: ticks.parse().unwrap() });
                }
                ["ready"] => return Self { child, ids },
                _ => {}
            }
        }
        panic!("the server ended");
    }

    /// Kills it, as by `kill -9`; says what it had started.
    fn kill(mut self) -> Vec<ProcessId> {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        std::mem::take(&mut self.ids)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_process_of_a_killed_server_is_taken_over_and_ends_with_its_guard() {
    let server = Server::start("processes");
    let zombie = server.ids[1];
    assert!(Process::adopt(&zombie).unwrap().is_none(), "a zombie is gone");
    let id = server.kill()[0];

    for other in [
        ProcessId { start_ticks: id.start_ticks + 1, ..id },
        ProcessId { start_ticks: 0, ..id },
        ProcessId { pid: 0, ..id },
        ProcessId { pid: u32::MAX, ..id },
    ] {
        assert!(Process::adopt(&other).unwrap().is_none(), "{other:?} is nobody");
    }
    let process = Process::adopt(&id).unwrap().expect("it lives");
    assert_eq!((process.id(), process.pid()), (id, id.pid));
    assert_eq!(process.try_wait().unwrap(), None);
    assert_eq!(process.wait_timeout(Duration::from_millis(1)).unwrap(), None);
    assert_eq!(process.output(), "");

    let other = Process::adopt(&id).unwrap().expect("it lives");
    process.kill().unwrap();
    assert_eq!(process.wait_timeout(TIMEOUT).unwrap(), Some(Ended::Unknown));
    assert_eq!(process.try_wait().unwrap(), Some(Ended::Unknown), "remembered");
    process.kill().unwrap();
    assert_eq!(other.try_wait().unwrap(), Some(Ended::Unknown), "whoever killed it");
    assert!(Process::adopt(&id).unwrap().is_none(), "it is gone");

    let id = Server::start("processes").kill()[0];
    let watch = Process::adopt(&id).unwrap().unwrap();
    drop(Process::adopt(&id).unwrap().unwrap());
    assert_eq!(watch.try_wait().unwrap(), Some(Ended::Unknown), "dropped means killed");
}

#[test]
fn a_slot_of_a_killed_server_is_taken_over_or_removed() {
    in_own_netns(|| {
        let internet = Internet::connect();
        ip("link add egress1 type veth peer name inet1");
        let processes: Vec<Process> = {
            let ids = Server::start("network").kill();
            ids.iter().map(|id| Process::adopt(id).unwrap().unwrap()).collect()
        };
        let here = start("exec sleep 600", None);

        // Number 6 is swept, 9 is a number that nobody had.
        let keep = [3, 4, 5, 9];
        sweep_network(&keep).unwrap();
        assert_eq!(interfaces(), [3, 4, 5]);
        assert!(ruleset().contains("mt-3"), "what is kept is confined, and let out");
        assert_eq!(sysctl("ipv4/conf/egress0/forwarding"), "1");

        let failed = HostNetwork::take_over(Some("none0"), &keep).unwrap_err();
        assert!(matches!(failed, NetError::NoInterface(_)), "{failed:?}");
        drop(HostNetwork::take_over(Some("egress0"), &keep).unwrap());
        assert!(ruleset().contains("mt-3"), "a start that fails leaves them for the next");
        assert_eq!(interfaces(), [3, 4, 5]);

        let host = Arc::new(HostNetwork::take_over(Some("egress0"), &keep).unwrap());
        nft("delete table inet manta");
        assert!(host.restore().unwrap());
        assert!(keep.iter().all(|index| ruleset().contains(&format!("\"mt-{index}\""))), "{}", ruleset());
        let refused = |index, process| match NetSlot::adopt(&host, index, process) {
            Err(NetError::NotTheSlot { index: of, reason }) if of == index => reason,
            other => panic!("{other:?}"),
        };
        assert!(refused(6, &processes[3]).contains("kept"));
        assert!(refused(4, &processes[0]).contains("another slot"));
        assert!(refused(5, &here).contains("host's"));
        assert!(refused(9, &processes[0]).contains("gone"));
        assert_eq!(interfaces(), [3], "who is refused is removed");
        for index in [4, 5, 6, 9] {
            assert!(!ruleset().contains(&format!("mt-{index}")), "mt-{index}");
        }
        nft("flush ruleset");
        let mut slot = NetSlot::adopt(&host, 3, &processes[0]).unwrap();
        assert!(host.restore().unwrap());
        assert!(ruleset().contains("\"mt-3\"") && !ruleset().contains("\"mt-4\""), "{}", ruleset());
        assert!(refused(3, &processes[0]).contains("kept"), "once only");
        assert!(matches!(slot.recycle(), Err(NetError::NotClean(_))));
        assert!(slot.netns().is(&NetNs::of_process(processes[0].pid()).unwrap()).unwrap());

        let guest = Guest::boot(&slot, true);
        traffic_passes_while_servers_change(&guest, &internet, &slot);
        nothing_else_passes_while_rules_change(&guest, &internet, &slot);
        drop(guest);
        slot.destroy().unwrap();
        assert_eq!(interfaces(), []);

        // By another way out, and its process has ended.
        let ids = Server::start("network").kill();
        let other = HostNetwork::take_over(Some("egress1"), &[3, 4]).unwrap();
        let rules = ruleset();
        assert!(rules.contains("egress1") && rules.contains("mt-4") && !rules.contains("egress0"), "{rules}");
        assert_eq!(sysctl("ipv4/conf/egress0/forwarding"), "0");
        assert_eq!(sysctl("ipv4/conf/egress1/forwarding"), "1");
        let process = Process::adopt(&ids[0]).unwrap().unwrap();
        process.kill().unwrap();
        process.wait_timeout(TIMEOUT).unwrap().unwrap();
        let other = Arc::new(other);
        let gone = NetSlot::adopt(&other, 3, &process).unwrap_err();
        assert!(matches!(gone, NetError::NetNs(_) | NetError::NotTheSlot { .. }), "{gone:?}");
        NetSlot::discard(&other, 4).unwrap();
        NetSlot::discard(&other, 4).unwrap();
        assert!(!interfaces().contains(&3) && !interfaces().contains(&4));
        Arc::into_inner(other).unwrap().tear_down().unwrap();
        for id in &ids[1..] {
            drop(Process::adopt(id).unwrap());
        }
        sweep_network(&[]).unwrap();
        assert_eq!(interfaces(), []);
    });
}

/// A guest's packets, each awaited, while one server after the other dies and takes over.
fn traffic_passes_while_servers_change(guest: &Guest, internet: &Internet, slot: &NetSlot) {
    let far = internet.netns.run(|| UdpSocket::bind((SERVER, PORT))).unwrap().unwrap();
    far.set_read_timeout(Some(TIMEOUT)).unwrap();
    let near = guest.netns.run(|| UdpSocket::bind(("0.0.0.0", 5000))).unwrap().unwrap();
    near.set_read_timeout(Some(TIMEOUT)).unwrap();
    let mut rounds = 0;
    while_servers_change(["egress0", "egress0"], slot, || {
        let text = rounds.to_string();
        near.send_to(text.as_bytes(), (SERVER, PORT)).unwrap();
        let (heard, from) = receive(&far);
        assert_eq!(heard, text);
        far.send_to(b"back", from).unwrap();
        assert_eq!(receive(&near).0, "back");
        rounds += 1;
    });
    println!("{rounds} datagrams there and back");
}

/// A guest tries all the time, while one server after the other takes over with other rules.
fn nothing_else_passes_while_rules_change(guest: &Guest, internet: &Internet, slot: &NetSlot) {
    let denied = denied_hosts()[0];
    let behind = internet.netns.run(|| UdpSocket::bind((denied, PORT))).unwrap().unwrap();
    let here = listen_in(&NetNs::current().unwrap());
    let near = guest.netns.run(|| UdpSocket::bind(("0.0.0.0", 5001))).unwrap().unwrap();
    let mut sent = 0;
    while_servers_change(["egress1", "egress0"], slot, || {
        for to in [denied, HOST] {
            near.send_to(b"denied", (to, PORT)).unwrap();
            sent += 1;
        }
    });
    println!("{sent} datagrams sent to where none may get");
    for (socket, what) in [(behind, "denied"), (here, "the host")] {
        socket.set_nonblocking(true).unwrap();
        let none = socket.recv_from(&mut [0; 16]).map_err(|error| error.kind());
        assert_eq!(none, Err(ErrorKind::WouldBlock), "{what}");
    }
    // And then it is as it should be.
    let far = internet.netns.run(|| UdpSocket::bind((SERVER, PORT))).unwrap().unwrap();
    far.set_read_timeout(Some(TIMEOUT)).unwrap();
    near.send_to(b"proper", (SERVER, PORT)).unwrap();
    assert_eq!(receive(&far).0, "proper");
}

/// Does something again and again while server after server takes over `slot`, each with the next of `egress`.
fn while_servers_change(egress: [&str; 2], slot: &NetSlot, mut act: impl FnMut()) {
    let netns = NetNs::current().unwrap();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for egress in egress.into_iter().cycle().take(200) {
                let network = netns.run(|| HostNetwork::take_over(Some(egress), &[slot.index()]));
                // With the slot not taken back it leaves all as it is.
                drop(network.unwrap().unwrap());
            }
            over.store(true, Ordering::Relaxed);
        });
        act();
        while !over.load(Ordering::Relaxed) {
            act();
        }
    });
}

fn ruleset() -> String {
    nft_ruleset(&NetNs::current().unwrap())
}

/// The slots that have an interface on the host.
fn interfaces() -> Vec<u16> {
    let list = ip("-brief link");
    let mut slots: Vec<u16> = list
        .lines()
        .filter_map(|line| line.strip_prefix("mt-")?.split(['@', ' ']).next()?.parse().ok())
        .collect();
    slots.sort_unstable();
    slots
}
