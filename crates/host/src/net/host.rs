//! What all sandboxes share on the host: the nftables table, and an egress interface that forwards for them.
//! Does not own any sandbox's part; see [`super::NetSlot`].

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

use super::error::all_or;
use super::host_table::HostTable;
use super::link::Links;
use super::watch::TableWatch;
use super::{NetError, NetLimits, NetSlot, host_rules, sysctl};
use crate::netns::NetNs;

/// The host's part of the network, in one network namespace. Dropping it removes it, unless slots of an earlier
/// server are left in it that nobody has taken back: their sandboxes may run, so what confines them stays.
#[derive(Debug)]
pub struct HostNetwork {
    netns: NetNs,
    /// Locked from a batch to its answer.
    table: Mutex<HostTable>,
    egress: Option<Egress>,
    limits: NetLimits,
    in_force: bool,
    /// Slots of an earlier server that were neither taken back nor discarded yet, and slots that could not be destroyed.
    kept: Mutex<BTreeSet<u16>>,
}

/// The interface that leads to the internet.
///
/// What it was like before is kept as the comment of the nftables table: there it outlives a server that is
/// killed, exactly as long as what the server did, and the next server finds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Egress {
    pub(super) name: String,
    /// Whether it forwarded packets before the first server asked it to.
    pub(super) forwarded_before: bool,
}

/// Whether there is an interface of this name in the calling thread's namespace. (`/sys/class/net` shows that
/// of whoever mounted it.)
#[must_use]
pub fn interface_exists(name: &str) -> bool {
    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None);
    socket.is_ok_and(|socket| rustix::net::netdevice::name_to_index(socket, name).is_ok())
}

/// The interface of the IPv4 default route in the calling thread's namespace; `None` without such a route, or
/// if it cannot be found out (which is logged).
#[must_use]
pub fn detect_egress() -> Option<String> {
    Links::open().default_route_interface().unwrap_or_else(|error| {
        tracing::warn!(error = &error as &dyn std::error::Error, "cannot look for the default route");
        None
    })
}

impl HostNetwork {
    /// Sets up the network in the calling thread's namespace: the table, in one transaction and in place of
    /// one that an earlier server left, then forwarding on `egress`. Without `egress` sandboxes reach nothing.
    ///
    /// Forwarding is switched on per interface; the machine's global setting is not touched. If `egress` did
    /// not forward before, the table drops what would be forwarded from it to anyone but a sandbox.
    ///
    /// # Errors
    /// When there is no interface `egress`, or the kernel refuses something; nothing is left behind then.
    pub fn set_up(egress: Option<&str>) -> Result<Self, NetError> {
        Self::take_over(egress, &[])
    }

    /// Like [`Self::set_up`], and keeps the slots `keep` of the server before: they are let out, by `egress`. If that
    /// and the rules are the same as before, none of their packets is lost; if not, those of some milliseconds. Then each is to be taken back ([`NetSlot::adopt`]) or discarded
    /// ([`NetSlot::discard`]).
    ///
    /// # Errors
    /// As for [`Self::set_up`], but then what the earlier server has left is left as it was.
    pub fn take_over(egress: Option<&str>, keep: &[u16]) -> Result<Self, NetError> {
        let netns = NetNs::current()?;
        let left_over = Egress::left_over()?;
        let egress = egress.map(|name| Egress::find(name, left_over.as_ref())).transpose()?;
        let kept: BTreeSet<u16> = keep.iter().copied().collect();
        let table = HostTable::install(egress.as_ref(), kept.clone())?;
        if let Some(other) = left_over.filter(|left| egress.as_ref().is_none_or(|now| now.name != left.name))
        {
            other.restore()?;
        }
        let (table, kept) = (Mutex::new(table), Mutex::new(kept));
        let network = Self { netns, table, egress, limits: NetLimits::default(), in_force: true, kept };
        if let Some(egress) = &network.egress {
            sysctl::write(&sysctl::forwarding(&egress.name), 1)?;
        }
        Ok(network)
    }

    /// Gives these limits to each slot made from now on.
    #[must_use]
    pub fn with_limits(mut self, limits: NetLimits) -> Self {
        self.limits = limits;
        self
    }

    /// What a slot that is made now may use.
    pub(super) fn limits(&self) -> NetLimits {
        self.limits
    }

    /// The egress interface.
    #[must_use]
    pub fn egress(&self) -> Option<&str> {
        self.egress.as_ref().map(|egress| egress.name.as_str())
    }

    /// The namespace it is in.
    #[must_use]
    pub fn netns(&self) -> &NetNs {
        &self.netns
    }

