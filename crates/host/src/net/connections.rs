//! The host's table of tracked connections: forgets those of sandboxes that are gone. An established connection would
//! stay in it for five days, and the table is everybody's. Does not limit how many there are; `slot_rules` does.

use std::net::Ipv4Addr;

use netlink_bindings::traits::{NetlinkRequest, Protocol};
use netlink_bindings::utils::{finalize_nested_header, push_header, push_nested_header};
use netlink_socket2::NetlinkSocket;

use super::NetError;

/// `NETLINK_NETFILTER`, and `IPCTNL_MSG_CT_GET` and `_DELETE` of its subsystem 1,
/// `linux/netfilter/nfnetlink_conntrack.h`.
const NETFILTER: u16 = libc::NETLINK_NETFILTER as u16;
const GET: u16 = 0x101;
const DELETE: u16 = 0x102;
/// Length of a `struct nfgenmsg`, which is a family, a version 0 and two unused bytes.
const HEADER_LEN: usize = 4;
/// `CTA_TUPLE_ORIG`, the connection as its first packet had it, and the path to the sender's address in it.
const TUPLE_ORIG: u16 = 1;
const TUPLE_IP: u16 = 1;
const IP_V4_SRC: u16 = 1;
/// `CTA_ID` and `CTA_ZONE`: with the tuple, they name one connection.
const ID: u16 = 12;
const ZONE: u16 = 18;
/// `CTA_FILTER`, `CTA_FILTER_ORIG_FLAGS` and the flag of the sender's address: lists only what has it. Linux 5.8; an
/// earlier one lists all.
const FILTER: u16 = 25;
const FILTER_ORIG_FLAGS: u16 = 1;
const BY_IP_SRC: u32 = 1;
/// The bits of an attribute's type that are its type, `NLA_TYPE_MASK`.
const TYPE_MASK: u16 = 0x3fff;

/// Forgets all connections that `address` began, in the calling thread's namespace. The kernel goes through the whole
/// table for it: 12 ms with 262,144 buckets.
///
/// # Errors
/// When the table cannot be listed, or the kernel refuses to delete an entry; the others are deleted.
pub(super) fn forget(address: Ipv4Addr) -> Result<(), NetError> {
    forget_those(&list_of(address), |source| source == address)
}

/// The same of all senders that `is_gone` says so of.
pub(super) fn forget_all(is_gone: impl Fn(Ipv4Addr) -> bool) -> Result<(), NetError> {
    forget_those(&header(), is_gone)
}

fn forget_those(which: &[u8], is_gone: impl Fn(Ipv4Addr) -> bool) -> Result<(), NetError> {
    let error = |source| NetError::List { what: "tracked connections", source };
    let mut socket = NetlinkSocket::new();
    let list = Request { kind: GET, flags: libc::NLM_F_DUMP as u16, payload: which };
    let mut gone = Vec::new();
    {
        let mut replies = socket.request(&list).map_err(|source| error(source.into()))?;
        while let Some(reply) = replies.recv() {
            let entry = reply.map_err(error)?;
            if sender(&entry).is_some_and(&is_gone) {
                gone.push(name_of(&entry));
            }
        }
    }
    let mut result = Ok(());
    for name in gone {
        let delete = Request { kind: DELETE, flags: libc::NLM_F_ACK as u16, payload: &name };
        let answer = match socket.request(&delete) {
            Ok(mut replies) => replies.recv_ack(),
            Err(source) => return Err(error(source.into())),
        };
        match answer {
            // It ended by itself meanwhile.
            Err(source) if source.as_io_error().raw_os_error() == Some(libc::ENOENT) => {}
            Err(source) => result = Err(NetError::Connection(source)),
            Ok(()) => {}
        }
    }
    result
}

/// A message about connections, answered by messages as they come.
struct Request<'a> {
    kind: u16,
    flags: u16,
    payload: &'a [u8],
}

impl NetlinkRequest for Request<'_> {
    fn protocol(&self) -> Protocol {
        Protocol::Raw { protonum: NETFILTER, request_type: self.kind }
    }

    fn flags(&self) -> u16 {
        self.flags
    }

    fn payload(&self) -> &[u8] {
        self.payload
    }

    type ReplyType<'buf> = Vec<u8>;

    fn decode_reply(reply: &[u8]) -> Vec<u8> {
        reply.to_owned()
    }
}

fn header() -> Vec<u8> {
    vec![libc::AF_INET as u8, 0, 0, 0]
}

/// A request for what `address` began.
fn list_of(address: Ipv4Addr) -> Vec<u8> {
    let mut list = header();
    let tuple = push_nested_header(&mut list, TUPLE_ORIG);
    let ip = push_nested_header(&mut list, TUPLE_IP);
    push_header(&mut list, IP_V4_SRC, 4);
    list.extend(address.octets());
    finalize_nested_header(&mut list, ip);
    finalize_nested_header(&mut list, tuple);
    let filter = push_nested_header(&mut list, FILTER);
    push_header(&mut list, FILTER_ORIG_FLAGS, 4);
    list.extend(BY_IP_SRC.to_ne_bytes());
    finalize_nested_header(&mut list, filter);
    list
}

/// Who began a connection.
fn sender(entry: &[u8]) -> Option<Ipv4Addr> {
    let tuple = find(entry.get(HEADER_LEN..)?, TUPLE_ORIG)?;
    let address = find(find(tuple, TUPLE_IP)?, IP_V4_SRC)?;
    <[u8; 4]>::try_from(address).ok().map(Ipv4Addr::from)
}

/// What names a connection, as a request.
fn name_of(entry: &[u8]) -> Vec<u8> {
    let mut name = header();
    for (kind, attribute) in attributes(entry.get(HEADER_LEN..).unwrap_or_default()) {
        if [TUPLE_ORIG, ID, ZONE].contains(&kind) {
            name.extend(attribute);
            name.resize(name.len().next_multiple_of(4), 0);
        }
    }
    name
}

/// The content of the first attribute of this type.
fn find(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(found, _)| *found == kind).and_then(|(_, attribute)| attribute.get(4..))
}

/// The attributes in a message with their types and headers, up to one that is cut off.
fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let header = bytes.first_chunk::<4>()?;
        let len = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let kind = u16::from_ne_bytes([header[2], header[3]]) & TYPE_MASK;
        let attribute = bytes.get(..len).filter(|attribute| attribute.len() >= 4)?;
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, attribute))
    })
}
