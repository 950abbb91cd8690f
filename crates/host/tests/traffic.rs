//! What a guest can reach and what it cannot, with real packets through a real slot to a pretend internet.
//!
//! That something does *not* arrive is shown by a datagram sent after it on the same way that does.

#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;

use manta_host::net::GUEST_MAC;
use manta_host::{HostNetwork, NetNs, NetSlot};
use support::frame::{Datagram, arp_request, ipv6};
use support::guest::Guest;
use support::internet::{
    HOST, HOST_TOO, Internet, PORT, ROUTER, SERVER, TIMEOUT, denied_hosts, listen_in, receive,
};
use support::{in_own_netns, ip, nft, path_of, set_sysctl};

const GUEST_ADDRESS: Ipv4Addr = Ipv4Addr::new(172, 16, 0, 2);

/// What a well-behaved guest sends to [`SERVER`].
const PROPER: Datagram<'_> =
    Datagram { mac: GUEST_MAC, from: GUEST_ADDRESS, to: SERVER, port: PORT, text: "proper" };

/// A host with two slots, their guests up, and the internet.
struct World {
    internet: Internet,
    host: Arc<HostNetwork>,
    slots: Vec<NetSlot>,
    guests: Vec<Guest>,
}

impl World {
    fn new(offloads: bool) -> Self {
        let internet = Internet::connect();
        let host = Arc::new(HostNetwork::set_up(Some("egress0")).unwrap());
        let slots: Vec<NetSlot> = (0..2).map(|index| NetSlot::create(&host, index, 0).unwrap()).collect();
        let guests = slots.iter().map(|slot| Guest::boot(slot, offloads)).collect();
        Self { internet, host, slots, guests }
    }

    fn destroy(self) {
        drop(self.guests);
        for slot in self.slots {
            slot.destroy().unwrap();
        }
        Arc::into_inner(self.host).unwrap().tear_down().unwrap();
    }
}

#[test]
fn a_guest_reaches_the_internet() {
    for offloads in [true, false] {
        in_own_netns(|| {
            let world = World::new(offloads);
            let server = world.internet.netns.run(|| TcpListener::bind((SERVER, 80))).unwrap().unwrap();
            let echo = std::thread::spawn(move || {
                let (mut stream, from) = server.accept().unwrap();
                stream.set_read_timeout(Some(TIMEOUT)).unwrap();
                let mut bytes = Vec::new();
                stream.read_to_end(&mut bytes).unwrap();
                stream.write_all(&bytes).unwrap();
                from
            });
            let sent: Vec<u8> = (0..4_000_000u32).map(|n| (n / 1000) as u8).collect();
            let received = world.guests[0].netns.run(|| {
                let mut stream = TcpStream::connect_timeout(&(SERVER, 80).into(), TIMEOUT).unwrap();
                stream.set_read_timeout(Some(TIMEOUT)).unwrap();
                stream.write_all(&sent).unwrap();
                stream.shutdown(std::net::Shutdown::Write).unwrap();
                let mut bytes = Vec::new();
                stream.read_to_end(&mut bytes).unwrap();
                bytes
            });
            assert!(received.unwrap() == sent, "TCP changed the data, offloads: {offloads}");
            assert_eq!(echo.join().unwrap().ip(), IpAddr::from(HOST));

            // Both guests have the same address, and each gets its own answer.
            let socket = world.internet.netns.run(|| UdpSocket::bind((SERVER, PORT))).unwrap().unwrap();
            socket.set_read_timeout(Some(TIMEOUT)).unwrap();
            for (guest, text) in world.guests.iter().zip(["first", "second"]) {
                let client = guest.netns.run(|| UdpSocket::bind((GUEST_ADDRESS, 5000))).unwrap().unwrap();
                client.set_read_timeout(Some(TIMEOUT)).unwrap();
                client.send_to(text.as_bytes(), (SERVER, PORT)).unwrap();
                let (heard, from) = receive(&socket);
                assert_eq!((heard.as_str(), from.ip()), (text, HOST.into()));
                socket.send_to(text.as_bytes(), from).unwrap();
                assert_eq!(receive(&client).0, text);
            }
            world.destroy();
        });
    }
}

