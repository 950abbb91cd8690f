//! A network namespace that plays the machine, and one that plays the internet.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::{AsFd, AsRawFd};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use manta_host::NetNs;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::{eventually, scaled};

/// An address out there that every sandbox may reach (TEST-NET-2, RFC 5737).
pub(crate) const INTERNET: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);

/// One that every sandbox may call, and where nobody answers.
pub(crate) const SILENT: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 99);

/// One address in each range that no sandbox may reach; they all exist out there.
pub(crate) const DENIED: [Ipv4Addr; 8] = [
    Ipv4Addr::new(10, 1, 2, 3),
    Ipv4Addr::new(100, 64, 0, 5),
    Ipv4Addr::new(169, 254, 169, 254),
    Ipv4Addr::new(172, 20, 5, 5),
    Ipv4Addr::new(192, 0, 0, 9),
    Ipv4Addr::new(192, 168, 7, 7),
    Ipv4Addr::new(198, 19, 200, 1),
    Ipv4Addr::new(240, 1, 1, 1),
];

/// The machine's own address on the way out; the host must not be reachable on it.
pub(crate) const HOST_ADDRESS: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);

/// The calling thread's new surroundings. All of it vanishes with the thread and its children.
pub(crate) struct Host {
    /// Who was called by whom, out there: (called, caller).
    calls: Arc<Mutex<BTreeSet<(Ipv4Addr, Ipv4Addr)>>>,
    port: u16,
    _internet: NetNs,
}

impl Host {
    /// Moves the calling thread, and what it will start, into a host of its own.
    pub(crate) fn enter() -> Self {
        let host = NetNs::create().expect("a network namespace; the tests need root");
        move_into_link_name_space(host.as_fd(), Some(LinkNameSpaceType::Network))
            .expect("enter the namespace");
        let internet = NetNs::create().expect("a second network namespace");
        ip("link set lo up");
        let target = format!("/proc/{}/fd/{}", std::process::id(), internet.as_fd().as_raw_fd());
        ip(&format!("link add up0 type veth peer name net0 netns {target}"));
        ip(&format!("addr add {HOST_ADDRESS}/24 dev up0"));
        ip("link set up0 up");
        ip("route add default via 203.0.113.2");
        let calls = Arc::new(Mutex::new(BTreeSet::new()));
        let listener = internet
            .run(|| {
                ip("link set lo up");
                ip("addr add 203.0.113.2/24 dev net0");
                ip("link set net0 up");
                for address in DENIED.iter().chain([&INTERNET]) {
                    ip(&format!("addr add {address}/32 dev lo"));
                }
                TcpListener::bind("0.0.0.0:0").expect("listen in the pretend internet")
            })
            .expect("run in the pretend internet");
        let port = listener.local_addr().expect("an address").port();
        let log = calls.clone();
        std::thread::spawn(move || serve(&listener, &log));
        Self { calls, port, _internet: internet }
    }

    /// A URL out there.
    pub(crate) fn url(&self, address: Ipv4Addr) -> String {
        format!("http://{address}:{}/", self.port)
    }

    /// Who was called by whom.
    pub(crate) fn calls(&self) -> BTreeSet<(Ipv4Addr, Ipv4Addr)> {
        self.calls.lock().expect("not poisoned").clone()
    }

    /// Names of the links in this host.
    pub(crate) fn links(&self) -> BTreeSet<String> {
        let listed = output("ip", &["-o", "link", "show"]);
        listed
            .lines()
            .filter_map(|line| line.split(": ").nth(1))
            .map(|name| name.split('@').next().unwrap_or(name).to_owned())
            .collect()
    }

    /// Waits until there is no network slot: they go behind the answer to a destroy, and to a create that failed.
    pub(crate) fn await_no_slots(&self) {
        eventually("no sandbox has a link", scaled(20), || {
            !self.links().iter().any(|link| link.starts_with("mt-"))
        });
    }

    /// The nftables rules in this host.
    pub(crate) fn ruleset(&self) -> String {
        output("nft", &["list", "ruleset"])
    }

    /// Runs the `nft` program in the calling thread's namespace; says what it printed.
    pub(crate) fn nft(&self, commands: &str) -> String {
        output("nft", &[commands])
    }

    /// How many connections of this sender the calling thread's namespace tracks; `None` if the kernel does not say.
    pub(crate) fn tracked_of(&self, sender: Ipv4Addr) -> Option<usize> {
        let table = std::fs::read_to_string("/proc/thread-self/net/nf_conntrack").ok()?;
        let sender = format!("{sender} ");
        let begun = |line: &&str| line.split("src=").nth(1).is_some_and(|first| first.starts_with(&sender));
        Some(table.lines().filter(begun).count())
    }

    /// Whether the egress interface forwards.
    pub(crate) fn forwarding(&self) -> String {
        output("cat", &["/proc/sys/net/ipv4/conf/up0/forwarding", "/proc/sys/net/ipv4/ip_forward"])
    }
}

/// Answers `internet` to everybody, until the process ends.
fn serve(listener: &TcpListener, calls: &Mutex<BTreeSet<(Ipv4Addr, Ipv4Addr)>>) {
    for stream in listener.incoming() {
        let Ok(mut stream) = stream else { continue };
        if let (Ok(SocketAddr::V4(called)), Ok(SocketAddr::V4(caller))) =
            (stream.local_addr(), stream.peer_addr())
        {
            calls.lock().expect("not poisoned").insert((*called.ip(), *caller.ip()));
        }
        let _ = stream.set_read_timeout(Some(Duration::from_secs(5)));
        let _ = stream.read(&mut [0; 4096]);
        let _ = stream.write_all(b"HTTP/1.0 200 OK\r\ncontent-length: 8\r\n\r\ninternet");
    }
}

fn ip(arguments: &str) {
    output("ip", &arguments.split(' ').collect::<Vec<_>>());
}

fn output(program: &str, arguments: &[&str]) -> String {
    let run = Command::new(program).args(arguments).output();
    let run = run.unwrap_or_else(|error| panic!("{program} is needed by the tests: {error}"));
    assert!(run.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&run.stderr));
    String::from_utf8_lossy(&run.stdout).into_owned()
}
