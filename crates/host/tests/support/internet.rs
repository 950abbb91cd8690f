//! A pretend internet behind the interface `egress0` of the calling thread's namespace, which has a public
//! address and its default route there.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use manta_host::NetNs;
use manta_host::net::ALWAYS_DENIED;

use super::{ip, path_of};

/// The host's address on `egress0`; both are documentation addresses (RFC 5737).
pub const HOST: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
/// Another address of the host, not on the way anywhere.
pub const HOST_TOO: Ipv4Addr = Ipv4Addr::new(203, 0, 114, 1);
/// The router behind it.
pub const ROUTER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 2);
/// Somebody on the internet.
pub const SERVER: Ipv4Addr = Ipv4Addr::new(8, 8, 8, 8);
/// The port of [`Internet::listen`].
pub const PORT: u16 = 9999;
/// Longer than anything takes here; reached only when a test fails.
pub const TIMEOUT: Duration = Duration::from_secs(10);

pub struct Internet {
    pub netns: NetNs,
}

impl Internet {
    pub fn connect() -> Self {
        let netns = NetNs::create().unwrap();
        ip(&format!("link add egress0 type veth peer name inet0 netns {}", path_of(&netns)));
        ip(&format!("address add {HOST}/24 dev egress0"));
        ip(&format!("address add {HOST_TOO}/32 dev lo"));
        ip("link set egress0 up");
        ip(&format!("route add default via {ROUTER}"));
        netns
            .run(|| {
                ip("link set lo up");
                ip(&format!("address add {ROUTER}/24 dev inet0"));
                ip("link set inet0 up");
                ip(&format!("address add {SERVER}/32 dev lo"));
                for address in denied_hosts() {
                    ip(&format!("address add {address}/32 dev lo"));
                }
            })
            .unwrap();
        Self { netns }
    }

    /// A socket that hears what is sent to any address here.
    pub fn listen(&self) -> UdpSocket {
        listen_in(&self.netns)
    }
}

/// Hosts in those of the always denied ranges that the kernel lets an interface have addresses of.
pub fn denied_hosts() -> Vec<Ipv4Addr> {
    let unicast = ALWAYS_DENIED.iter().filter(|range| !matches!(range.first.octets()[0], 0 | 127 | 224));
    unicast
        .flat_map(|range| [range.first.to_bits() + 9, range.last().to_bits() - 9])
        .map(Ipv4Addr::from_bits)
        .collect()
}

/// A socket at [`PORT`] of every address of a namespace.
pub fn listen_in(netns: &NetNs) -> UdpSocket {
    let socket = netns.run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, PORT))).unwrap().unwrap();
    socket.set_read_timeout(Some(TIMEOUT)).unwrap();
    socket
}

/// The next datagram as text, and who sent it.
pub fn receive(socket: &UdpSocket) -> (String, SocketAddr) {
    let mut bytes = [0; 2048];
    let (len, from) = socket.recv_from(&mut bytes).expect("a datagram in time");
    (String::from_utf8(bytes[..len].to_vec()).unwrap(), from)
}
