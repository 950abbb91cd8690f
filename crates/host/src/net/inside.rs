//! What is inside a slot's namespace: made for the first sandbox, and made anew for the next one if the last has
//! left nothing. Does not own the namespace, nor the host's end of the veth pair.
//!
//! What makes a used namespace as good as new:
//! - *The tap* is deleted and made again: who has it open can change its address, its offloads, and filters that
//!   nobody can read back. Its addresses, routes, neighbours and queues go with it.
//! - *Nothing went through, to or from the namespace*, as its own IP counters say. So nobody has connections,
//!   neighbours, fragments, or measured paths because of it, in it or on the host. Whoever did send something leaves
//!   entries in the connection tables of both, and to look for those takes longer than to make a slot.
//! - *Nobody has a socket in it*, or the former tap open.
//! - *The rest looks as it was made*: interfaces, addresses, routes, rules, and the generation of its nftables.
//!   Only root could have changed these; so could it have the settings under `/proc/sys`, which are not compared.

use std::fs;

use super::addresses::{GUEST, INNER_VETH, PAIR_PREFIX_LEN, TAP, TAP_MAC, host_end, inner_end};
use super::link::Links;
use super::look::Look;
use super::{NetError, NetLimits, nft, slot_rules, sysctl, tap};

/// Sockets of this module's own while it looks for others: rtnetlink's and nftables'.
const OWN_SOCKETS: u64 = 2;

/// Packets that come in parts wait in the namespace for the rest of them: half a MiB of them, for 10 s, instead of
/// 4 MiB for 30 s. (The lower bound first: it may not exceed the upper one.) Only whole packets reach the host.
const FRAGMENTS: [(&str, i32); 3] = [
    ("ipv4/ipfrag_low_thresh", 384 * 1024),
    ("ipv4/ipfrag_high_thresh", 512 * 1024),
    ("ipv4/ipfrag_time", 10),
];

/// Counters of `/proc/net/snmp` that do not move unless a packet was forwarded, came to or from the namespace
/// itself, or was a fragment. Before Linux 6.7 `OutRequests` does not count what the rules drop, which leaves nothing
/// behind but this: how many errors somebody was sent, and what TCP learned of its connections.
const SILENT: [(&str, &str); 6] = [
    ("Ip", "ForwDatagrams"),
    ("Ip", "InDelivers"),
    ("Ip", "OutRequests"),
    ("Ip", "ReasmReqds"),
    ("Icmp", "OutMsgs"),
    ("Tcp", "ActiveOpens"),
];

/// A namespace as it was made. All its functions are for a thread inside.
#[derive(Debug)]
pub(super) struct Inside {
    tap_owner: u32,
    limits: NetLimits,
    /// Without the tap.
    look: Look,
    /// Of the nftables rules.
    generation: u32,
}

impl Inside {
    /// Furnishes a new namespace that has its end of the veth pair.
    pub(super) fn set_up(index: u16, tap_owner: u32, limits: NetLimits) -> Result<Self, NetError> {
        // Before anything is up. A kernel without IPv6 has nothing to switch off.
        sysctl::write("ipv6/conf/all/disable_ipv6", 1)?;
        for (setting, value) in FRAGMENTS {
            sysctl::write(setting, value)?;
        }
        slot_rules::install(index, limits)?;
        let mut links = Links::open();
        links.set_up("lo")?;
        links.set_up_ipv4(INNER_VETH, inner_end(index), PAIR_PREFIX_LEN)?;
        links.add_default_route(INNER_VETH, host_end(index))?;
        let look = Look::now(&mut links)?;
        add_tap(&mut links, tap_owner, limits)?;
        Ok(Self { tap_owner, limits, look, generation: nft::generation(&mut links)? })
    }

    /// Makes it as good as new, or says why that cannot be; it is of no use then.
    pub(super) fn recycle(&mut self) -> Result<(), NetError> {
        let mut links = Links::open();
        if nft::generation(&mut links)? != self.generation {
            return Err(NetError::NotClean("its nftables rules were changed"));
        }
        // Waits until nothing that arrived by it is under way any more.
        links.delete(TAP)?;
        if sockets()? != Some(OWN_SOCKETS) {
            return Err(NetError::NotClean("somebody has a socket in its namespace"));
        }
        if !was_silent()? {
            return Err(NetError::NotClean("packets went through it"));
        }
        if Look::now(&mut links)? != self.look {
            return Err(NetError::NotClean("its interfaces, addresses, routes or rules were changed"));
        }
        slot_rules::remove_from_tap()?;
        add_tap(&mut links, self.tap_owner, self.limits)?;
        self.generation = nft::generation(&mut links)?;
        Ok(())
    }
}

fn add_tap(links: &mut Links, owner: u32, limits: NetLimits) -> Result<(), NetError> {
    tap::create(owner)?;
    // Before it is up.
    slot_rules::install_at_tap(limits)?;
    links.set_mac(TAP, TAP_MAC)?;
    links.set_up_ipv4(TAP, GUEST.gateway, GUEST.prefix_len)
}

/// How many sockets processes have in the calling thread's namespace, those included that are closed and linger.
/// `None` if the kernel does not say.
fn sockets() -> Result<Option<u64>, NetError> {
    let text = read("sockstat")?;
    Ok(text.lines().find_map(|line| line.strip_prefix("sockets: used ")?.trim().parse().ok()))
}

/// Whether the calling thread's namespace has never had to do with a packet. Not if the kernel does not say.
pub(super) fn was_silent() -> Result<bool, NetError> {
    let text = read("snmp")?;
    let count = |protocol: &str, name: &str| {
        let mut lines = text.lines().filter_map(|line| line.strip_prefix(protocol)?.strip_prefix(": "));
        let (names, values) = (lines.next()?, lines.next()?);
        names.split(' ').zip(values.split(' ')).find_map(|(found, value)| (found == name).then_some(value))
    };
    Ok(SILENT.iter().all(|(protocol, name)| count(protocol, name) == Some("0")))
}

fn read(name: &str) -> Result<String, NetError> {
    let path = format!("/proc/thread-self/net/{name}");
    fs::read_to_string(&path).map_err(|source| NetError::Statistics { path, source })
}