    /// Tells when somebody else may have deleted the table: [`Self::restore`] is next.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub fn watch(&self) -> Result<TableWatch, NetError> {
        self.netns.run(TableWatch::open)?
    }

    /// Puts the table back, with all that it is to let out, if it is gone or another; if not, nothing changes for a packet. Tells
    /// whether that was necessary since the last call, by this or to let out a new slot; it is logged.
    ///
    /// # Errors
    /// When the kernel refuses it. Then sandboxes are shut off, or nothing confines them.
    pub fn restore(&self) -> Result<bool, NetError> {
        self.table().restore(self.egress.as_ref())
    }

    /// Lets slot `index` out.
    pub(super) fn admit(&self, index: u16) -> Result<(), NetError> {
        self.table().admit(self.egress.as_ref(), index)
    }

    /// Lets slot `index` out no longer; fine when it was not let out.
    pub(super) fn expel(&self, index: u16) -> Result<(), NetError> {
        self.table().expel(index)
    }

    /// A panic elsewhere cannot leave it half-changed.
    fn table(&self) -> MutexGuard<'_, HostTable> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether slot `index` is one to be taken back or discarded; it is not any more then.
    pub(super) fn no_longer_kept(&self, index: u16) -> bool {
        self.kept().remove(&index)
    }

    /// Slot `index` is to be discarded.
    pub(super) fn keep(&self, index: u16) {
        self.kept().insert(index);
    }

    /// A panic elsewhere cannot leave it half-changed.
    fn kept(&self) -> MutexGuard<'_, BTreeSet<u16>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Removes slots that nobody has taken back, gives the egress interface its former setting and deletes the table. Destroy all slots first: nothing
    /// confines those that are left (their own namespaces still let nobody in).
    ///
    /// # Errors
    /// All that failed; the rest is done.
    pub fn tear_down(mut self) -> Result<(), NetError> {
        self.remove()
    }

    fn remove(&mut self) -> Result<(), NetError> {
        if !std::mem::take(&mut self.in_force) {
            return Ok(());
        }
        let kept = std::mem::take(&mut *self.kept());
        let mut results: Vec<_> =
            kept.into_iter().map(|index| NetSlot::remove_from(self, index, false)).collect();
        let egress = self.egress.take();
        let restored = match egress {
            Some(egress) => self.netns.run(|| egress.restore())?,
            None => Ok(()),
        };
        results.extend([restored, self.table().remove()]);
        all_or("the host's network", results)
    }
}

impl Drop for HostNetwork {
    fn drop(&mut self) {
        if self.in_force && !self.kept().is_empty() {
            tracing::warn!(slots = ?self.kept(), "host network left in force for sandboxes not taken back");
        } else if self.in_force {
            let removed = self.remove();
            tracing::warn!(?removed, "host network dropped without being torn down");
        }
    }
}

impl Egress {
    /// The interface `name` of the calling thread's namespace, given what an earlier server changed.
    fn find(name: &str, left_over: Option<&Self>) -> Result<Self, NetError> {
        let now = sysctl::read(&sysctl::forwarding(name))?;
        let now = now.ok_or_else(|| NetError::NoInterface(name.to_owned()))?;
        match left_over {
            Some(left) if left.name == name => Ok(left.clone()),
            _ => Ok(Self { name: name.to_owned(), forwarded_before: now != 0 }),
        }
    }

    /// The egress interface of the server whose table is in force.
    pub(super) fn left_over() -> Result<Option<Self>, NetError> {
        Ok(host_rules::TABLE.comment()?.as_deref().and_then(Self::from_comment))
    }

    /// Undoes what was done to the interface; fine when it is gone.
    pub(super) fn restore(&self) -> Result<(), NetError> {
        // Someone who has switched on forwarding for the whole machine meanwhile means this interface too.
        let all = sysctl::read(&sysctl::forwarding("all"))?.unwrap_or(0);
        if !self.forwarded_before && all == 0 {
            sysctl::write(&sysctl::forwarding(&self.name), 0)?;
        }
        Ok(())
    }

    pub(super) fn to_comment(&self) -> String {
        format!("egress {} forwarding {} ", self.name, u8::from(self.forwarded_before))
    }

    fn from_comment(comment: &str) -> Option<Self> {
        // A name has no spaces: the kernel refuses them.
        let (name, rest) = comment.strip_prefix("egress ")?.split_once(" forwarding ")?;
        let forwarding = rest.split(' ').next()?;
        Some(Self { name: name.to_owned(), forwarded_before: forwarding != "0" })
    }
}