#[test]
fn denied_ranges_are_not_forwarded() {
    in_own_netns(|| {
        let world = World::new(true);
        let socket = world.internet.listen();
        for to in denied_hosts() {
            let text = to.to_string();
            // That the host itself gets there shows that only the table is in the way.
            UdpSocket::bind((HOST, 0)).unwrap().send_to(b"host", (to, PORT)).unwrap();
            assert_eq!(receive(&socket).0, "host", "{to}");
            world.guests[0].send(&Datagram { to, text: &text, ..PROPER }.frame());
            world.guests[0].send(&PROPER.frame());
            assert_eq!(receive(&socket).0, "proper");
        }
        world.destroy();
    });
}

#[test]
fn only_the_guest_as_configured_is_let_out() {
    in_own_netns(|| {
        let world = World::new(true);
        let socket = world.internet.listen();
        let guest = &world.guests[0];
        let other_mac = [0x06, 0, 0xac, 0x10, 0, 3];
        for from in [Ipv4Addr::new(172, 16, 0, 3), world.slots[1].host_address(), HOST, SERVER] {
            guest.send(&Datagram { from, text: "wrong address", ..PROPER }.frame());
        }
        guest.send(&Datagram { mac: other_mac, text: "wrong MAC", ..PROPER }.frame());
        guest.send(&Datagram { text: "tagged", ..PROPER }.tagged(0));
        guest.send(&Datagram { text: "tagged", ..PROPER }.tagged(5));
        guest.send(&PROPER.frame());
        let (text, from) = receive(&socket);
        assert_eq!((text.as_str(), from.ip()), ("proper", HOST.into()));
        world.destroy();
    });
}

#[test]
fn a_namespace_without_rules_is_still_confined() {
    in_own_netns(|| {
        let world = World::new(true);
        let socket = world.internet.listen();
        world.slots[0].netns().run(|| nft("flush ruleset")).unwrap();
        for scope in ["all", "mt-0"] {
            set_sysctl(&format!("ipv4/conf/{scope}/rp_filter"), "0");
        }
        // Nothing translates the first, the second claims to be the neighbour.
        world.guests[0].send(&Datagram { text: "as it is", ..PROPER }.frame());
        let neighbour = world.slots[1].host_address();
        world.guests[0].send(&Datagram { from: neighbour, text: "as another", ..PROPER }.frame());
        world.guests[1].send(&PROPER.frame());
        assert_eq!(receive(&socket).0, "proper");
        world.destroy();
    });
}

#[test]
fn nothing_but_plain_ipv4_and_honest_arp_passes_the_tap() {
    in_own_netns(|| {
        let world = World::new(true);
        let slot = &world.slots[0];
        let guest = &world.guests[0];
        let gateway = slot.guest().gateway;
        // Whatever passes the ingress filter is seen by this chain behind it, and counted.
        slot.netns()
            .run(|| {
                nft("add table netdev probe");
                nft("add chain netdev probe seen { type filter hook ingress device tap0 priority 100; }");
                nft("add rule netdev probe seen ether type ip6 counter");
                nft("add rule netdev probe seen ether type arp arp saddr ip != 172.16.0.2 counter");
                nft("add rule netdev probe seen ether type arp arp saddr ether != 06:00:ac:10:00:02 counter");
                nft("add rule netdev probe seen ip protocol != { tcp, udp, icmp } counter");
                nft("add rule netdev probe seen ether type ip ip hdrlength != 5 counter");
                nft("add rule netdev probe seen ether type ip ip version != 4 counter");
                nft("add rule netdev probe seen udp dport 9999 counter");
            })
            .unwrap();
        let other_mac = [0x06, 0, 0xac, 0x10, 0, 3];
        // SCTP, GRE, an IPv6 tunnel, and IPv4 in IPv4; a source route; a header that is too short, or of IPv6.
        for protocol in [132, 47, 41, 4] {
            guest.send(&PROPER.as_protocol(protocol));
        }
        guest.send(&PROPER.source_routed());
        for first_byte in [0x44, 0x65] {
            guest.send(&PROPER.with_first_byte(first_byte));
        }
        guest.send(&ipv6(GUEST_MAC, "fe80::1".parse().unwrap(), "ff02::1".parse().unwrap()));
        guest.send(&arp_request(GUEST_MAC, GUEST_MAC, gateway, gateway));
        guest.send(&arp_request(GUEST_MAC, other_mac, GUEST_ADDRESS, gateway));
        guest.send(&PROPER.frame());
        let counted = slot.netns().run(|| nft("list table netdev probe")).unwrap();
        let counts: Vec<&str> =
            counted.lines().filter_map(|line| Some(line.split_once("packets ")?.1)).collect();
        let counts: Vec<&str> = counts.iter().filter_map(|count| count.split(' ').next()).collect();
        assert_eq!(counts, ["0", "0", "0", "0", "0", "0", "1"], "{counted}");
        world.destroy();
    });
}

