//! The one table of the host, `inet manta`: what sandboxes may do outside their namespaces. Rules only; they
//! never change while sandboxes come and go, only the set `sandboxes` does.
//!
//! Where there are sandboxes already, of an earlier server or because somebody has deleted the table under them, a table
//! that is the same stays. If it is not, or there is none, it is replaced behind
//! another, `ip manta`, that lets nothing through meanwhile. One transaction alone would not do: a packet on its way
//! can meet the new chains before they have rules and then the old ones after they had some, and it gets through all
//! of them. Seen in a test with 200 replacements.

use std::collections::BTreeSet;

use netlink_socket2::NetlinkSocket;

use super::NetError;
use super::addresses::{ALWAYS_DENIED, HOST_VETH_PREFIX, SLOT_RANGE, host_veth, inner_end};
use super::host::Egress;
use super::nft::Expr::{
    Accept, Drop, EstablishedOrRelated, Goto, IifName, In, Invalid, IpDaddr, IpSaddr, Ipv4, Is, IsName, Mask,
    Masquerade, NotDstNat, NotEstablishedOrRelated, NotIn, OifName, ThenIpSaddr,
};
use super::nft::{Batch, Family, Hook, Policy, Socket, Table};

pub(super) const TABLE: Table = Table(Family::Inet);
const SHUT: Table = Table(Family::Ipv4);
const SANDBOXES: &str = "sandboxes";
const DENIED: &str = "denied";
const FROM_SANDBOX: &str = "from_sandbox";
const TO_SANDBOX: &str = "to_sandbox";
const INSTALL: &str = "install the nftables table";

/// Puts the table into force in the namespace of these sockets, in place of one with other rules, and lets out the slots
/// `admitted` and no others. Without an egress interface nothing is forwarded from
/// or to a sandbox. At no moment is more let out than one of the two tables allows, and nothing is lost if both are the
/// same.
pub(super) fn install(
    nft: &Socket,
    look: &mut NetlinkSocket,
    egress: Option<&Egress>,
    admitted: &BTreeSet<u16>,
) -> Result<(), NetError> {
    let comment = comment(egress);
    let missing = TABLE.comment_by(look)?.as_ref() != Some(&comment);
    let mut batch = Batch::new();
    if missing {
        // One that is shut already would be open for a moment if it were shut anew.
        if !admitted.is_empty() && SHUT.comment_by(look)?.is_none() {
            shut(nft)?;
        }
        batch.replace_table(TABLE, &comment);
        add_rules(&mut batch, egress);
    } else {
        // Of slots that are gone.
        batch.empty_set(TABLE, SANDBOXES);
    }
    add_sandboxes(&mut batch, admitted.iter().copied());
    batch.commit(nft, INSTALL)?;
    // Also if an earlier server died in between.
    open_again(nft)
}

/// Whether the table is there, with these rules.
pub(super) fn in_force(look: &mut NetlinkSocket, egress: Option<&Egress>) -> Result<bool, NetError> {
    Ok(TABLE.comment_by(look)?.as_ref() == Some(&comment(egress)))
}

/// Tells a later server what the egress interface was like, and which rules these are.
fn comment(egress: Option<&Egress>) -> String {
    let mut rules = Batch::new();
    add_rules(&mut rules, egress);
    format!("{}rules {:016x}", egress.map(Egress::to_comment).unwrap_or_default(), rules.hash())
}

/// Lets nothing through from or to a sandbox.
fn shut(nft: &Socket) -> Result<(), NetError> {
    let sandbox = Is(HOST_VETH_PREFIX.as_bytes());
    let mut batch = Batch::new();
    batch.replace_table(SHUT, "");
    batch.base_chain(SHUT, "forward", Hook::Forward, Policy::Accept);
    batch.rule(SHUT, "forward", &[IifName, sandbox, Drop]);
    batch.rule(SHUT, "forward", &[OifName, sandbox, Drop]);
    batch.base_chain(SHUT, "input", Hook::Input, Policy::Accept);
    batch.rule(SHUT, "input", &[IifName, sandbox, Drop]);
    batch.commit(nft, "keep sandboxes from the network while the nftables table is replaced")
}

