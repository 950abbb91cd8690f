//! A slot's network: a namespace with a tap for one guest, joined to the host by a veth pair. Owns these and the
//! slot's element in the host's table. Does not own the VMM that uses the tap.

use std::net::Ipv4Addr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use super::addresses::{GUEST, GuestNet, INNER_VETH, PAIR_PREFIX_LEN, TAP, host_end, host_veth, inner_end};
use super::error::all_or;
use super::host::HostNetwork;
use super::inside::{self, Inside};
use super::link::Links;
use super::{NetError, connections, slot_rules, tap};
use crate::netns::NetNs;
use crate::process::Process;

/// The network of one sandbox. Dropping it destroys it.
#[derive(Debug)]
pub struct NetSlot {
    host: Arc<HostNetwork>,
    index: u16,
    netns: NetNs,
    /// None until it is made, and of one that was taken back.
    inside: Option<Inside>,
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
        let mut slot = host.netns().run(|| {
            let mut links = Links::open();
            links.create_veth(&host_veth(index), INNER_VETH, netns.as_fd())?;
            // From here on there is something to destroy, also when a step fails.
            let slot = Self { host: Arc::clone(host), index, netns, inside: None, destroyed: false };
            slot.set_up_outside(&mut links)?;
            Ok::<_, NetError>(slot)
        })??;
        let limits = host.limits();
        slot.inside = Some(slot.netns.run(|| Inside::set_up(index, tap_owner, limits))??);
        Ok(slot)
    }

    /// Takes back slot number `index`, one that `host` was to keep ([`HostNetwork::take_over`]), with the namespace
    /// that `vmm` is in. It cannot be recycled, only destroyed.
    ///
    /// # Errors
    /// [`NetError::NotTheSlot`] when it was not to be kept, or `vmm` has ended, or is not in the namespace at the
    /// other end of the slot's veth pair, or that lacks its tap or its rules; others when the kernel refuses
    /// something. What is left of the slot on the host is removed then, as by [`Self::discard`], unless it was not
    /// to be kept.
    pub fn adopt(host: &Arc<HostNetwork>, index: u16, vmm: &Process) -> Result<Self, NetError> {
        let wrong = |reason| NetError::NotTheSlot { index, reason };
        if !host.no_longer_kept(index) {
            return Err(wrong("it is not one of those that were kept"));
        }
        let adopt = || {
            let netns = NetNs::of_process(vmm.pid())?;
            // Only now: the number may be another's as soon as it has ended.
            if !matches!(vmm.try_wait(), Ok(None)) {
                return Err(wrong("its VMM has ended"));
            }
            if netns.is(host.netns())? {
                return Err(wrong("its VMM is in the host's network namespace"));
            }
            let ends = |netns: &NetNs, name: &str| {
                let links = netns.run(|| Links::open().list())??;
                let link = links.into_iter().find(|link| link.is_veth && link.name == name);
                Ok::<_, NetError>(link.map(|link| (link.index, link.peer)))
            };
            let outer = ends(host.netns(), &host_veth(index))?.ok_or(wrong("its interface is gone"))?;
            let inner = ends(&netns, INNER_VETH)?.ok_or(wrong("its VMM's namespace has no way out"))?;
            // The index of the host's end is unique on the host, and only one other interface has it as its peer.
            if (outer.0, outer.1) != (inner.1, inner.0) {
                return Err(wrong("its VMM is in the namespace of another slot"));
            }
            netns.run(|| {
                Links::open().index(TAP)?;
                if slot_rules::in_force()? {
                    Ok(())
                } else {
                    Err(wrong("its VMM's namespace has lost its rules"))
                }
            })??;
            Ok(netns)
        };
        match adopt() {
            Ok(netns) => Ok(Self { host: Arc::clone(host), index, netns, inside: None, destroyed: false }),
            Err(error) => {
                if let Err(left) = Self::remove_or_keep(host, index, false) {
                    tracing::warn!(
                        index,
                        error = &left as &dyn std::error::Error,
                        "a slot is not quite removed"
                    );
                }
                Err(error)
            }
        }
    }

    /// Removes slot number `index`, one that `host` was to keep, whose sandbox is no more, or that could not be
    /// destroyed. Its processes must have ended. Fine when it is gone.
    ///
    /// # Errors
    /// All that failed; the rest is done, and it can be tried again.
    pub fn discard(host: &HostNetwork, index: u16) -> Result<(), NetError> {
        if host.no_longer_kept(index) { Self::remove_or_keep(host, index, false) } else { Ok(()) }
    }

    /// Makes a used slot as good as new, for another sandbox. Takes some 30 ms, and less than half the processor time
    /// that it takes to destroy it and create another.
    ///
    /// Only for a slot whose sandbox did not use the network: to look for what it left otherwise takes longer than
    /// all that. Its VMM must have ended, and must not have been root.
    ///
    /// # Errors
    /// [`NetError::NotClean`] when it is not certain that nothing of the sandbox is left, others when the kernel
    /// refuses something. Only [`Self::destroy`] is left to do then.
    pub fn recycle(&mut self) -> Result<(), NetError> {
        let inside = self.inside.as_mut().ok_or(NetError::NotClean("this server has not made it"))?;
        self.netns.run(|| inside.recycle())?
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

    /// Destroys the slot: first its way out, then its interfaces, then what the host knows of its connections; the
    /// namespace ends with the last process in it. Its number is free again when this returns without error.
    ///
    /// # Errors
    /// All that failed; the rest is done, and [`Self::discard`] tries again.
    pub fn destroy(mut self) -> Result<(), NetError> {
        self.remove()
    }

    fn set_up_outside(&self, links: &mut Links) -> Result<(), NetError> {
        let name = host_veth(self.index);
        links.set_up_ipv4(&name, host_end(self.index), PAIR_PREFIX_LEN)?;
        self.host.admit(self.index)
    }

    fn remove(&mut self) -> Result<(), NetError> {
        if std::mem::replace(&mut self.destroyed, true) {
            return Ok(());
        }
        // Most sandboxes never send anything, and it takes time to look for nothing.
        let silent = self.inside.is_some() && matches!(self.netns.run(inside::was_silent), Ok(Ok(true)));
        Self::remove_or_keep(&self.host, self.index, silent)
    }

    /// As [`Self::remove_from`]; what fails is left to [`Self::discard`].
    fn remove_or_keep(host: &HostNetwork, index: u16, silent: bool) -> Result<(), NetError> {
        let removed = Self::remove_from(host, index, silent);
        if removed.is_err() {
            host.keep(index);
        }
        removed
    }

    /// Removes what slot `index` has on the host; it has no connections if it was `silent`.
    pub(super) fn remove_from(host: &HostNetwork, index: u16, silent: bool) -> Result<(), NetError> {
        let expelled = host.expel(index);
        let outside = host.netns().run(|| {
            let deleted = Links::open().delete(&host_veth(index));
            let forgotten = if silent { Ok(()) } else { connections::forget(inner_end(index)) };
            [deleted, forgotten]
        });
        let what = format!("network slot {index}");
        match outside {
            Ok([deleted, forgotten]) => all_or(what, [expelled, deleted, forgotten]),
            Err(error) => all_or(what, [expelled, Err(error.into())]),
        }
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
