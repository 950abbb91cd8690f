//! Removes what a server that was killed has left of the network. Knows the names, owns nothing.

use super::addresses::{slot_of_address, slot_of_host_veth};
use super::error::all_or;
use super::host::Egress;
use super::link::Links;
use super::nft::Socket;
use super::{NetError, connections, host_rules};

/// Removes all slots' interfaces but those of the slots `keep`, and the table, from the calling thread's namespace,
/// and gives the egress interface the setting it had before (the table's comment tells). Slots' namespaces end with
/// the last process in them: sweep processes first. Fine when there is nothing.
///
/// With slots to keep the table stays as it is, since it confines them, and so does the egress interface's setting:
/// [`super::HostNetwork::take_over`] is next.
///
/// # Errors
/// All that failed; the rest is done.
pub fn sweep_network(keep: &[u16]) -> Result<(), NetError> {
    let mut links = Links::open();
    let (mut results, mut swept) = (Vec::new(), Vec::new());
    for link in links.list()? {
        if link.is_veth && slot_of_host_veth(&link.name).is_some_and(|index| !keep.contains(&index)) {
            results.push(links.delete(&link.name));
            swept.extend(slot_of_host_veth(&link.name));
        }
    }
    if !keep.is_empty() || host_rules::TABLE.comment()?.is_some() {
        let gone = |sender| slot_of_address(sender).is_some_and(|index| !keep.contains(&index));
        results.push(connections::forget_all(gone));
    }
    if !keep.is_empty() {
        let nft = Socket::open()?;
        results.extend(swept.into_iter().map(|index| host_rules::expel(&nft, index)));
    } else if results.iter().all(Result::is_ok) && host_rules::TABLE.comment()?.is_some() {
        // The table last, and not while a slot is left: it confines them, and remembers the interface's setting.
        results.push(Egress::left_over().and_then(|egress| egress.map_or(Ok(()), |egress| egress.restore())));
        results.push(host_rules::remove(&Socket::open()?));
    }
    all_or("the left-over network", results)
}
