//! Ethernet frames made by hand, so that they can be wrong.

use std::net::{Ipv4Addr, Ipv6Addr};

pub const GATEWAY_MAC: [u8; 6] = [0x06, 0, 0xac, 0x10, 0, 1];
const UDP: u8 = 17;
/// In the first byte of the fragment offset, RFC 791.
const MORE_FRAGMENTS: u8 = 0x20;

/// A UDP datagram in an Ethernet frame to the gateway; the port is where the tests listen.
#[derive(Clone)]
pub struct Datagram<'a> {
    pub mac: [u8; 6],
    pub from: Ipv4Addr,
    pub to: Ipv4Addr,
    pub port: u16,
    pub text: &'a str,
}

impl Datagram<'_> {
    pub fn frame(&self) -> Vec<u8> {
        ethernet(self.mac, &[0x08, 0x00], &self.ipv4(0, 64))
    }

    /// The same with this many hops to live.
    pub fn with_ttl(&self, ttl: u8) -> Vec<u8> {
        ethernet(self.mac, &[0x08, 0x00], &self.ipv4(0, ttl))
    }

    /// The same as the first of several fragments.
    pub fn first_fragment(&self) -> Vec<u8> {
        self.first_fragment_of(0)
    }

    /// The same of the packet with this identification.
    pub fn first_fragment_of(&self, id: u16) -> Vec<u8> {
        let mut packet = self.ipv4(MORE_FRAGMENTS, 64);
        packet[4..6].copy_from_slice(&id.to_be_bytes());
        ethernet(self.mac, &[0x08, 0x00], &checksummed(packet, 20))
    }

    /// The same with an 802.1Q tag of VLAN 5, or 0 (priority only).
    pub fn tagged(&self, vlan: u8) -> Vec<u8> {
        ethernet(self.mac, &[0x81, 0x00, 0x00, vlan, 0x08, 0x00], &self.ipv4(0, 64))
    }

    /// The same under another protocol's number.
    pub fn as_protocol(&self, protocol: u8) -> Vec<u8> {
        self.changed(9, protocol)
    }

    /// The same with a source route, RFC 791: by way of an address that is not the destination.
    pub fn source_routed(&self) -> Vec<u8> {
        let mut packet = self.ipv4(0, 64);
        packet[0] = 0x47;
        let total = u16::try_from(packet.len() + 8).unwrap();
        packet[2..4].copy_from_slice(&total.to_be_bytes());
        let mut options = vec![131, 7, 4];
        options.extend([10, 0, 0, 9]);
        options.push(0);
        packet.splice(20..20, options);
        ethernet(self.mac, &[0x08, 0x00], &checksummed(packet, 28))
    }

    /// The same with a header length or version that is wrong.
    pub fn with_first_byte(&self, byte: u8) -> Vec<u8> {
        self.changed(0, byte)
    }

    fn changed(&self, at: usize, byte: u8) -> Vec<u8> {
        let mut packet = self.ipv4(0, 64);
        packet[at] = byte;
        ethernet(self.mac, &[0x08, 0x00], &checksummed(packet, 20))
    }

    fn ipv4(&self, fragment: u8, ttl: u8) -> Vec<u8> {
        let udp = self.udp();
        let mut header = vec![0x45, 0];
        header.extend(u16::try_from(20 + udp.len()).unwrap().to_be_bytes());
        header.extend([0, 0, fragment, 0, ttl, UDP, 0, 0]);
        header.extend(self.from.octets());
        header.extend(self.to.octets());
        let header_len = header.len();
        checksummed([header, udp].concat(), header_len)
    }

    fn udp(&self) -> Vec<u8> {
        let mut udp = Vec::new();
        let len = u16::try_from(8 + self.text.len()).unwrap();
        // No checksum, which IPv4 allows.
        for field in [40_000, self.port, len, 0] {
            udp.extend(field.to_be_bytes());
        }
        udp.extend(self.text.bytes());
        udp
    }
}

/// A bare IPv6 packet to the gateway.
pub fn ipv6(mac: [u8; 6], from: Ipv6Addr, to: Ipv6Addr) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0, 0, 0, 59, 64];
    packet.extend(from.octets());
    packet.extend(to.octets());
    ethernet(mac, &[0x86, 0xdd], &packet)
}

/// An ARP request for the gateway by whoever it says.
pub fn arp_request(mac: [u8; 6], sender_mac: [u8; 6], sender: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    let mut arp = vec![0, 1, 8, 0, 6, 4, 0, 1];
    arp.extend(sender_mac);
    arp.extend(sender.octets());
    arp.extend([0; 6]);
    arp.extend(target.octets());
    ethernet(mac, &[0x08, 0x06], &arp)
}

fn ethernet(from: [u8; 6], kind: &[u8], payload: &[u8]) -> Vec<u8> {
    [&GATEWAY_MAC[..], &from, kind, payload].concat()
}

/// An IPv4 packet with the checksum of its header.
fn checksummed(mut packet: Vec<u8>, header_len: usize) -> Vec<u8> {
    packet[10..12].fill(0);
    let checksum = checksum(&packet[..header_len]);
    packet[10..12].copy_from_slice(&checksum.to_be_bytes());
    packet
}

/// RFC 1071.
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])));
    let sum: u32 = words.sum();
    !((sum & 0xffff) + (sum >> 16)) as u16
}
