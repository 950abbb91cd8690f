//! The guest's network interface, by netlink: address, link, default route. Files with names in them
//! belong to `crate::names`.

use std::net::IpAddr;

use manta_agent_proto::Network;
use netlink_bindings::rt_addr::{self, Ifaddrmsg};
use netlink_bindings::rt_link::{self, IfinfoFlags, Ifinfomsg};
use netlink_bindings::rt_route::{self, Rtmsg};
use netlink_bindings::traits::NetlinkRequest;
use netlink_socket2::{NetlinkSocket, ReplyError};
use thiserror::Error;

const AF_INET: u8 = libc::AF_INET as u8;

/// From `linux/rtnetlink.h`: take the gateway's word that it is on the link.
const RTNH_F_ONLINK: u32 = 4;

/// From `linux/if_link.h`: no address of its own making.
const ADDR_GEN_MODE_NONE: u8 = 1;

/// Which step of the configuration failed.
#[derive(Debug, Error)]
pub enum NetError {
    /// Interfaces cannot be listed.
    #[error("cannot list network interfaces")]
    ListLinks(#[source] ReplyError),
    /// There is no Ethernet interface.
    #[error("the machine has no Ethernet interface")]
    NoInterface,
    /// Addresses cannot be listed.
    #[error("cannot list addresses")]
    ListAddresses(#[source] ReplyError),
    /// An old address cannot be removed.
    #[error("cannot remove address {address}")]
    RemoveAddress {
        /// Which.
        address: IpAddr,
        /// Why.
        source: ReplyError,
    },
    /// The address cannot be added.
    #[error("cannot add address {address}/{prefix_len}")]
    AddAddress {
        /// Which.
        address: IpAddr,
        /// Length of its prefix, bits.
        prefix_len: u8,
        /// Why.
        source: ReplyError,
    },
    /// The interface cannot be set up.
    #[error("cannot set interface {index} up")]
    Up {
        /// Its index.
        index: u32,
        /// Why.
        source: ReplyError,
    },
    /// The default route cannot be set.
    #[error("cannot route by {gateway}")]
    Route {
        /// Through whom.
        gateway: IpAddr,
        /// Why.
        source: ReplyError,
    },
}

/// Gives this network namespace's Ethernet interface the address and no other, sets it up, and routes
/// everything through the gateway. Idempotent.
///
/// # Errors
/// The step that failed.
pub fn configure(network: &Network) -> Result<(), NetError> {
    let mut socket = NetlinkSocket::new();
    let index = ethernet(&mut socket)?;
    let address = IpAddr::V4(network.address);
    for (old, prefix_len) in addresses(&mut socket, index)? {
        if (old, prefix_len) != (address, network.prefix_len) {
            remove_address(&mut socket, index, old, prefix_len)?;
        }
    }
    add_address(&mut socket, index, address, network.prefix_len)?;
    no_ipv6_address(&mut socket, index);
    set_up(&mut socket, index)?;
    default_route(&mut socket, index, network.gateway.into())
}

/// Sets the loopback interface up.
///
/// # Errors
/// [`NetError::Up`].
pub fn loopback_up() -> Result<(), NetError> {
    set_up(&mut NetlinkSocket::new(), 1) // always the first interface of a namespace
}

/// The Ethernet interface that was there first: the machine's own, whatever its name, not what
/// programs in it made later, such as bridges.
fn ethernet(socket: &mut NetlinkSocket) -> Result<u32, NetError> {
    let request = rt_link::Request::new().op_getlink_dump(&Ifinfomsg::new());
    let mut links = socket.request(&request).map_err(|error| NetError::ListLinks(error.into()))?;
    let mut first = None::<u32>;
    while let Some((header, _)) = links.recv().transpose().map_err(NetError::ListLinks)? {
        let index = header.ifi_index.unsigned_abs();
        if header.ifi_type == libc::ARPHRD_ETHER && first.is_none_or(|first| index < first) {
            first = Some(index);
        }
    }
    first.ok_or(NetError::NoInterface)
}

/// IPv4 addresses of the interface, with the lengths of their prefixes.
fn addresses(socket: &mut NetlinkSocket, index: u32) -> Result<Vec<(IpAddr, u8)>, NetError> {
    let header = Ifaddrmsg { ifa_family: AF_INET, ..Default::default() };
    let request = rt_addr::Request::new().op_getaddr_dump(&header);
    let mut replies = socket.request(&request).map_err(|error| NetError::ListAddresses(error.into()))?;
    let mut found = Vec::new();
    while let Some((header, attributes)) = replies.recv().transpose().map_err(NetError::ListAddresses)? {
        if header.ifa_index == index
            && let Ok(address) = attributes.get_local()
        {
            found.push((address, header.ifa_prefixlen));
        }
    }
    Ok(found)
}

fn remove_address(
    socket: &mut NetlinkSocket,
    index: u32,
    address: IpAddr,
    prefix_len: u8,
) -> Result<(), NetError> {
    let header =
        Ifaddrmsg { ifa_family: AF_INET, ifa_index: index, ifa_prefixlen: prefix_len, ..Default::default() };
    let mut request = rt_addr::Request::new().op_deladdr_do(&header);
    request.encode().push_local(address);
    match acknowledged(socket, &request) {
        // Gone with the primary address of its subnet.
        Err(error) if error.as_io_error().raw_os_error() == Some(libc::EADDRNOTAVAIL) => Ok(()),
        result => result.map_err(|source| NetError::RemoveAddress { address, source }),
    }
}

fn add_address(
    socket: &mut NetlinkSocket,
    index: u32,
    address: IpAddr,
    prefix_len: u8,
) -> Result<(), NetError> {
    let header =
        Ifaddrmsg { ifa_family: AF_INET, ifa_index: index, ifa_prefixlen: prefix_len, ..Default::default() };
    let mut request = rt_addr::Request::new().set_create().set_replace().op_newaddr_do(&header);
    request.encode().push_local(address).push_address(address);
    acknowledged(socket, &request).map_err(|source| NetError::AddAddress { address, prefix_len, source })
}

fn set_up(socket: &mut NetlinkSocket, index: u32) -> Result<(), NetError> {
    let up = IfinfoFlags::Up as u32;
    let header = Ifinfomsg { ifi_index: index as i32, ifi_flags: up, ifi_change: up, ..Default::default() };
    acknowledged(socket, &rt_link::Request::new().op_setlink_do(&header))
        .map_err(|source| NetError::Up { index, source })
}

/// Keeps the interface, not yet up, from making itself an IPv6 address and then looking for routers: the host lets
/// no IPv6 pass, and a snapshot would have every clone look again. A kernel without IPv6 refuses, rightly.
fn no_ipv6_address(socket: &mut NetlinkSocket, index: u32) {
    let header = Ifinfomsg { ifi_index: index as i32, ..Default::default() };
    let mut request = rt_link::Request::new().op_setlink_do(&header);
    drop(request.encode().nested_af_spec().nested_inet6().push_addr_gen_mode(ADDR_GEN_MODE_NONE));
    let _ = acknowledged(socket, &request);
}

fn default_route(socket: &mut NetlinkSocket, index: u32, gateway: IpAddr) -> Result<(), NetError> {
    let header = Rtmsg {
        rtm_family: AF_INET,
        rtm_table: libc::RT_TABLE_MAIN,
        rtm_protocol: libc::RTPROT_STATIC,
        rtm_scope: libc::RT_SCOPE_UNIVERSE,
        rtm_type: libc::RTN_UNICAST,
        // Also right for a gateway outside the address's own prefix.
        rtm_flags: RTNH_F_ONLINK,
        ..Default::default()
    };
    let mut request = rt_route::Request::new().set_create().set_replace().op_newroute_do(&header);
    request.encode().push_gateway(gateway).push_oif(index);
    acknowledged(socket, &request).map_err(|source| NetError::Route { gateway, source })
}

fn acknowledged(socket: &mut NetlinkSocket, request: &impl NetlinkRequest) -> Result<(), ReplyError> {
    socket.request(request)?.recv_ack()
}
