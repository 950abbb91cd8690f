//! What a namespace looks like: all its interfaces, addresses, routes and rules, as the kernel lists them. To be
//! compared, not to be read.

use netlink_bindings::traits::{NetlinkRequest, Protocol};

use super::NetError;
use super::link::Links;

/// `RTM_GETLINK` and so on, `linux/rtnetlink.h`.
const LINKS: u16 = 18;
const ADDRESSES: u16 = 22;
const ROUTES: u16 = 26;
const RULES: u16 = 34;

/// Length of a `struct ifinfomsg`, and where its flags are, `linux/rtnetlink.h`.
const LINK_HEADER_LEN: usize = 16;
const LINK_FLAGS: std::ops::Range<usize> = 8..12;
/// What the kernel finds out by itself, some time later.
const STATE_FLAGS: u32 = (libc::IFF_RUNNING | libc::IFF_LOWER_UP | libc::IFF_DORMANT) as u32;

/// Attributes of interfaces, `linux/if_link.h`: those of packets counted, and of whether a peer is there.
const IFLA_STATS: u16 = 7;
const IFLA_OPERSTATE: u16 = 16;
const IFLA_STATS64: u16 = 23;
const IFLA_AF_SPEC: u16 = 26;
const IFLA_CARRIER: u16 = 33;
const IFLA_CARRIER_CHANGES: u16 = 35;
const IFLA_CARRIER_UP_COUNT: u16 = 47;
const IFLA_CARRIER_DOWN_COUNT: u16 = 48;
const VARYING: [u16; 7] = [
    IFLA_STATS,
    IFLA_OPERSTATE,
    IFLA_STATS64,
    IFLA_CARRIER,
    IFLA_CARRIER_CHANGES,
    IFLA_CARRIER_UP_COUNT,
    IFLA_CARRIER_DOWN_COUNT,
];
/// In `IFLA_AF_SPEC`; it counts too, and IPv6 is off.
const AF_INET6: u16 = libc::AF_INET6 as u16;
/// The bits of an attribute's type that are its type, `NLA_TYPE_MASK`.
const TYPE_MASK: u16 = 0x3fff;

/// Equal if nobody has changed anything.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Look {
    links: Vec<Vec<u8>>,
    others: Vec<Vec<u8>>,
}

impl Look {
    /// Of the namespace that `links` is in.
    pub(super) fn now(links: &mut Links) -> Result<Self, NetError> {
        let interfaces = dump(links, "interfaces", LINKS)?;
        let mut others = Vec::new();
        for (what, kind) in [("addresses", ADDRESSES), ("routes", ROUTES), ("rules", RULES)] {
            others.extend(dump(links, what, kind)?);
        }
        Ok(Self { links: interfaces.iter().map(|link| lasting(link)).collect(), others })
    }
}

fn dump(links: &mut Links, what: &'static str, kind: u16) -> Result<Vec<Vec<u8>>, NetError> {
    let error = |source| NetError::List { what, source };
    let mut replies = links.socket().request(&Dump(kind)).map_err(|source| error(source.into()))?;
    let mut all = Vec::new();
    while let Some(reply) = replies.recv() {
        all.push(reply.map_err(error)?);
    }
    Ok(all)
}

/// A request for all of a kind, of all families, answered as it comes.
struct Dump(u16);

impl NetlinkRequest for Dump {
    fn protocol(&self) -> Protocol {
        Protocol::Raw { protonum: libc::NETLINK_ROUTE as u16, request_type: self.0 }
    }

    fn flags(&self) -> u16 {
        libc::NLM_F_DUMP as u16
    }

    fn payload(&self) -> &[u8] {
        // Any of the headers, with nothing asked for.
        &[0; LINK_HEADER_LEN]
    }

    type ReplyType<'buf> = Vec<u8>;

    fn decode_reply(reply: &[u8]) -> Vec<u8> {
        reply.to_owned()
    }
}

/// What of an interface's description does not change by itself.
fn lasting(link: &[u8]) -> Vec<u8> {
    let Some((header, attributes)) = link.split_at_checked(LINK_HEADER_LEN) else { return link.to_owned() };
    let mut lasting = header.to_owned();
    let flags = header[LINK_FLAGS].iter().zip((!STATE_FLAGS).to_ne_bytes());
    lasting[LINK_FLAGS].copy_from_slice(&flags.map(|(flags, mask)| flags & mask).collect::<Vec<_>>());
    for (kind, value) in split(attributes) {
        if kind == IFLA_AF_SPEC {
            lasting.extend(split(value).filter(|(kind, _)| *kind != AF_INET6).flat_map(|(_, value)| value));
        } else if !VARYING.contains(&kind) {
            lasting.extend(kind.to_ne_bytes());
            lasting.extend(value);
        }
    }
    lasting
}

/// The attributes in a message, up to one that is cut off.
fn split(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let (header, _) = bytes.split_first_chunk::<4>()?;
        let len = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let kind = u16::from_ne_bytes([header[2], header[3]]) & TYPE_MASK;
        let value = bytes.get(4..len)?;
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}
