//! Slots and the host's network come, go, and leave nothing. One test: it counts what the process has open.

#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::sync::Arc;
use std::time::{Duration, Instant};

use manta_host::{HostNetwork, NetError, NetNs, NetSlot, detect_egress, sweep_network};
use support::internet::Internet;
use support::{in_own_netns, ip, nft, nft_ruleset, path_of, set_sysctl, sysctl};

const SLOTS: u16 = 8;
const FORWARDING: &str = "ipv4/conf/egress0/forwarding";

/// All that a slot or the host's network could leave behind.
#[derive(Debug, PartialEq)]
struct State {
    links: String,
    rules: String,
    open_files: usize,
    forwarding: String,
}

impl State {
    fn now() -> Self {
        Self {
            links: ip("-brief link"),
            rules: nft_ruleset(&NetNs::current().unwrap()),
            open_files: std::fs::read_dir("/proc/self/fd").unwrap().count(),
            forwarding: sysctl(FORWARDING),
        }
    }
}

#[test]
fn nothing_is_left_behind() {
    in_own_netns(|| {
        let _internet = Internet::connect();
        assert_eq!(detect_egress().as_deref(), Some("egress0"));
        nft("table inet other { chain forward { type filter hook forward priority 0; }; }");
        let before = State::now();

        create_and_destroy();
        assert_eq!(State::now(), before, "after an orderly end");

        drop(populated());
        assert_eq!(State::now(), before, "after being dropped");

        failed_creates();
        assert_eq!(State::now(), before, "after failures");

        kill_and_sweep();
        assert_eq!(State::now().links, before.links, "after a sweep");
        assert_eq!(State::now().rules, before.rules, "after a sweep");
        assert_eq!(State::now().forwarding, before.forwarding, "after a sweep");
        sweep_network(&[]).unwrap();

        kill_and_start_again();
        assert_eq!(State::now().rules, before.rules, "after a second server");
        assert_eq!(State::now().forwarding, before.forwarding, "after a second server");

        forwarding_others_want_is_kept();
    });
}

fn populated() -> Vec<NetSlot> {
    let host = Arc::new(HostNetwork::set_up(Some("egress0")).unwrap());
    assert_eq!(sysctl(FORWARDING), "1");
    // All at once.
    let create = &|index| NetSlot::create(&host, index, 1000).unwrap();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..SLOTS).map(|index| scope.spawn(move || create(index))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

fn create_and_destroy() {
    let host = Arc::new(HostNetwork::set_up(Some("egress0")).unwrap());
    let [mut created, mut recycled, mut destroyed] = [Duration::ZERO; 3];
    for index in 0..SLOTS {
        let start = Instant::now();
        let mut slot = NetSlot::create(&host, index, 1000).unwrap();
        created += start.elapsed();
        assert_eq!(ip(&format!("-brief link show mt-{index}")).split_whitespace().nth(1), Some("UP"));
        let start = Instant::now();
        slot.recycle().unwrap();
        recycled += start.elapsed();
        let start = Instant::now();
        slot.destroy().unwrap();
        destroyed += start.elapsed();
    }
    let [created, recycled, destroyed] = [created, recycled, destroyed].map(|all| all / SLOTS.into());
    println!("create {created:?}, recycle {recycled:?}, destroy {destroyed:?}");
    Arc::into_inner(host).unwrap().tear_down().unwrap();
}

fn failed_creates() {
    assert!(
        matches!(HostNetwork::set_up(Some("none0")), Err(NetError::NoInterface(name)) if name == "none0")
    );
    let host = Arc::new(HostNetwork::set_up(Some("egress0")).unwrap());
    let slot = NetSlot::create(&host, 3, 0).unwrap();
    let rules = nft_ruleset(host.netns());
    assert!(matches!(NetSlot::create(&host, 3, 0), Err(NetError::Link { action: "create", .. })));
    assert_eq!(nft_ruleset(host.netns()), rules, "the slot that exists is not touched");
    assert!(ip("-brief link").contains("mt-3"));
    // The last step fails when nobody may change the table any more.
    nft("delete table inet manta; add table inet manta; add set inet manta sandboxes { type mark; }");
    nft("add table ip manta; add chain ip manta forward { type filter hook forward priority 0; }");
    assert!(matches!(NetSlot::create(&host, 4, 0), Err(NetError::Nft { .. })));
    assert!(!ip("-brief link").contains("mt-4"));
    nft("delete table inet manta; delete table ip manta");
    slot.destroy().unwrap();
    assert!(Arc::into_inner(host).unwrap().tear_down().is_err(), "a table that is gone is reported");
    assert_eq!(sysctl(FORWARDING), "0");
}

/// As after SIGKILL: nothing is dropped.
fn kill_and_sweep() {
    std::mem::forget(populated());
    let stranger = NetNs::create().unwrap();
    ip(&format!("link add mt-other type veth peer name veth0 netns {}", path_of(&stranger)));
    sweep_network(&[]).unwrap();
    assert!(ip("-brief link").contains("mt-other"), "not ours");
    ip("link delete mt-other");
}

/// The second server finds the table of the first and knows what the egress interface was like before it.
fn kill_and_start_again() {
    std::mem::forget(populated());
    let host = HostNetwork::set_up(Some("egress0")).unwrap();
    assert!(nft_ruleset(host.netns()).contains("egress egress0 forwarding 0"));
    assert!(!nft_ruleset(host.netns()).contains("\"mt-1\""), "slots of the first are let out no longer");
    host.tear_down().unwrap();
    assert_eq!(sysctl(FORWARDING), "0");
    sweep_network(&[]).unwrap();
}

fn forwarding_others_want_is_kept() {
    let host = HostNetwork::set_up(Some("egress0")).unwrap();
    set_sysctl("ipv4/ip_forward", "1");
    host.tear_down().unwrap();
    assert_eq!(sysctl(FORWARDING), "1");
}
