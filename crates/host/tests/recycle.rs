//! A used slot is made as good as new, or it is not used again.

#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::fs;
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use manta_host::net::GUEST_MAC;
use manta_host::{HostNetwork, NetError, NetSlot};
use support::frame::{Datagram, arp_request, ipv6};
use support::guest::Guest;
use support::internet::{Internet, PORT, SERVER, receive};
use support::{in_own_netns, ip, nft, nft_ruleset};

/// Runs `test` with a host, a slot of it, and the internet; gives the slot back after that.
fn with_slot(test: impl FnOnce(&Internet, &mut NetSlot) + Send) {
    in_own_netns(|| {
        let internet = Internet::connect();
        let host = Arc::new(HostNetwork::set_up(Some("egress0")).unwrap());
        let mut slot = NetSlot::create(&host, 7, 1000).unwrap();
        test(&internet, &mut slot);
        slot.destroy().unwrap();
        Arc::into_inner(host).unwrap().tear_down().unwrap();
    });
}

/// All there is to see of a namespace, but for the numbers of interfaces and what the kernel finds out later.
fn seen() -> Vec<String> {
    let mut seen: Vec<String> = Vec::new();
    for listed in [ip("-oneline -details link"), ip("-oneline address")] {
        seen.extend(listed.lines().map(lasting));
    }
    seen.push(ip("route show table all").replace(" linkdown", ""));
    seen.push(ip("neighbour"));
    seen.push(ip("rule"));
    seen.push(connections());
    seen
}

fn lasting(line: &str) -> String {
    let (_number, line) = line.split_once(": ").unwrap();
    let mut words = line.split_whitespace();
    let mut kept = Vec::new();
    while let Some(word) = words.next() {
        match word {
            "state" | "qdisc" => drop(words.next()),
            word if word.starts_with('<') => {}
            word => kept.push(word),
        }
    }
    kept.join(" ")
}

/// The connections tracked in the calling thread's namespace.
fn connections() -> String {
    fs::read_to_string("/proc/thread-self/net/nf_conntrack").unwrap()
}

#[test]
fn a_slot_whose_sandbox_used_no_network_is_as_good_as_new() {
    with_slot(|internet, slot| {
        let look = |slot: &NetSlot| {
            let inside = slot.netns().run(seen).unwrap();
            (inside, nft_ruleset(slot.netns()), seen(), connections())
        };
        let new = look(slot);
        for _ in 0..3 {
            let guest = Guest::boot(slot, true);
            // What every guest does, and what is not let out.
            let net = slot.guest();
            guest.send(&arp_request(GUEST_MAC, GUEST_MAC, net.address, net.gateway));
            guest.send(&ipv6(GUEST_MAC, "fe80::1".parse().unwrap(), "ff02::1".parse().unwrap()));
            let other = Datagram { mac: GUEST_MAC, from: SERVER, to: SERVER, port: PORT, text: "spoofed" };
            guest.send(&other.frame());
            let gateway = Datagram { from: net.address, to: net.gateway, ..other };
            guest.send(&gateway.frame());
            drop(guest);
            // Who has the tap open may.
            slot.netns().run(|| ip("link set tap0 address 06:00:00:00:00:99")).unwrap();
            assert_ne!(look(slot), new);
            slot.recycle().unwrap();
            assert_eq!(look(slot), new);
        }
        // It works.
        let heard = internet.listen();
        let guest = Guest::boot(slot, true);
        let client = guest.netns.run(|| UdpSocket::bind(("172.16.0.2", 5000))).unwrap().unwrap();
        client.send_to(b"out", (SERVER, PORT)).unwrap();
        assert_eq!(receive(&heard).0, "out");
        drop(guest);
        assert_ne!(look(slot).3, "", "the host remembers it");
        refused(slot, "packets");
    });
}

fn refused(slot: &mut NetSlot, why: &str) {
    let error = slot.recycle().unwrap_err();
    assert!(matches!(error, NetError::NotClean(reason) if reason.contains(why)), "{why}: {error:?}");
}

#[test]
fn a_slot_that_had_to_do_with_packets_is_not_used_again() {
    let from_guest =
        Datagram { mac: GUEST_MAC, from: [172, 16, 0, 2].into(), to: SERVER, port: PORT, text: "text" };
    // Nobody hears them.
    with_slot(|_, slot| {
        Guest::boot(slot, false).send(&from_guest.frame());
        refused(slot, "packets");
    });
    // The namespace answers that it lived too long, and remembers how often it did.
    with_slot(|_, slot| {
        Guest::boot(slot, false).send(&from_guest.with_ttl(1));
        refused(slot, "packets");
    });
    // A part of a packet waits for the rest.
    with_slot(|_, slot| {
        Guest::boot(slot, false).send(&from_guest.first_fragment());
        refused(slot, "packets");
    });
    // A VMM that somebody has taken over would talk itself. It is not let out, and it is not forgotten.
    with_slot(|_, slot| {
        let talk = || TcpStream::connect_timeout(&(SERVER, PORT).into(), Duration::from_millis(100));
        assert!(slot.netns().run(talk).unwrap().is_err());
        refused(slot, "packets");
    });
}

#[test]
fn a_slot_that_somebody_still_uses_is_not_used_again() {
    with_slot(|_, slot| {
        let _socket = slot.netns().run(|| TcpListener::bind("127.0.0.1:0").unwrap()).unwrap();
        refused(slot, "socket");
    });
    with_slot(|_, slot| {
        let _tap = slot.open_tap().unwrap();
        refused(slot, "socket");
    });
}

#[test]
fn a_slot_that_was_changed_is_not_used_again() {
    for change in [
        "address add 192.0.2.1/32 dev lo",
        "address add 192.0.2.1/32 dev veth0",
        "address delete 127.0.0.1/8 dev lo",
        "route add 192.0.2.0/24 dev veth0",
        "route delete default",
        "route add blackhole 192.0.2.0/24 table 7",
        "rule add from 192.0.2.1 table 7",
        "link add other type veth",
        "link set veth0 mtu 1400",
        "link set veth0 down",
        "link delete veth0",
    ] {
        with_slot(|_, slot| {
            slot.netns().run(|| ip(change)).unwrap();
            refused(slot, "changed");
        });
    }
    for change in ["flush chain inet manta forward", "add table inet other", "delete table netdev manta"] {
        with_slot(|_, slot| {
            slot.netns().run(|| nft(change)).unwrap();
            refused(slot, "nftables");
        });
    }
}
