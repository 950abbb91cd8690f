//! Sends a batch and collects what the kernel says about each message. Does not build batches.
//!
//! Not by `netlink_socket2`'s `request_chained`: that waits for acknowledgements it picks by comparing
//! function addresses, and kernels before 6.10 do not acknowledge a batch's first and last message.

use std::os::fd::OwnedFd;

use netlink_bindings::builtin::Nlmsghdr;
use rustix::io::Errno;
use rustix::net::sockopt::set_socket_send_buffer_size_force;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send, socket_with,
};

use crate::net::{NetError, NftError};

/// More than the kernel ever puts in one datagram of a netlink reply to a batch (an error repeats the message
/// it is about).
const ANSWER_BYTES: usize = 32 * 1024;
/// Room for a batch that lets out as many slots as there can be, 32 bytes for each. The kernel takes none that is larger
/// than the buffer, of which nothing is allocated before.
const BATCH_BYTES: usize = 1024 * 1024;

/// An nftables netlink socket, in the namespace of the thread that opened it.
#[derive(Debug)]
pub(in crate::net) struct Socket {
    fd: OwnedFd,
}

impl Socket {
    pub(in crate::net) fn open() -> Result<Self, NetError> {
        let (family, kind) = (AddressFamily::NETLINK, SocketType::RAW);
        let socket = socket_with(family, kind, SocketFlags::CLOEXEC, Some(netlink::NETFILTER));
        let opened = socket.and_then(|fd| {
            set_socket_send_buffer_size_force(&fd, BATCH_BYTES)?;
            Ok(Self { fd })
        });
        opened.map_err(|source| NetError::Nft { action: "open a socket", source: NftError::Socket(source) })
    }

    /// Sends a batch whose messages have the sequence numbers 0, 1, …, named by `steps`.
    pub(super) fn send(&self, batch: &[u8], steps: &[String]) -> Result<(), NftError> {
        if send(&self.fd, batch, SendFlags::empty()).map_err(NftError::Socket)? != batch.len() {
            return Err(NftError::Answer);
        }
        // The kernel has worked through the batch before `send` returned: all its answers are here, and all
        // are read, also after an error.
        let mut result = Ok(());
        let mut acknowledged = 0;
        let mut answer = vec![0; ANSWER_BYTES];
        loop {
            let len = match recv(&self.fd, &mut answer[..], RecvFlags::DONTWAIT) {
                Ok((len, _)) => len,
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => continue,
                Err(source) => return Err(NftError::Socket(source)),
            };
            let mut rest = &answer[..len];
            while !rest.is_empty() {
                let (seq, errno, len) = parse(rest).ok_or(NftError::Answer)?;
                let step = steps.get(seq).ok_or(NftError::Answer)?;
                if errno != 0 && result.is_ok() {
                    let source = Errno::from_raw_os_error(errno);
                    result = Err(NftError::Refused { step: step.clone(), source });
                }
                acknowledged += usize::from(seq != 0 && seq != steps.len() - 1);
                rest = &rest[len..];
            }
        }
        // All but the first and the last.
        if result.is_ok() && acknowledged != steps.len() - 2 { Err(NftError::Answer) } else { result }
    }
}

/// The sequence number, error number and aligned length of the error message (or acknowledgement) that `bytes`
/// starts with.
fn parse(bytes: &[u8]) -> Option<(usize, i32, usize)> {
    let header = Nlmsghdr::from_slice(bytes.get(..Nlmsghdr::len())?);
    if i32::from(header.r#type) != libc::NLMSG_ERROR {
        return None;
    }
    let code = bytes.get(Nlmsghdr::len()..Nlmsghdr::len() + 4)?;
    let code = i32::from_ne_bytes(code.try_into().ok()?);
    let len = (header.len as usize).next_multiple_of(4).min(bytes.len());
    (len >= Nlmsghdr::len()).then_some((header.seq as usize, -code, len))
}