/// Fine when it is not shut.
fn open_again(nft: &Socket) -> Result<(), NetError> {
    let mut batch = Batch::new();
    batch.delete_table(SHUT);
    fine_if_missing(batch.commit(nft, "let sandboxes to the network again"))
}

fn fine_if_missing(result: Result<(), NetError>) -> Result<(), NetError> {
    result.or_else(|error| if error.is_missing() { Ok(()) } else { Err(error) })
}

/// The sets, chains and rules of a table that is new.
fn add_rules(batch: &mut Batch, egress: Option<&Egress>) {
    let sandbox = Is(HOST_VETH_PREFIX.as_bytes());
    batch.interface_address_set(TABLE, SANDBOXES);
    batch.range_set(TABLE, DENIED, &ALWAYS_DENIED);
    for chain in [FROM_SANDBOX, TO_SANDBOX] {
        batch.chain(TABLE, chain);
    }
    // Other traffic of the host is none of ours, hence the policies.
    batch.base_chain(TABLE, "forward", Hook::Forward, Policy::Accept);
    batch.rule(TABLE, "forward", &[IifName, sandbox, Goto(FROM_SANDBOX)]);
    batch.rule(TABLE, "forward", &[OifName, sandbox, Goto(TO_SANDBOX)]);
    batch.base_chain(TABLE, "input", Hook::Input, Policy::Accept);
    batch.rule(TABLE, "input", &[IifName, sandbox, Drop]);
    if let Some(egress) = egress {
        let name = IsName(&egress.name);
        let known = [Ipv4, IifName, ThenIpSaddr, In(SANDBOXES)];
        let allowed = [&[OifName, name][..], &known, &[IpDaddr, NotIn(DENIED), Accept]].concat();
        // Belongs to no connection, so nothing would translate it.
        batch.rule(TABLE, FROM_SANDBOX, &[Invalid, Drop]);
        batch.rule(TABLE, FROM_SANDBOX, &allowed);
        batch.rule(TABLE, TO_SANDBOX, &[IifName, name, Ipv4, EstablishedOrRelated, Accept]);
        if !egress.forwarded_before {
            // It forwards now for the sandboxes' sake only: keep the machine from becoming a router. What
            // the machine's own rules have translated, or started, is meant to be forwarded.
            let rule = [IifName, name, NotEstablishedOrRelated, NotDstNat, Drop];
            batch.rule(TABLE, "forward", &rule);
        }
        batch.base_chain(TABLE, "postrouting", Hook::PostroutingNat, Policy::Accept);
        let slots = SLOT_RANGE.first.octets();
        let rule = [OifName, name, Ipv4, IpSaddr, Mask(SLOT_RANGE.mask()), Is(&slots), Masquerade];
        batch.rule(TABLE, "postrouting", &rule);
    }
    batch.rule(TABLE, FROM_SANDBOX, &[Drop]);
    batch.rule(TABLE, TO_SANDBOX, &[Drop]);
}

fn add_sandboxes(batch: &mut Batch, slots: impl IntoIterator<Item = u16>) {
    let elements = slots.into_iter().map(|index| (host_veth(index), inner_end(index)));
    batch.add_interface_addresses(TABLE, SANDBOXES, elements);
}

/// Deletes the table.
pub(super) fn remove(nft: &Socket) -> Result<(), NetError> {
    open_again(nft)?;
    let mut batch = Batch::new();
    batch.delete_table(TABLE);
    batch.commit(nft, "delete the nftables table")
}

/// Lets slot `index` out.
pub(super) fn admit(nft: &Socket, index: u16) -> Result<(), NetError> {
    let mut batch = Batch::new();
    add_sandboxes(&mut batch, [index]);
    batch.commit(nft, "add a sandbox to the nftables table")
}

/// Lets slot `index` out no longer; fine when it was not let out.
pub(super) fn expel(nft: &Socket, index: u16) -> Result<(), NetError> {
    let mut batch = Batch::new();
    batch.delete_interface_address(TABLE, SANDBOXES, &host_veth(index), inner_end(index));
    fine_if_missing(batch.commit(nft, "remove a sandbox from the nftables table"))
}
