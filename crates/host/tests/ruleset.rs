//! The rules in force, as the `nft` program reads them back from the kernel.

mod support;

use std::sync::Arc;

use manta_host::{HostNetwork, NetNs, NetSlot, sweep_network};
use support::{in_own_netns, ip, nft_ruleset};

/// Without the number by which a later server knows these rules.
fn ruleset(netns: &NetNs) -> String {
    let rules = nft_ruleset(netns);
    let Some((before, after)) = rules.split_once("rules ") else { return rules };
    format!("{before}rules [hash]{}", &after[16..])
}

#[test]
fn the_rules_are_the_reviewed_ones() {
    in_own_netns(|| {
        ip("link add egress0 type veth peer name inet0");
        let host = Arc::new(HostNetwork::set_up(Some("egress0")).unwrap());
        let slot = NetSlot::create(&host, 7, 0).unwrap();
        insta::assert_snapshot!("host", ruleset(&NetNs::current().unwrap()));
        insta::assert_snapshot!("slot", nft_ruleset(slot.netns()));
        slot.destroy().unwrap();
        Arc::into_inner(host).unwrap().tear_down().unwrap();
    });
}

#[test]
fn without_egress_nothing_is_forwarded() {
    in_own_netns(|| {
        let host = HostNetwork::set_up(None).unwrap();
        insta::assert_snapshot!("host_without_egress", ruleset(&NetNs::current().unwrap()));
        host.tear_down().unwrap();
    });
}

#[test]
fn as_many_slots_as_there_can_be_are_let_out_at_once() {
    in_own_netns(|| {
        let keep: Vec<u16> = (0..16_384).collect();
        let host = HostNetwork::take_over(None, &keep).unwrap();
        let rules = ruleset(&NetNs::current().unwrap());
        assert_eq!(rules.matches("\" . 198.1").count(), keep.len());
        let watch = host.watch().unwrap();
        assert!(!host.restore().unwrap());
        assert!(!watch.lost().unwrap(), "what that says would have it done again, for ever");
        // As if it were killed: there is nothing of those slots but this.
        std::mem::forget(host);
        sweep_network(&[]).unwrap();
        assert_eq!(nft_ruleset(&NetNs::current().unwrap()), "");
    });
}
