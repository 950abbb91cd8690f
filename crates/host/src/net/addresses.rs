//! The addresses and names of the sandbox network: constants and arithmetic only.

use std::net::Ipv4Addr;

/// An IPv4 network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ipv4Range {
    /// Its first address.
    pub first: Ipv4Addr,
    /// The number of leading bits all its addresses share.
    pub prefix_len: u8,
}

impl Ipv4Range {
    const fn new(a: u8, b: u8, c: u8, d: u8, prefix_len: u8) -> Self {
        Self { first: Ipv4Addr::new(a, b, c, d), prefix_len }
    }

    /// Its last address.
    #[must_use]
    pub const fn last(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.first.to_bits() | !self.mask().to_bits())
    }

    /// The netmask.
    #[must_use]
    pub const fn mask(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(u32::MAX << (32 - self.prefix_len))
    }
}

/// Where no sandbox may send anything: the special-purpose ranges of RFC 6890 that are not the internet
/// (private networks, shared address space, link-local with the clouds' metadata service, loopback,
/// benchmarking and so all other sandboxes), multicast and the reserved rest.
pub const ALWAYS_DENIED: [Ipv4Range; 11] = [
    Ipv4Range::new(0, 0, 0, 0, 8),
    Ipv4Range::new(10, 0, 0, 0, 8),
    Ipv4Range::new(100, 64, 0, 0, 10),
    Ipv4Range::new(127, 0, 0, 0, 8),
    Ipv4Range::new(169, 254, 0, 0, 16),
    Ipv4Range::new(172, 16, 0, 0, 12),
    Ipv4Range::new(192, 0, 0, 0, 24),
    Ipv4Range::new(192, 168, 0, 0, 16),
    SLOT_RANGE,
    Ipv4Range::new(224, 0, 0, 0, 4),
    Ipv4Range::new(240, 0, 0, 0, 4),
];

/// The host-side addresses of all slots: the range RFC 2544 sets aside for benchmarks, which nobody routes.
/// Slot N has the /31 pair (RFC 3021) number N of it: the host's end, then the namespace's. 65 536 pairs fill
/// it exactly.
pub const SLOT_RANGE: Ipv4Range = Ipv4Range::new(198, 18, 0, 0, 15);

/// The prefix length of a slot's pair.
pub(super) const PAIR_PREFIX_LEN: u8 = 31;

/// The MAC address of every guest: locally administered, from its IPv4 address.
pub const GUEST_MAC: [u8; 6] = [0x06, 0x00, 0xac, 0x10, 0x00, 0x02];

/// The MAC address of every tap, and so of every guest's gateway: the same everywhere, so that what a guest
/// remembers of its gateway stays true in a clone.
pub(super) const TAP_MAC: [u8; 6] = [0x06, 0x00, 0xac, 0x10, 0x00, 0x01];

pub(super) const TAP: &str = "tap0";
pub(super) const INNER_VETH: &str = "veth0";
/// What the name of the host's end of a slot's veth pair begins with; its index follows.
pub(super) const HOST_VETH_PREFIX: &str = "mt-";

/// What a guest configures for itself: the same in every slot, since each has a namespace of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GuestNet {
    /// The guest's address; no other is let out.
    pub address: Ipv4Addr,
    /// The prefix length of its network.
    pub prefix_len: u8,
    /// Its default gateway, which forwards and answers ARP but nothing else.
    pub gateway: Ipv4Addr,
    /// Its MAC address; no other is let out.
    pub mac: [u8; 6],
}

/// The one configuration of all guests.
pub const GUEST: GuestNet = GuestNet {
    address: Ipv4Addr::new(172, 16, 0, 2),
    prefix_len: 30,
    gateway: Ipv4Addr::new(172, 16, 0, 1),
    mac: GUEST_MAC,
};

/// The address of the host's end of slot `index`.
pub(super) fn host_end(index: u16) -> Ipv4Addr {
    Ipv4Addr::from_bits(SLOT_RANGE.first.to_bits() + 2 * u32::from(index))
}

/// The address of the namespace's end of slot `index`, which its guest's packets carry on the host.
pub(super) fn inner_end(index: u16) -> Ipv4Addr {
    Ipv4Addr::from_bits(host_end(index).to_bits() + 1)
}

/// The slot one of whose ends has this address on the host.
pub(super) fn slot_of_address(address: Ipv4Addr) -> Option<u16> {
    let offset = address.to_bits().checked_sub(SLOT_RANGE.first.to_bits())?;
    u16::try_from(offset / 2).ok()
}

pub(super) fn host_veth(index: u16) -> String {
    format!("{HOST_VETH_PREFIX}{index}")
}

/// The slot whose [`host_veth`] an interface name is.
pub(super) fn slot_of_host_veth(name: &str) -> Option<u16> {
    let index = name.strip_prefix(HOST_VETH_PREFIX).and_then(|index| index.parse().ok())?;
    (host_veth(index) == name).then_some(index)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_fill_the_range_and_stay_inside_it() {
        assert_eq!(host_end(0), SLOT_RANGE.first);
        assert_eq!(inner_end(1), Ipv4Addr::new(198, 18, 0, 3));
        assert_eq!(inner_end(u16::MAX), SLOT_RANGE.last());
        for index in [0, 1, 300, u16::MAX] {
            assert_eq!([host_end(index), inner_end(index)].map(slot_of_address), [Some(index); 2]);
        }
        assert_eq!(slot_of_address(Ipv4Addr::new(198, 17, 255, 255)), None);
        assert_eq!(slot_of_address(Ipv4Addr::new(198, 20, 0, 0)), None);
        assert_eq!(SLOT_RANGE.mask(), Ipv4Addr::new(255, 254, 0, 0));
    }

    #[test]
    fn only_own_names_are_recognised() {
        for (own, index) in [("mt-0", 0), ("mt-65535", 65535)] {
            assert_eq!(slot_of_host_veth(own), Some(index), "{own}");
        }
        for other in ["mt-", "mt-65536", "mt-01", "mt-+1", "mt-a", "eth0", "mt-1x"] {
            assert_eq!(slot_of_host_veth(other), None, "{other}");
        }
    }

    #[test]
    fn denied_ranges_start_on_their_boundary() {
        for range in ALWAYS_DENIED {
            assert_eq!(range.first.to_bits() & !range.mask().to_bits(), 0, "{range:?}");
        }
    }
}
