//! What a guest's root tries on the network with frames of its own making, and floods. `network.rs` has what programs
//! try through the guest's kernel. Each attack is seen at the tap before it is said to have led nowhere.

use std::net::{Ipv4Addr, UdpSocket};
use std::time::Instant;

use manta_host::NetNs;
use serde_json::json;

use crate::harness::{HOST_ADDRESS, Host, INTERNET, SILENT, Server, eventually, scaled};

/// The frames, one function for each group.
const FRAMES: &str = include_str!("hostile/frames.py");
/// Where they are sent to.
const PORT: u16 = 9999;
/// Where one is sent to behind each group, by the same way: once it has left the host, all before it went where they go.
const LAST: u16 = 9998;

/// A sandbox that attacks, one beside it, and counters all along the way.
struct Field {
    attacker: String,
    neighbour: String,
    /// The namespace of the attacker's VMM, in which its tap is.
    slot: NetNs,
    own: Ipv4Addr,
    other: Ipv4Addr,
}

/// Packets counted so far: from the guest, to the host, to the host itself, out of the host, to the neighbour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Counts {
    tap: u64,
    host: u64,
    input: u64,
    left: u64,
    neighbour: u64,
}

impl Field {
    fn new(host: &Host, server: &Server) -> Self {
        let attacker = server.create();
        let vmms = server.vmms();
        let slot = NetNs::of_process(vmms[0]).expect("the namespace of the VMM");
        let neighbour = server.create();
        let (own, other) = (server.address_of(&attacker), server.address_of(&neighbour));
        let field = Self { own, other, attacker, neighbour, slot };
        let (from, to) = (link(field.own), link(field.other));
        field
            .slot
            .run(|| {
                host.nft(
                    "add table netdev probe; add counter netdev probe tap; \
                     add chain netdev probe seen { type filter hook ingress device tap0 priority -500; }; \
                     add rule netdev probe seen counter name tap",
                )
            })
            .expect("count in the slot");
        host.nft(&format!(
            "add table inet probe; \
             add counter inet probe host; add counter inet probe input; add counter inet probe left; \
             add counter inet probe neighbour; \
             add chain inet probe seen {{ type filter hook prerouting priority -500; }}; \
             add rule inet probe seen iifname {from} counter name host; \
             add chain inet probe in {{ type filter hook input priority 500; }}; \
             add rule inet probe in iifname {from} counter name input; \
             add chain inet probe out {{ type filter hook postrouting priority 500; }}; \
             add rule inet probe out meta nfproto ipv4 oifname up0 counter name left; \
             add rule inet probe out oifname {to} counter name neighbour; \
             add counter inet probe last; \
             add rule inet probe out oifname up0 udp dport {LAST} counter name last"
        ));
        let written = server.post(
            "/exec",
            &json!({"sandbox_id": field.attacker, "argv": ["sh", "-c", "printf %s \"$1\" > /root/frames.py", "sh", FRAMES]}),
        );
        assert_eq!(written.ok()["exit_code"], 0);
        field
    }

    fn counts(&self, host: &Host) -> Counts {
        let here = |name: &str| here(host, name);
        let tap = self.slot.run(|| counter(&host.nft("list counter netdev probe tap")));
        Counts {
            tap: tap.expect("count in the slot"),
            host: here("host"),
            input: here("input"),
            left: here("left"),
            neighbour: here("neighbour"),
        }
    }

    /// Sends the frames of a group; says how many.
    fn send(&self, server: &Server, group: &str, port: u16) -> u64 {
        let Self { own, other, .. } = self;
        let cmd = format!("python3 /root/frames.py {group} {INTERNET} {HOST_ADDRESS} {own} {other} {port}");
        server.stdout(&self.attacker, &cmd).parse().expect("a number")
    }

    /// Sends the frames of a group, and waits until all are seen at the tap and went on as far as they do; says what
    /// was counted by them.
    fn attack(&self, host: &Host, server: &Server, group: &str) -> Counts {
        let (before, last) = (self.counts(host), here(host, "last"));
        let sent = self.send(server, group, PORT);
        assert!(sent > 0);
        eventually("all frames came to the tap", scaled(20), || self.counts(host).tap >= before.tap + sent);
        assert_eq!(self.send(server, "proper", LAST), 1);
        eventually("the last has left the host", scaled(20), || here(host, "last") > last);
        let after = self.counts(host);
        // Less the last.
        Counts {
            tap: after.tap - before.tap - 1,
            host: after.host - before.host - 1,
            input: after.input - before.input,
            left: after.left - before.left - 1,
            neighbour: after.neighbour - before.neighbour,
        }
    }
}

