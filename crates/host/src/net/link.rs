//! Interfaces, addresses and routes by rtnetlink, in the namespace of the thread that opened it. Knows which
//! messages to send, not which interfaces a slot has.

use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, BorrowedFd};

use netlink_bindings::rt_addr::{self, Ifaddrmsg};
use netlink_bindings::rt_link::{self, Ifinfomsg, PushLinkAttrs};
use netlink_bindings::rt_route::{self, Rtmsg};
use netlink_bindings::traits::{NetlinkRequest, Pusher};
use netlink_bindings::utils::{finalize_nested_header, push_header, push_nested_header};
use netlink_socket2::{NetlinkSocket, ReplyError};

use super::NetError;

/// `IFLA_INFO_DATA`, `linux/if_link.h`.
const IFLA_INFO_DATA: u16 = 2;
/// `VETH_INFO_PEER`, `linux/veth.h`.
const VETH_INFO_PEER: u16 = 1;
/// `IFLA_INET_CONF`, `linux/if_link.h`.
const IFLA_INET_CONF: u16 = 1;
/// `IPV4_DEVCONF_FORWARDING` and `IPV4_DEVCONF_RP_FILTER`, `linux/ip.h`.
const DEVCONF_FORWARDING: u16 = 1;
const DEVCONF_RP_FILTER: u16 = 8;
/// `IN6_ADDR_GEN_MODE_NONE`, `linux/if_link.h`.
const ADDR_GEN_MODE_NONE: u8 = 1;
const IFF_UP: u32 = libc::IFF_UP as u32;

/// An rtnetlink socket.
pub(super) struct Links {
    socket: NetlinkSocket,
}

/// An interface as listed.
pub(super) struct Link {
    pub(super) name: String,
    pub(super) is_veth: bool,
    pub(super) index: u32,
    /// The index of its other end, in the namespace that is in; 0 if it has none.
    pub(super) peer: u32,
}

impl Links {
    /// For the namespace of the calling thread, provided it is used there first.
    pub(super) fn open() -> Self {
        Self { socket: NetlinkSocket::new() }
    }

    /// For other requests in the same namespace.
    pub(super) fn socket(&mut self) -> &mut NetlinkSocket {
        &mut self.socket
    }

    /// Creates a veth pair, down: `name` here, `peer` in the namespace `netns`.
    pub(super) fn create_veth(
        &mut self,
        name: &str,
        peer: &str,
        netns: BorrowedFd<'_>,
    ) -> Result<(), NetError> {
        let mut request = rt_link::Request::new().set_create().set_excl().op_newlink_do(&Ifinfomsg::new());
        let mut link =
            request.encode().push_ifname_bytes(name.as_bytes()).nested_linkinfo().push_kind(c"veth");
        let buf = link.as_vec_mut();
        let data = push_nested_header(buf, IFLA_INFO_DATA);
        let pair = push_nested_header(buf, VETH_INFO_PEER);
        buf.extend_from_slice(Ifinfomsg::new().as_slice());
        let fd = netns.as_raw_fd().cast_unsigned();
        drop(PushLinkAttrs::new(&mut *buf).push_ifname_bytes(peer.as_bytes()).push_net_ns_fd(fd));
        finalize_nested_header(buf, pair);
        finalize_nested_header(buf, data);
        drop(link);
        self.act(&request, "create", name)
    }

    /// Lets an interface forward what arrives on it, provided a reply to the sender would leave the same way
    /// (strict reverse path filter), and keeps it from making itself an IPv6 address when it comes up.
    pub(super) fn route_ipv4_only(&mut self, name: &str) -> Result<(), NetError> {
        let mut request = rt_link::Request::new().op_setlink_do(&Ifinfomsg::new());
        let families = request.encode().push_ifname_bytes(name.as_bytes()).nested_af_spec();
        let mut inet = families.nested_inet();
        let buf = inet.as_vec_mut();
        let settings = push_nested_header(buf, IFLA_INET_CONF);
        for setting in [DEVCONF_FORWARDING, DEVCONF_RP_FILTER] {
            push_header(buf, setting, 4);
            buf.extend_from_slice(&1u32.to_ne_bytes());
        }
        finalize_nested_header(buf, settings);
        drop(inet.end_nested().nested_inet6().push_addr_gen_mode(ADDR_GEN_MODE_NONE));
        self.act(&request, "configure", name)
    }

    /// Gives an interface a MAC address.
    pub(super) fn set_mac(&mut self, name: &str, mac: [u8; 6]) -> Result<(), NetError> {
        let mut request = rt_link::Request::new().op_setlink_do(&Ifinfomsg::new());
        drop(request.encode().push_ifname_bytes(name.as_bytes()).push_address(&mac));
        self.act(&request, "set the MAC address of", name)
    }

    /// Brings an interface up.
    pub(super) fn set_up(&mut self, name: &str) -> Result<(), NetError> {
        let header = Ifinfomsg { ifi_flags: IFF_UP, ifi_change: IFF_UP, ..Default::default() };
        let mut request = rt_link::Request::new().op_setlink_do(&header);
        drop(request.encode().push_ifname_bytes(name.as_bytes()));
        self.act(&request, "bring up", name)
    }

    /// Deletes an interface; fine when there is none.
    pub(super) fn delete(&mut self, name: &str) -> Result<(), NetError> {
        let mut request = rt_link::Request::new().op_dellink_do(&Ifinfomsg::new());
        drop(request.encode().push_ifname_bytes(name.as_bytes()));
        match self.act(&request, "delete", name) {
            Err(NetError::Link { source, .. }) if errno(&source) == Some(libc::ENODEV) => Ok(()),
            result => result,
        }
    }

