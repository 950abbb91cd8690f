//! What one sandbox may use of the network, with real packets: its neighbour and the host's tables notice nothing.

#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::fs;
use std::net::{Ipv4Addr, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use manta_host::net::{GUEST_MAC, NetLimits};
use manta_host::{HostNetwork, NetNs, NetSlot};
use support::frame::Datagram;
use support::guest::Guest;
use support::internet::{Internet, PORT, SERVER, TIMEOUT, receive};
use support::{in_own_netns, nft, nft_ruleset, set_sysctl};

const GUEST_ADDRESS: Ipv4Addr = Ipv4Addr::new(172, 16, 0, 2);
const PROPER: Datagram<'_> =
    Datagram { mac: GUEST_MAC, from: GUEST_ADDRESS, to: SERVER, port: PORT, text: "proper" };

/// Runs `test` with two slots of these limits and the internet; the test gives the slots back.
fn with_slots(limits: NetLimits, test: impl FnOnce(&Internet, [NetSlot; 2]) + Send) {
    in_own_netns(|| {
        let internet = Internet::connect();
        let host = HostNetwork::set_up(Some("egress0")).unwrap().with_limits(limits);
        let host = Arc::new(host);
        let slots = [0, 1].map(|index| NetSlot::create(&host, index, 0).unwrap());
        test(&internet, slots);
        Arc::into_inner(host).unwrap().tear_down().unwrap();
    });
}

/// How many connections of this sender the calling thread's namespace tracks.
fn tracked(sender: Ipv4Addr) -> usize {
    let table = fs::read_to_string("/proc/thread-self/net/nf_conntrack").unwrap();
    let first_source = |line: &str| {
        line.split("src=").nth(1).map(|rest| rest.split(' ').next() == Some(&sender.to_string()))
    };
    table.lines().filter(|line| first_source(line) == Some(true)).count()
}

/// Counts what comes from `link`, in the calling thread's namespace, before anything looks at it.
fn count_packets_from(link: &str) {
    nft("add table inet probe");
    nft("add chain inet probe seen { type filter hook prerouting priority -500; }");
    nft(&format!("add rule inet probe seen iifname \"{link}\" udp length > 0 counter"));
}

/// Packets and bytes counted.
fn counted() -> (u64, u64) {
    let listed = nft("list table inet probe");
    let number = |name: &str| {
        let rest = listed.split(name).nth(1).unwrap().trim();
        rest.split_whitespace().next().unwrap().parse().unwrap()
    };
    (number("packets "), number("bytes "))
}

/// Waits until `done`, at most [`TIMEOUT`].
fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + TIMEOUT;
    while !done() {
        assert!(Instant::now() < end, "not within {TIMEOUT:?}: {what}");
        std::thread::park_timeout(Duration::from_millis(5));
    }
}

#[test]
fn rules_with_all_limits_are_the_reviewed_ones() {
    let limits = NetLimits { connections: Some(1024), kib_per_s: Some(12_500), packets_per_s: Some(20_000) };
    with_slots(limits, |_, [slot, other]| {
        insta::assert_snapshot!("slot_with_limits", nft_ruleset(slot.netns()));
        for slot in [slot, other] {
            slot.destroy().unwrap();
        }
    });
}

#[test]
fn connections_in_excess_reach_no_table_and_no_neighbour_feels_them() {
    const MOST: usize = 20;
    let limits = NetLimits { connections: Some(MOST as u32), ..NetLimits::default() };
    with_slots(limits, |internet, [one, other]| {
        let heard = internet.listen();
        let flood = Guest::boot(&one, true);
        for port in 10_000..10_500 {
            flood.send(&Datagram { port, ..PROPER }.frame());
        }
        let neighbour = Guest::boot(&other, true);
        neighbour.send(&PROPER.frame());
        assert_eq!(receive(&heard).0, "proper");
        let (address, others) = (one.host_address(), other.host_address());
        assert_eq!(tracked(address), MOST);
        assert_eq!(one.netns().run(|| tracked(GUEST_ADDRESS)).unwrap(), MOST);
        // A connection it has goes on.
        let before = tracked(address);
        flood.send(&Datagram { port: 10_000, ..PROPER }.frame());
        assert_eq!(tracked(address), before);

        drop(flood);
        one.destroy().unwrap();
        assert_eq!(tracked(address), 0, "the host remembers a sandbox that is gone");
        assert_eq!(tracked(others), 1, "the neighbour lost its connections");
        drop(neighbour);
        other.destroy().unwrap();
    });
}

#[test]
fn connections_may_not_be_made_faster_than_they_may_be_many() {
    let limits = NetLimits { connections: Some(10), ..NetLimits::default() };
    with_slots(limits, |_, [one, other]| {
        count_packets_from("mt-0");
        // Each ends so soon that the number of those open holds none back for long.
        one.netns().run(|| set_sysctl("netfilter/nf_conntrack_udp_timeout", "1")).unwrap();
        let guest = Guest::boot(&one, true);
        let begin = Instant::now();
        for to in 0x0900_0000.. {
            guest.send(&Datagram { to: Ipv4Addr::from_bits(to), ..PROPER }.frame());
            if begin.elapsed() > Duration::from_secs(4) {
                break;
            }
        }
        let allowed = 10 + begin.elapsed().as_secs() + 1;
        let (packets, _) = counted();
        assert!((11..=allowed).contains(&packets), "{packets} of at most {allowed}");
        drop(guest);
        for slot in [one, other] {
            slot.destroy().unwrap();
        }
    });
}

