//! A slot's network: a namespace with a tap for one guest, joined to the host by a veth pair. Owns these and the
//! slot's element in the host's table. Does not own the VMM that uses the tap.

use std::net::Ipv4Addr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use super::addresses::{
    GUEST, GuestNet, INNER_VETH, PAIR_PREFIX_LEN, TAP, TAP_MAC, host_end, host_veth, inner_end,
};
use super::error::all_or;
use super::host::HostNetwork;
use super::link::Links;
use super::{NetError, host_rules, slot_rules, sysctl, tap};
use crate::netns::NetNs;

/// The network of one sandbox. Dropping it destroys it.
#[derive(Debug)]
pub struct NetSlot {
    host: Arc<HostNetwork>,
    index: u16,
    netns: NetNs,
    destroyed: bool,
}

impl NetSlot {
    /// Makes slot number `index` with all that belongs to it: the VMM can be started in [`NetSlot::netns`] at
    /// once. `tap_owner` is the user id that may open the tap.
    ///
    /// # Errors
    /// When the slot exists, or the kernel refuses something; nothing is left behind then.
    pub fn create(host: &Arc<HostNetwork>, index: u16, tap_owner: u32) -> Result<Self, NetError> {
        let netns = NetNs::create()?;
        let slot = host.netns().run(|| {
            let mut links = Links::open();
            links.create_veth(&host_veth(index), INNER_VETH, netns.as_fd())?;
            // From here on there is something to destroy, also when a step fails.
            let slot = Self { host: Arc::clone(host), index, netns, destroyed: false };
            slot.set_up_outside(&mut links)?;
            Ok::<_, NetError>(slot)
        })??;
        slot.netns.run(|| slot.set_up_inside(tap_owner))??;
        Ok(slot)
    }

    /// Its number.
    #[must_use]
    pub fn index(&self) -> u16 {
        self.index
    }

    /// Its namespace.
    #[must_use]
    pub fn netns(&self) -> &NetNs {
        &self.netns
    }

    /// What the guest must configure.
    #[must_use]
    pub fn guest(&self) -> GuestNet {
        GUEST
    }

    /// The sandbox's address on the host: the one its packets carry until they leave by the egress interface.
    #[must_use]
    pub fn host_address(&self) -> Ipv4Addr {
        inner_end(self.index)
    }

    /// The name of the tap in the namespace.
    #[must_use]
    pub fn tap_name(&self) -> &'static str {
        TAP
    }

    /// Opens the tap, non-blocking, for a VMM that is handed a descriptor. Each frame read or written has a
    /// `virtio_net_hdr` in front.
    ///
    /// # Errors
    /// `EBUSY` when it is open already.
    pub fn open_tap(&self) -> Result<OwnedFd, NetError> {
        self.netns.run(tap::open)?
    }

    /// Destroys the slot: first its way out, then its interfaces; the namespace ends with the last process in
    /// it. Its number is free again when this returns without error.
    ///
    /// # Errors
    /// All that failed; the rest is done.
    pub fn destroy(mut self) -> Result<(), NetError> {
        self.remove()
    }

    fn set_up_inside(&self, tap_owner: u32) -> Result<(), NetError> {
        tap::create(tap_owner)?;
        // Before anything is up. A kernel without IPv6 has nothing to switch off.
        sysctl::write("ipv6/conf/all/disable_ipv6", 1)?;
        slot_rules::install(self.index)?;
        let mut links = Links::open();
        links.set_up("lo")?;
        links.set_mac(TAP, TAP_MAC)?;
        for (name, address, prefix_len) in
            [(TAP, GUEST.gateway, GUEST.prefix_len), (INNER_VETH, inner_end(self.index), PAIR_PREFIX_LEN)]
        {
            links.add_address(name, address, prefix_len)?;
            links.route_ipv4_only(name)?;
            links.set_up(name)?;
        }
        links.add_default_route(INNER_VETH, host_end(self.index))
    }

    fn set_up_outside(&self, links: &mut Links) -> Result<(), NetError> {
        let name = host_veth(self.index);
        links.add_address(&name, host_end(self.index), PAIR_PREFIX_LEN)?;
        links.route_ipv4_only(&name)?;
        links.set_up(&name)?;
        host_rules::admit(&self.host.nft(), self.index)
    }

    fn remove(&mut self) -> Result<(), NetError> {
        if std::mem::replace(&mut self.destroyed, true) {
            return Ok(());
        }
        let expelled = host_rules::expel(&self.host.nft(), self.index);
        let deleted = self.host.netns().run(|| Links::open().delete(&host_veth(self.index)));
        all_or(
            format!("network slot {}", self.index),
            [expelled, deleted.unwrap_or_else(|error| Err(error.into()))],
        )
    }
}

impl Drop for NetSlot {
    fn drop(&mut self) {
        if !self.destroyed {
            let removed = self.remove();
            tracing::warn!(index = self.index, ?removed, "network slot dropped without being destroyed");
        }
    }
}
