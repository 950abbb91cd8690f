//! Who has taken over a VMM is in the slot's namespace, and sends packets of its own from there: none leaves it. The
//! kernel still tells both ends what became of packets that it could not forward.

#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::io::{Error, ErrorKind};
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use manta_host::net::GUEST_MAC;
use manta_host::{HostNetwork, NetNs, NetSlot};
use rustix::net::{AddressFamily, SocketType, ipproto, socket};
use rustix::process::Uid;
use rustix::thread::set_thread_res_uid;
use support::frame::Datagram;
use support::guest::Guest;
use support::internet::{HOST, Internet, PORT, SERVER, TIMEOUT, receive};
use support::{in_own_netns, ip, nft};

const GUEST_ADDRESS: Ipv4Addr = Ipv4Addr::new(172, 16, 0, 2);
/// How long a connection is waited for that is not to be made.
const NEVER: Duration = Duration::from_millis(300);
/// Types of ICMP messages, RFC 792, and the code of the first for what is too large.
const UNREACHABLE: u8 = 3;
const TOO_LARGE: u8 = 4;
const TIME_EXCEEDED: u8 = 11;

/// Runs `test` with a slot, its guest, and the internet.
fn with_guest(test: impl FnOnce(&Internet, &NetSlot, &Guest) + Send) {
    in_own_netns(|| {
        let internet = Internet::connect();
        let host = Arc::new(HostNetwork::set_up(Some("egress0")).unwrap());
        let slot = NetSlot::create(&host, 0, 0).unwrap();
        let guest = Guest::boot(&slot, true);
        test(&internet, &slot, &guest);
        drop(guest);
        slot.destroy().unwrap();
        Arc::into_inner(host).unwrap().tear_down().unwrap();
    });
}

/// Runs `f` in the namespace of a slot as this user.
fn inside<T: Send>(slot: &NetSlot, user: u32, f: impl FnOnce() -> T + Send) -> T {
    let as_user = || {
        let uid = Uid::from_raw(user);
        // Of the calling thread alone, which ends with this.
        set_thread_res_uid(uid, uid, uid).unwrap();
        f()
    };
    slot.netns().run(as_user).unwrap()
}

/// What ICMP messages come to a namespace from now on.
struct Icmp(UdpSocket);

impl Icmp {
    fn to(netns: &NetNs) -> Self {
        let raw = || socket(AddressFamily::INET, SocketType::RAW, Some(ipproto::ICMP)).unwrap();
        let socket = UdpSocket::from(netns.run(raw).unwrap());
        socket.set_read_timeout(Some(TIMEOUT)).unwrap();
        Self(socket)
    }

    /// Type and code of the next, and who sent it.
    fn next(&self) -> (u8, u8, Ipv4Addr) {
        let mut packet = [0; 2048];
        let len = self.0.recv(&mut packet).expect("a message in time");
        let (header, message) = packet[..len].split_at(20);
        (message[0], message[1], <[u8; 4]>::try_from(&header[12..16]).unwrap().into())
    }
}

#[test]
fn nobody_in_the_namespace_of_a_slot_gets_a_packet_out_of_it() {
    with_guest(|internet, slot, guest| {
        let heard = internet.listen();
        nft("add table netdev probe");
        nft("add chain netdev probe seen { type filter hook ingress device mt-0 priority -500; }");
        nft("add rule netdev probe seen ether type ip counter");
        // Its neighbours on all sides, and itself.
        let end_of_veth = Ipv4Addr::from_bits(slot.host_address().to_bits() - 1);
        let targets = [SERVER, HOST, end_of_veth, GUEST_ADDRESS, slot.host_address(), Ipv4Addr::LOCALHOST];
        for user in [1000, 0] {
            for to in targets {
                let to = SocketAddr::from((to, PORT));
                let sent = inside(slot, user, || UdpSocket::bind("0.0.0.0:0").unwrap().send_to(b"own", to));
                assert_eq!(
                    sent.map_err(|error| error.kind()),
                    Err(ErrorKind::PermissionDenied),
                    "{user} {to}"
                );
            }
            let connected = inside(slot, user, || TcpStream::connect_timeout(&(SERVER, PORT).into(), NEVER));
            let refused = connected.map_err(|error: Error| error.kind()).unwrap_err();
            assert!(matches!(refused, ErrorKind::TimedOut | ErrorKind::PermissionDenied), "{refused:?}");
        }
        // Also on the way that its guest has opened.
        let own = guest.netns.run(|| UdpSocket::bind((GUEST_ADDRESS, 40_000))).unwrap().unwrap();
        own.send_to(b"guest", (SERVER, PORT)).unwrap();
        assert_eq!(receive(&heard).0, "guest");
        let same = || UdpSocket::bind((slot.host_address(), 40_000)).unwrap().send_to(b"own", (SERVER, PORT));
        assert!(inside(slot, 1000, same).is_err());
        own.send_to(b"again", (SERVER, PORT)).unwrap();
        let (text, from) = receive(&heard);
        assert_eq!((text.as_str(), from.ip()), ("again", HOST.into()));
        let seen = nft("list table netdev probe");
        assert!(seen.contains("counter packets 2 "), "{seen}");
    });
}

#[test]
fn both_ends_are_told_of_packets_that_a_namespace_could_not_forward() {
    with_guest(|internet, slot, guest| {
        let heard = internet.netns.run(|| UdpSocket::bind((SERVER, PORT))).unwrap().unwrap();
        heard.set_read_timeout(Some(TIMEOUT)).unwrap();
        let (to_guest, to_server) = (Icmp::to(&guest.netns), Icmp::to(&internet.netns));
        let proper = Datagram { mac: GUEST_MAC, from: GUEST_ADDRESS, to: SERVER, port: PORT, text: "proper" };
        guest.send(&proper.with_ttl(1));
        assert_eq!(to_guest.next(), (TIME_EXCEEDED, 0, slot.guest().gateway));
        // The host's own answer, which comes by the same way.
        guest.send(&proper.with_ttl(2));
        assert_eq!(to_guest.next().0, TIME_EXCEEDED);

        let socket = guest.netns.run(|| UdpSocket::bind((GUEST_ADDRESS, 5000))).unwrap().unwrap();
        socket.send_to(b"out", (SERVER, PORT)).unwrap();
        let (_, from) = receive(&heard);
        // The host takes one away, and the namespace the other.
        heard.set_ttl(2).unwrap();
        heard.send_to(b"back", from).unwrap();
        assert_eq!(to_server.next(), (TIME_EXCEEDED, 0, HOST));

        slot.netns().run(|| ip("link set veth0 mtu 1000")).unwrap();
        socket.send_to(&[0; 1400], (SERVER, PORT)).unwrap();
        assert_eq!(to_guest.next(), (UNREACHABLE, TOO_LARGE, slot.guest().gateway));
    });
}