#[test]
fn no_frame_that_a_guest_can_make_leads_anywhere_but_to_the_internet() {
    let host = Host::enter();
    let server = Server::start();
    let field = Field::new(&host, &server);
    // Whoever is on the host hears what is sent to any of its addresses.
    let here = UdpSocket::bind(("0.0.0.0", PORT)).expect("listen on the host");
    here.set_nonblocking(true).expect("non-blocking");

    let proper = field.attack(&host, &server, "proper");
    assert_eq!((proper.host, proper.left), (1, 1), "what may pass does, and is counted: {proper:?}");
    for group in ["spoofed", "ipv6", "malformed"] {
        let counts = field.attack(&host, &server, group);
        let past = Counts { tap: 0, ..counts };
        assert_eq!(past, Counts { tap: 0, host: 0, input: 0, left: 0, neighbour: 0 }, "{group}");
    }
    let counts = field.attack(&host, &server, "forbidden");
    assert_eq!((counts.input, counts.left, counts.neighbour), (0, 0, 0), "{counts:?}");
    assert!(counts.host > 0, "nothing of it came to the host's rules: {counts:?}");
    assert!(here.recv(&mut [0; 64]).is_err(), "a packet arrived at the host");

    // The way out is as it was: nothing that was sent has changed what the slot knows.
    let proper = field.attack(&host, &server, "proper");
    assert_eq!((proper.host, proper.left), (1, 1), "{proper:?}");
    assert_eq!(server.stdout(&field.neighbour, "echo works"), "works");
    server.destroy(&field.attacker).ok();
    let gone = link(field.own);
    eventually("its slot is gone", scaled(20), || !host.links().contains(&gone));
    assert!(!host.ruleset().contains(&format!("\"{gone}\" . ")), "{}", host.ruleset());
    eventually("its connections are forgotten", scaled(20), || {
        host.tracked_of(field.own).is_none_or(|left| left == 0)
    });
}

#[test]
fn a_flood_of_connections_is_the_flooders_own_trouble() {
    const MOST: usize = 64;
    let host = Host::enter();
    let server = Server::with(&[("MANTA_NET_MAX_CONNECTIONS", "64")]);
    let neighbour = server.create();
    let fetch = |id: &str| server.sh(id, &format!("curl -sS --max-time 4 {}", host.url(INTERNET)));
    let udp = "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n\
               for port in range(10000, 13000): s.sendto(b\"x\", (to, port))";
    // Nobody listens there, and nobody says so: they stay half-open.
    let tcp = "all = [socket.socket() for _ in range(900)]\n\
               for port, s in enumerate(all, 10000):\n s.setblocking(False)\n s.connect_ex((to, port))";
    for (kind, connect) in [("UDP", udp), ("TCP", tcp)] {
        let flooder = server.create();
        let address = server.address_of(&flooder);
        assert_eq!(fetch(&flooder)["exit_code"], 0);
        server.stdout(&flooder, &format!("python3 -c 'import socket\nto = \"{SILENT}\"\n{connect}'"));
        // Closed ones stay in the table for a while, and are not counted as open.
        let tracked = host.tracked_of(address).unwrap_or_else(|| {
            eprintln!("this kernel does not list its connections: those of the host are not counted");
            MOST
        });
        assert!((MOST / 2..=MOST + 8).contains(&tracked), "{kind}: {tracked} connections");
        assert_ne!(
            fetch(&flooder)["exit_code"],
            0,
            "{kind}: there is no room for another connection of its own"
        );
        let began = Instant::now();
        assert_eq!(fetch(&neighbour)["stdout"], "internet", "{kind}");
        assert!(began.elapsed() < scaled(15), "{kind}");
        server.destroy(&flooder).ok();
        eventually("its connections are forgotten", scaled(20), || {
            host.tracked_of(address).is_none_or(|left| left == 0)
        });
    }
}

/// The link of a sandbox on the host, of which this is the address.
fn link(address: Ipv4Addr) -> String {
    format!("mt-{}", (u32::from(address) - u32::from(Ipv4Addr::new(198, 18, 0, 0))) / 2)
}

/// What a counter of the host says.
fn here(host: &Host, name: &str) -> u64 {
    counter(&host.nft(&format!("list counter inet probe {name}")))
}

/// The packets of a counter as listed.
fn counter(listed: &str) -> u64 {
    let rest = listed.split("packets ").nth(1).expect("a counter");
    rest.split(' ').next().expect("a number").parse().expect("a number")
}
