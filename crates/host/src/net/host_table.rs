//! The host's table in force: the socket that changes it, and who is let out now, so that it can be put back whole
//! when somebody else has deleted it. What it says is in `host_rules`; who tells that it is gone is `watch`.

use std::collections::BTreeSet;
use std::fmt;

use netlink_socket2::NetlinkSocket;

use super::NetError;
use super::host::Egress;
use super::host_rules;
use super::nft::Socket;

/// Changes follow each other: whoever makes one has it to himself.
pub(super) struct HostTable {
    /// Kept open, like the other: closing one waits for all that a batch has deleted to be freed, some 10 ms (an RCU
    /// grace period).
    nft: Socket,
    look: NetlinkSocket,
    admitted: BTreeSet<u16>,
    /// It was gone, and nobody was told yet.
    was_gone: bool,
}

impl HostTable {
    /// Puts it into force in the calling thread's namespace, as [`host_rules::install`] does, and lets out `admitted`.
    pub(super) fn install(egress: Option<&Egress>, admitted: BTreeSet<u16>) -> Result<Self, NetError> {
        let (nft, mut look) = (Socket::open()?, NetlinkSocket::new());
        host_rules::install(&nft, &mut look, egress, &admitted)?;
        Ok(Self { nft, look, admitted, was_gone: false })
    }

    /// Lets slot `index` out; puts the table back if it is gone.
    pub(super) fn admit(&mut self, egress: Option<&Egress>, index: u16) -> Result<(), NetError> {
        self.admitted.insert(index);
        let mut result = host_rules::admit(&self.nft, index);
        if result.as_ref().is_err_and(NetError::is_missing) {
            result = self.put_back(egress);
        }
        if result.is_err() {
            self.admitted.remove(&index);
        }
        result
    }

    /// Lets slot `index` out no longer; fine when it was not let out, or the table is gone.
    pub(super) fn expel(&mut self, index: u16) -> Result<(), NetError> {
        self.admitted.remove(&index);
        host_rules::expel(&self.nft, index)
    }

    /// Makes sure that it is as it should be, and tells whether it was gone since the last call.
    pub(super) fn restore(&mut self, egress: Option<&Egress>) -> Result<bool, NetError> {
        self.put_back(egress)?;
        let was_gone = std::mem::take(&mut self.was_gone);
        if was_gone {
            tracing::warn!(
                sandboxes = self.admitted.len(),
                "somebody has deleted the nftables table `inet manta`, which keeps sandboxes from this host and from \
                 private networks; it is back. Load the firewall before the server starts, or add to the rules there \
                 are instead of flushing them"
            );
        }
        Ok(was_gone)
    }

    pub(super) fn remove(&mut self) -> Result<(), NetError> {
        host_rules::remove(&self.nft)
    }

    fn put_back(&mut self, egress: Option<&Egress>) -> Result<(), NetError> {
        self.was_gone |= !host_rules::in_force(&mut self.look, egress)?;
        let mut install = || host_rules::install(&self.nft, &mut self.look, egress, &self.admitted);
        // Whoever loads a firewall anew may delete all that is there twice, and this when it was just seen.
        install().or_else(|error| if error.is_missing() { install() } else { Err(error) })
    }
}

impl fmt::Debug for HostTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HostTable").field("admitted", &self.admitted).finish_non_exhaustive()
    }
}
