//! Hears of it when somebody deletes the host's table. Does not put it back: [`super::HostNetwork::restore`] does.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use netlink_bindings::builtin::Nlmsghdr;
use rustix::io::Errno;
use rustix::net::netlink::{self, SocketAddrNetlink};
use rustix::net::sockopt::set_socket_recv_buffer_size_force;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, bind, recv, socket_with};

use super::host_rules::TABLE;
use super::{NetError, NftError};

/// `NFNLGRP_NFTABLES`, `linux/netfilter/nfnetlink.h`, as a bit of the groups that a socket is in.
const CHANGES: u32 = 1 << (7 - 1);
/// More than the kernel ever puts in one datagram (`NLMSG_GOODSIZE`, 8 KiB at most).
const DATAGRAM_BYTES: usize = 32 * 1024;

/// Room for what is said when the table is put back with as many slots as there can be, two messages of some 100 bytes
/// for each: with less, putting it back would be followed by [`TableWatch::lost`], for ever. Allocated as it fills.
const BUFFER_BYTES: usize = 8 * 1024 * 1024;

/// Tells of the host's table that it may be gone: its descriptor is readable then, and at other times.
#[derive(Debug)]
pub struct TableWatch {
    fd: OwnedFd,
}

impl TableWatch {
    /// For the namespace of the calling thread.
    pub(super) fn open() -> Result<Self, NetError> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, Some(netlink::NETFILTER));
        let subscribed = socket.and_then(|fd| {
            set_socket_recv_buffer_size_force(&fd, BUFFER_BYTES)?;
            bind(&fd, &SocketAddrNetlink::new(0, CHANGES))?;
            Ok(fd)
        });
        subscribed.map(|fd| Self { fd }).map_err(error)
    }

    /// To be called when the descriptor is readable: takes what it has to say, and tells whether the table may be
    /// gone. Most of it is about slots that come and go.
    ///
    /// # Errors
    /// When the kernel does not say any more.
    pub fn lost(&self) -> Result<bool, NetError> {
        let mut lost = false;
        let mut datagram = vec![0; DATAGRAM_BYTES];
        loop {
            match recv(&self.fd, &mut datagram[..], RecvFlags::empty()) {
                Ok((len, _)) => {
                    lost |= messages(&datagram[..len]).any(|(kind, body)| TABLE.is_deleted(kind, body))
                }
                // Something was not said, for want of room: it may have been that.
                Err(Errno::NOBUFS) => lost = true,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(lost),
                Err(source) => return Err(error(source)),
            }
        }
    }
}

impl AsFd for TableWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn error(source: Errno) -> NetError {
    NetError::Nft { action: "watch the nftables tables", source: NftError::Socket(source) }
}

/// The messages in a datagram, each its type and what follows its header, up to one that is cut off.
fn messages(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let header = Nlmsghdr::new_from_slice(bytes.get(..Nlmsghdr::len())?)?;
        let (kind, len) = (header.r#type, header.len as usize);
        let body = bytes.get(Nlmsghdr::len()..len)?;
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, body))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u16, body: &[u8]) -> Vec<u8> {
        let len = (Nlmsghdr::len() + body.len()) as u32;
        let mut message = [&len.to_ne_bytes()[..], &kind.to_ne_bytes(), &[0; 10], body].concat();
        message.resize(message.len().next_multiple_of(4), 0);
        message
    }

    #[test]
    fn messages_are_told_apart_up_to_one_that_is_cut_off() {
        let datagram = [message(1, b"odd"), message(2, b""), message(3, b"long enough")].concat();
        let read = |len: usize| messages(&datagram[..len]).collect::<Vec<_>>();
        let all: [(u16, &[u8]); 3] = [(1, b"odd"), (2, b""), (3, b"long enough")];
        assert_eq!(read(datagram.len()), all);
        assert_eq!(read(datagram.len() - 4), all[..2]);
        assert_eq!(read(20 + 15), all[..1]);
        assert_eq!(messages(&message(1, b"")[..8]).count(), 0);
        assert_eq!(messages(&[0; 64]).count(), 0, "none is shorter than its header");
    }
}
