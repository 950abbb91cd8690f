//! One server per network namespace. The lock is an empty nftables table that belongs to a socket of its holder: it
//! takes root to make one, nobody else can delete it, and the kernel does when the holder dies, however it dies.

use rustix::io::Errno;

use super::nft::{Batch, Family, OWN_TABLE, Socket, Table};
use super::{NetError, NftError};

/// Of a family in which we have no other table, since all have one name.
const LOCK: Table = Table(Family::Arp);

/// The right to be the one server in this network namespace, held until dropped.
#[derive(Debug)]
pub struct ServerLock {
    _owner: Socket,
}

impl ServerLock {
    /// Locks the calling thread's network namespace.
    ///
    /// # Errors
    /// [`NetError::InUse`] when another holder is alive, in this process or another; [`NetError::Nft`] when the kernel
    /// knows no owned tables, which came with Linux 5.12.
    pub fn acquire() -> Result<Self, NetError> {
        let owner = Socket::open()?;
        let mut batch = Batch::new();
        batch.own_table(LOCK);
        match batch.commit(&owner, "lock the network namespace (from Linux 5.12 on)") {
            Ok(()) => Ok(Self { _owner: owner }),
            Err(NetError::Nft { source: NftError::Refused { step, source: Errno::PERM }, .. })
                if step == OWN_TABLE =>
            {
                Err(NetError::InUse)
            }
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::NetNs;
    use crate::net::HostNetwork;

    #[test]
    fn one_server_per_network_namespace() {
        let netns = NetNs::create().unwrap();
        let held = netns.run(ServerLock::acquire).unwrap().unwrap();
        assert!(matches!(netns.run(ServerLock::acquire).unwrap(), Err(NetError::InUse)));
        NetNs::create().unwrap().run(ServerLock::acquire).unwrap().unwrap();
        // What the holder does beside it takes nothing from it.
        let network = netns.run(|| HostNetwork::set_up(None)).unwrap().unwrap();
        assert!(matches!(netns.run(ServerLock::acquire).unwrap(), Err(NetError::InUse)));
        network.tear_down().unwrap();
        drop(held);
        netns.run(ServerLock::acquire).unwrap().unwrap();
    }
}
