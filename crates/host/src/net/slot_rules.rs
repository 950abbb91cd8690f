//! The tables inside a slot's namespace: only the guest as it was configured gets out, nothing gets in. Rules
//! only. Where it may go is decided on the host, in one place.

use super::addresses::{GUEST, INNER_VETH, TAP, inner_end};
use super::nft::Expr::{
    Accept, BytesOver, ConnectionsOver, Drop, EstablishedOrRelated, Ether, IifName, In, Invalid, Ipv4, Is,
    IsName, Network, New, OifName, PacketsOver, Related, SnatTo,
};
use super::nft::{Batch, Expr, Family, Hook, Policy, Socket, Table};
use super::{NetError, NetLimits};

/// `ETH_P_IP` and `ETH_P_ARP`.
const ETHERTYPE_IPV4: [u8; 2] = [0x08, 0x00];
const ETHERTYPE_ARP: [u8; 2] = [0x08, 0x06];
/// ARP for IPv4 over Ethernet (RFC 826): hardware type, protocol type, and their address lengths.
const ARP_ETHERNET_IPV4: [u8; 6] = [0x00, 0x01, 0x08, 0x00, 6, 4];

/// An IPv4 header's first byte, if it has no options: what asks for a way back or a route of its own is not let in.
const IPV4_WITHOUT_OPTIONS: [u8; 1] = [0x45];
const ICMP: [u8; 1] = [libc::IPPROTO_ICMP as u8];
/// What people use and connections are tracked by: all else is a part of the kernel that a guest could try its luck at.
const PROTOCOLS: [u8; 3] = [ICMP[0], libc::IPPROTO_TCP as u8, libc::IPPROTO_UDP as u8];
const ALLOWED_PROTOCOLS: &str = "protocols";

const INET: Table = Table(Family::Inet);
const NETDEV: Table = Table(Family::Netdev);

/// Puts the table of slot `index` into force in its namespace, which is new and which the calling thread must be in.
pub(super) fn install(index: u16, limits: NetLimits) -> Result<(), NetError> {
    let mut batch = Batch::new();
    batch.new_table(INET, "");
    // Nothing in the namespace is there to be talked to, not even by itself.
    batch.base_chain(INET, "input", Hook::Input, Policy::Drop);
    // Nor to talk: a VMM that its guest has taken over would pass by what limits the guest. But the kernel tells senders
    // what became of packets that it could not forward.
    batch.base_chain(INET, "output", Hook::Output, Policy::Drop);
    batch.rule(INET, "output", &[Ipv4, Network(9, 1), Is(&ICMP), Related, Accept]);
    batch.base_chain(INET, "forward", Hook::Forward, Policy::Drop);
    // Belongs to no connection, so nothing would translate it.
    batch.rule(INET, "forward", &[IifName, IsName(TAP), Invalid, Drop]);
    // A flood ends here, before the host notes its connections too. Of those over the limit none is noted here either.
    if let Some(bucket) = limits.new_connections() {
        batch.rule(INET, "forward", &[IifName, IsName(TAP), New, PacketsOver(bucket), Drop]);
    }
    if let Some(most) = limits.connections {
        batch.rule(INET, "forward", &[IifName, IsName(TAP), New, ConnectionsOver(most), Drop]);
    }
    for over in rates(limits) {
        batch.rule(INET, "forward", &[IifName, IsName(INNER_VETH), over, Drop]);
    }
    batch.rule(INET, "forward", &[IifName, IsName(TAP), OifName, IsName(INNER_VETH), Ipv4, Accept]);
    let back = [IifName, IsName(INNER_VETH), OifName, IsName(TAP), Ipv4, EstablishedOrRelated, Accept];
    batch.rule(INET, "forward", &back);
    batch.base_chain(INET, "postrouting", Hook::PostroutingNat, Policy::Accept);
    batch.rule(INET, "postrouting", &[OifName, IsName(INNER_VETH), Ipv4, SnatTo(inner_end(index))]);
    batch.commit(&Socket::open()?, "install the nftables table of a slot")
}

/// Puts the table at the tap into force, which must be there, and not up.
pub(super) fn install_at_tap(limits: NetLimits) -> Result<(), NetError> {
    let mut batch = Batch::new();
    let address = GUEST.address.octets();
    // The type is read from the frame, not taken from the kernel, so that a VLAN tag does not match.
    batch.new_table(NETDEV, "");
    batch.protocol_set(NETDEV, ALLOWED_PROTOCOLS, &PROTOCOLS);
    batch.base_chain(NETDEV, "guest", Hook::Ingress(TAP), Policy::Drop);
    for over in rates(limits) {
        batch.rule(NETDEV, "guest", &[over, Drop]);
    }
    let sender = [Ether(6, 6), Is(&GUEST.mac), Ether(12, 2)];
    let ipv4 = [Is(&ETHERTYPE_IPV4), Network(0, 1), Is(&IPV4_WITHOUT_OPTIONS), Network(12, 4), Is(&address)];
    let protocol = [Network(9, 1), In(ALLOWED_PROTOCOLS), Accept];
    batch.rule(NETDEV, "guest", &[&sender[..], &ipv4, &protocol].concat());
    let arp = [Is(&ETHERTYPE_ARP), Network(0, 6), Is(&ARP_ETHERNET_IPV4)];
    let arp_sender = [Network(8, 6), Is(&GUEST.mac), Network(14, 4), Is(&address), Accept];
    batch.rule(NETDEV, "guest", &[&sender[..], &arp, &arp_sender].concat());
    batch.commit(&Socket::open()?, "install the nftables table at a tap")
}

/// What matches packets in excess of the limits of one way.
fn rates(limits: NetLimits) -> impl Iterator<Item = Expr<'static>> {
    let bytes = limits.bytes().map(BytesOver);
    bytes.into_iter().chain(limits.packets().map(PacketsOver))
}

/// Whether both tables are there, in the namespace that the calling thread is in.
pub(super) fn in_force() -> Result<bool, NetError> {
    Ok(INET.comment()?.is_some() && NETDEV.comment()?.is_some())
}

/// Deletes the table at a tap that is gone. Some kernels leave the chain in it, others do not.
pub(super) fn remove_from_tap() -> Result<(), NetError> {
    let mut batch = Batch::new();
    batch.delete_table(NETDEV);
    batch.commit(&Socket::open()?, "delete the nftables table at a tap")
}