#[test]
fn the_host_is_not_reachable() {
    in_own_netns(|| {
        let world = World::new(true);
        let here = listen_in(&NetNs::current().unwrap());
        let internet = world.internet.listen();
        let guest = &world.guests[0];
        let end_of_veth = Ipv4Addr::from_bits(world.slots[0].host_address().to_bits() - 1);
        for to in [HOST, HOST_TOO, end_of_veth, Ipv4Addr::LOCALHOST, Ipv4Addr::BROADCAST] {
            let text = to.to_string();
            guest.send(&Datagram { to, text: &text, ..PROPER }.frame());
        }
        // Nor is the namespace, by the gateway's or the slot's address.
        let inside = listen_in(world.slots[0].netns());
        for to in [Ipv4Addr::new(172, 16, 0, 1), world.slots[0].host_address()] {
            guest.send(&Datagram { to, text: "namespace", ..PROPER }.frame());
        }
        guest.send(&PROPER.frame());
        assert_eq!(receive(&internet).0, "proper");
        UdpSocket::bind((HOST, 0)).unwrap().send_to(b"host", (HOST, PORT)).unwrap();
        assert_eq!(receive(&here).0, "host");
        inside.set_nonblocking(true).unwrap();
        assert!(inside.recv(&mut [0; 64]).is_err());
        world.destroy();
    });
}

#[test]
fn a_sandbox_reaches_no_other_and_nobody_reaches_it() {
    in_own_netns(|| {
        let world = World::new(true);
        let internet = world.internet.listen();
        let other = &world.slots[1];
        // In the namespace of the other, where its own filter is taken away: the host's must do.
        other
            .netns()
            .run(|| nft("flush chain inet manta input; chain inet manta input { policy accept; }"))
            .unwrap();
        let inside = listen_in(other.netns());
        let guest = &world.guests[0];
        guest.send(&Datagram { to: other.host_address(), text: "neighbour", ..PROPER }.frame());
        guest.send(&PROPER.frame());
        assert_eq!(receive(&internet).0, "proper");
        // From the internet, by a route somebody has set.
        world
            .internet
            .netns
            .run(|| {
                ip(&format!("route add 198.18.0.0/15 via {HOST}"));
                let socket = UdpSocket::bind((ROUTER, 0)).unwrap();
                socket.send_to(b"internet", (other.host_address(), PORT)).unwrap();
            })
            .unwrap();
        // The host is let through to the namespace, which its owner may look into.
        UdpSocket::bind("0.0.0.0:0").unwrap().send_to(b"host", (other.host_address(), PORT)).unwrap();
        assert_eq!(receive(&inside).0, "host");
        world.destroy();
    });
}

/// A local network behind the host, whose machines nobody outside could reach before.
#[test]
fn the_machine_does_not_become_a_router() {
    for was_router in [false, true] {
        in_own_netns(|| {
            let internet = Internet::connect();
            let lan = NetNs::create().unwrap();
            ip(&format!("link add lan0 type veth peer name eth0 netns {}", path_of(&lan)));
            ip("address add 192.0.2.1/24 dev lan0");
            ip("link set lan0 up");
            lan.run(|| {
                ip("address add 192.0.2.2/24 dev eth0");
                ip("link set eth0 up");
                ip("route add default via 192.0.2.1");
            })
            .unwrap();
            let socket = listen_in(&lan);
            if was_router {
                set_sysctl("ipv4/ip_forward", "1");
            }
            let host = HostNetwork::set_up(Some("egress0")).unwrap();
            let here = listen_in(&NetNs::current().unwrap());
            internet
                .netns
                .run(|| {
                    ip(&format!("route add 192.0.2.0/24 via {HOST}"));
                    let socket = UdpSocket::bind((ROUTER, 0)).unwrap();
                    socket.send_to(b"internet", ("192.0.2.2", PORT)).unwrap();
                    socket.send_to(b"after it", (HOST, PORT)).unwrap();
                })
                .unwrap();
            assert_eq!(receive(&here).0, "after it");
            UdpSocket::bind("0.0.0.0:0").unwrap().send_to(b"host", ("192.0.2.2", PORT)).unwrap();
            assert_eq!(receive(&socket).0, if was_router { "internet" } else { "host" });
            host.tear_down().unwrap();
        });
    }
}
