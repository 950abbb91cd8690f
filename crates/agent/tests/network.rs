//! Network configuration, on a real interface in a network namespace of the test's own. Needs root.
#![allow(clippy::unwrap_used)] // in the helpers too

#[path = "common/sys.rs"]
mod sys;

use std::net::{IpAddr, Ipv4Addr};

use manta_agent::net;
use manta_agent_proto::Network;
use netlink_bindings::rt_addr::{self, Ifaddrmsg};
use netlink_bindings::rt_link::{self, IfinfoFlags, Ifinfomsg};
use netlink_bindings::rt_route::{self, Rtmsg};
use netlink_socket2::NetlinkSocket;

fn network(last: u8, prefix_len: u8, gateway: [u8; 4]) -> Network {
    Network {
        address: Ipv4Addr::new(10, 77, 0, last),
        prefix_len,
        gateway: gateway.into(),
        dns: vec![Ipv4Addr::new(10, 77, 0, 53), Ipv4Addr::new(9, 9, 9, 9)],
    }
}

/// A pair of Ethernet interfaces: what is nearest to a machine's own that a namespace can have.
fn add_veth(name: &str) {
    let mut request = rt_link::Request::new().set_create().set_excl().op_newlink_do(&Ifinfomsg::new());
    request.encode().push_ifname_bytes(name.as_bytes()).nested_linkinfo().push_kind(c"veth").end_nested();
    NetlinkSocket::new().request(&request).unwrap().recv_ack().unwrap();
}

/// Name, flags and index of every link.
fn links() -> Vec<(String, u32, i32)> {
    let mut socket = NetlinkSocket::new();
    let mut replies = socket.request(&rt_link::Request::new().op_getlink_dump(&Ifinfomsg::new())).unwrap();
    let mut links = Vec::new();
    while let Some((header, attributes)) = replies.recv().transpose().unwrap() {
        let name = attributes.get_ifname().unwrap().to_string_lossy().into_owned();
        links.push((name, header.ifi_flags, header.ifi_index));
    }
    links
}

fn index_of(name: &str) -> i32 {
    links().into_iter().find(|link| link.0 == name).unwrap().2
}

fn is_up(name: &str) -> bool {
    links().into_iter().find(|link| link.0 == name).unwrap().1 & IfinfoFlags::Up as u32 != 0
}

/// IPv4 addresses with their prefixes, of one interface.
fn addresses(index: i32) -> Vec<(IpAddr, u8)> {
    let mut socket = NetlinkSocket::new();
    let header = Ifaddrmsg { ifa_family: libc::AF_INET as u8, ..Default::default() };
    let mut replies = socket.request(&rt_addr::Request::new().op_getaddr_dump(&header)).unwrap();
    let mut found = Vec::new();
    while let Some((header, attributes)) = replies.recv().transpose().unwrap() {
        if header.ifa_index == index.unsigned_abs() {
            found.push((attributes.get_local().unwrap(), header.ifa_prefixlen));
        }
    }
    found
}

/// Gateways and interfaces of all default routes of the main table.
fn default_routes() -> Vec<(IpAddr, u32)> {
    let mut socket = NetlinkSocket::new();
    let header = Rtmsg { rtm_family: libc::AF_INET as u8, ..Default::default() };
    let mut replies = socket.request(&rt_route::Request::new().op_getroute_dump(&header)).unwrap();
    let mut found = Vec::new();
    while let Some((header, attributes)) = replies.recv().transpose().unwrap() {
        if header.rtm_dst_len == 0 && header.rtm_table == libc::RT_TABLE_MAIN {
            found.push((attributes.get_gateway().unwrap(), attributes.get_oif().unwrap()));
        }
    }
    found
}

#[test]
fn the_interface_gets_exactly_what_was_asked_again_and_again() {
    sys::in_own_namespaces(|| {
        add_veth("odd0");
        // Of the two ends the one made first is the machine's.
        let (name, _, index) = links()
            .into_iter()
            .filter(|link| link.0.contains("odd") || link.0.contains("veth"))
            .min_by_key(|link| link.2)
            .unwrap();
        let steps = [
            network(2, 24, [10, 77, 0, 1]),
            network(2, 24, [10, 77, 0, 1]),
            network(3, 24, [10, 77, 0, 1]),
            network(3, 30, [10, 77, 0, 1]),
            network(9, 32, [169, 254, 7, 1]), // the gateway is outside the prefix
            network(2, 24, [10, 77, 0, 254]),
        ];
        for step in steps {
            net::configure(&step).unwrap();
            assert!(is_up(&name));
            assert_eq!(addresses(index), [(IpAddr::V4(step.address), step.prefix_len)]);
            assert_eq!(default_routes(), [(IpAddr::V4(step.gateway), index.unsigned_abs())]);
        }
    });
}

#[test]
fn interfaces_made_later_are_left_alone() {
    sys::in_own_namespaces(|| {
        add_veth("first0");
        net::configure(&network(2, 24, [10, 77, 0, 1])).unwrap();
        add_veth("later0");
        net::configure(&network(4, 24, [10, 77, 0, 1])).unwrap();
        assert_eq!(addresses(index_of("later0")), []);
        assert!(!is_up("later0"));
    });
}

#[test]
fn a_machine_without_an_interface_says_so() {
    sys::in_own_namespaces(|| {
        let error = net::configure(&network(2, 24, [10, 77, 0, 1])).unwrap_err();
        assert!(matches!(error, net::NetError::NoInterface), "{error}");
    });
}

#[test]
fn a_prefix_that_cannot_be_is_refused() {
    sys::in_own_namespaces(|| {
        add_veth("odd0");
        let error = net::configure(&network(2, 33, [10, 77, 0, 1])).unwrap_err();
        assert!(matches!(error, net::NetError::AddAddress { prefix_len: 33, .. }), "{error}");
    });
}

#[test]
fn loopback_comes_up() {
    sys::in_own_namespaces(|| {
        assert!(!is_up("lo"));
        net::loopback_up().unwrap();
        assert!(is_up("lo"));
        assert_eq!(addresses(1), [(IpAddr::V4(Ipv4Addr::LOCALHOST), 8)]);
    });
}