    /// All interfaces.
    pub(super) fn list(&mut self) -> Result<Vec<Link>, NetError> {
        let error = |source| NetError::List { what: "interfaces", source };
        let request = rt_link::Request::new().op_getlink_dump(&Ifinfomsg::new());
        let mut replies = self.socket.request(&request).map_err(|source| error(source.into()))?;
        let mut links = Vec::new();
        while let Some(reply) = replies.recv() {
            let (header, attributes) = reply.map_err(error)?;
            let Ok(name) = attributes.get_ifname() else { continue };
            let is_veth = attributes.get_linkinfo().is_ok_and(|info| info.get_kind() == Ok(c"veth"));
            let (index, peer) = (header.ifi_index.cast_unsigned(), attributes.get_link().unwrap_or(0));
            links.push(Link { name: name.to_string_lossy().into_owned(), is_veth, index, peer });
        }
        Ok(links)
    }

    /// The index of an interface.
    pub(super) fn index(&mut self, name: &str) -> Result<u32, NetError> {
        let mut request = rt_link::Request::new().op_getlink_do(&Ifinfomsg::new());
        drop(request.encode().push_ifname_bytes(name.as_bytes()));
        let link = |source| match errno(&source) {
            Some(libc::ENODEV) => NetError::NoInterface(name.to_owned()),
            _ => NetError::Link { action: "look up", name: name.to_owned(), source },
        };
        let mut replies = self.socket.request(&request).map_err(|source| link(source.into()))?;
        let (header, _) = replies.recv_one().map_err(link)?;
        Ok(header.ifi_index.cast_unsigned())
    }

    /// Gives an interface an address.
    pub(super) fn add_address(
        &mut self,
        name: &str,
        address: Ipv4Addr,
        prefix_len: u8,
    ) -> Result<(), NetError> {
        let header = Ifaddrmsg {
            ifa_family: libc::AF_INET as u8,
            ifa_index: self.index(name)?,
            ifa_prefixlen: prefix_len,
            ..Default::default()
        };
        let mut request = rt_addr::Request::new().set_create().set_excl().op_newaddr_do(&header);
        drop(request.encode().push_local(address.into()).push_address(address.into()));
        self.act(&request, "add an address to", name)
    }

    /// Makes `gateway` behind the interface the IPv4 default route.
    pub(super) fn add_default_route(&mut self, name: &str, gateway: Ipv4Addr) -> Result<(), NetError> {
        let header = Rtmsg {
            rtm_family: libc::AF_INET as u8,
            rtm_table: libc::RT_TABLE_MAIN,
            rtm_protocol: libc::RTPROT_STATIC,
            rtm_scope: libc::RT_SCOPE_UNIVERSE,
            rtm_type: libc::RTN_UNICAST,
            ..Default::default()
        };
        let index = self.index(name)?;
        let mut request = rt_route::Request::new().set_create().set_excl().op_newroute_do(&header);
        drop(request.encode().push_gateway(gateway.into()).push_oif(index));
        self.act(&request, "route by", name)
    }

    /// The interface of the IPv4 default route with the lowest metric, if there is one.
    pub(super) fn default_route_interface(&mut self) -> Result<Option<String>, NetError> {
        let error = |source| NetError::List { what: "routes", source };
        let header = Rtmsg { rtm_family: libc::AF_INET as u8, ..Default::default() };
        let request = rt_route::Request::new().op_getroute_dump(&header);
        let mut best: Option<(u32, u32)> = None;
        {
            let mut replies = self.socket.request(&request).map_err(|source| error(source.into()))?;
            while let Some(reply) = replies.recv() {
                let (header, attributes) = reply.map_err(error)?;
                let default = header.rtm_dst_len == 0
                    && header.rtm_table == libc::RT_TABLE_MAIN
                    && header.rtm_type == libc::RTN_UNICAST;
                let Ok(index) = attributes.get_oif() else { continue };
                let metric = attributes.get_priority().unwrap_or(0);
                if default && best.is_none_or(|(lowest, _)| metric < lowest) {
                    best = Some((metric, index));
                }
            }
        }
        let Some((_, index)) = best else { return Ok(None) };
        let link = Ifinfomsg { ifi_index: index.cast_signed(), ..Default::default() };
        let request = rt_link::Request::new().op_getlink_do(&link);
        let error = |source| NetError::List { what: "interfaces", source };
        let mut replies = self.socket.request(&request).map_err(|source| error(source.into()))?;
        let (_, attributes) = replies.recv_one().map_err(error)?;
        Ok(attributes.get_ifname().ok().map(|name| name.to_string_lossy().into_owned()))
    }

    /// Addresses an interface, lets it route IPv4 ([`Self::route_ipv4_only`]), and brings it up.
    pub(super) fn set_up_ipv4(
        &mut self,
        name: &str,
        address: Ipv4Addr,
        prefix_len: u8,
    ) -> Result<(), NetError> {
        self.add_address(name, address, prefix_len)?;
        self.route_ipv4_only(name)?;
        self.set_up(name)
    }

    fn act(
        &mut self,
        request: &impl NetlinkRequest,
        action: &'static str,
        name: &str,
    ) -> Result<(), NetError> {
        let error = |source| NetError::Link { action, name: name.to_owned(), source };
        self.socket.request(request).map_err(|source| error(source.into()))?.recv_ack().map_err(error)
    }
}

fn errno(error: &ReplyError) -> Option<i32> {
    error.as_io_error().raw_os_error()
}