#[test]
fn packets_in_excess_are_dropped_in_both_directions() {
    let limits = NetLimits { packets_per_s: Some(10), ..NetLimits::default() };
    with_slots(limits, |internet, [one, other]| {
        count_packets_from("mt-0");
        let heard = internet.netns.run(|| UdpSocket::bind((SERVER, PORT))).unwrap().unwrap();
        heard.set_read_timeout(Some(TIMEOUT)).unwrap();
        let guest = Guest::boot(&one, true);
        let begin = Instant::now();
        // From the guest's own socket, so that there is somebody to answer to.
        let client = guest.netns.run(|| UdpSocket::bind((GUEST_ADDRESS, 40_000))).unwrap().unwrap();
        client.set_read_timeout(Some(TIMEOUT)).unwrap();
        for _ in 0..500 {
            guest.send(&PROPER.frame());
        }
        let (_, from) = receive(&heard);
        // A few of the 50 are the guest's own, of IPv6, which count although they are refused.
        let allowed = |begin: Instant| 50 + 10 * (begin.elapsed().as_secs() + 1);
        eventually("the burst passed", || counted().0 >= 40);
        assert!(counted().0 <= allowed(begin), "{:?}", counted());

        let begin = Instant::now();
        for _ in 0..500 {
            heard.send_to(b"answer", from).unwrap();
        }
        assert_eq!(receive(&client).0, "answer");
        client.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
        let mut answers = 1;
        while client.recv(&mut [0; 64]).is_ok() {
            answers += 1;
        }
        assert!((40..=allowed(begin)).contains(&answers), "{answers}");
        drop(guest);
        for slot in [one, other] {
            slot.destroy().unwrap();
        }
    });
}

#[test]
fn bytes_in_excess_are_dropped() {
    let limits = NetLimits { kib_per_s: Some(1), ..NetLimits::default() };
    with_slots(limits, |_, [one, other]| {
        count_packets_from("mt-0");
        let text = "x".repeat(1400);
        let frame = Datagram { text: &text, ..PROPER }.frame();
        let guest = Guest::boot(&one, true);
        let begin = Instant::now();
        for _ in 0..1000 {
            guest.send(&frame);
        }
        const BURST: u64 = 256 * 1024;
        eventually("the burst passed", || counted().1 >= BURST - 8 * 1024);
        let allowed = BURST + 1024 * (begin.elapsed().as_secs() + 2);
        assert!(counted().1 <= allowed, "{:?} of at most {allowed}", counted());
        drop(guest);
        for slot in [one, other] {
            slot.destroy().unwrap();
        }
    });
}

#[test]
fn parts_of_packets_take_little_room_and_only_in_the_namespace() {
    with_slots(NetLimits::default(), |internet, [one, other]| {
        let heard = internet.listen();
        let text = "x".repeat(1400);
        let part = Datagram { text: &text, ..PROPER };
        let (guest, neighbour) = (Guest::boot(&one, true), Guest::boot(&other, true));
        for id in 0..5000 {
            guest.send(&part.first_fragment_of(id));
        }
        neighbour.send(&PROPER.frame());
        assert_eq!(receive(&heard).0, "proper");
        let inside = one.netns().run(fragments).unwrap();
        // A part that comes when there is no room is counted for a moment.
        assert!((1..=768 * 1024).contains(&inside), "{inside} bytes");
        assert_eq!(fragments(), 0);
        drop((guest, neighbour));
        for slot in [one, other] {
            slot.destroy().unwrap();
        }
    });
}

/// Bytes that parts of packets take in the calling thread's namespace.
fn fragments() -> u64 {
    let text = fs::read_to_string("/proc/thread-self/net/sockstat").unwrap();
    let line = text.lines().find(|line| line.starts_with("FRAG:")).unwrap();
    line.split_whitespace().last().unwrap().parse().unwrap()
}

#[test]
fn what_a_killed_server_left_in_the_table_is_forgotten() {
    in_own_netns(|| {
        let internet = Internet::connect();
        let heard = internet.listen();
        let host = Arc::new(HostNetwork::set_up(Some("egress0")).unwrap());
        let slot = NetSlot::create(&host, 3, 0).unwrap();
        let guest = Guest::boot(&slot, true);
        guest.send(&PROPER.frame());
        assert_eq!(receive(&heard).0, "proper");
        UdpSocket::bind((support::internet::HOST, 0)).unwrap().send_to(b"host", (SERVER, PORT)).unwrap();
        assert_eq!(tracked(slot.host_address()), 1);
        manta_host::net::sweep_network(&[]).unwrap();
        assert_eq!(tracked(slot.host_address()), 0);
        assert_eq!(tracked(support::internet::HOST), 1, "the host's own connections are not ours");
        drop(guest);
        slot.destroy().unwrap();
        drop(host);
        assert!(nft_ruleset(&NetNs::current().unwrap()).is_empty());
    });
}
