//! Somebody deletes the host's table, as a firewall does that is loaded anew: it is noticed, and put back whole.

#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Instant;

use manta_host::net::{GUEST_MAC, TableWatch};
use manta_host::{HostNetwork, NetNs, NetSlot};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use support::frame::Datagram;
use support::guest::Guest;
use support::internet::{HOST, Internet, PORT, SERVER, TIMEOUT, denied_hosts, listen_in, receive};
use support::{in_own_netns, nft, nft_ruleset};

/// What a well-behaved guest sends to [`SERVER`].
const PROPER: Datagram<'_> =
    Datagram { mac: GUEST_MAC, from: Ipv4Addr::new(172, 16, 0, 2), to: SERVER, port: PORT, text: "proper" };

/// Waits until the watch has something to say, and whether that is that the table may be gone.
fn lost(watch: &TableWatch) -> bool {
    let timeout = Timespec { tv_sec: TIMEOUT.as_secs().try_into().unwrap(), tv_nsec: 0 };
    let said = poll(&mut [PollFd::new(&watch.as_fd(), PollFlags::IN)], Some(&timeout)).unwrap();
    assert_eq!(said, 1, "nothing was said within {TIMEOUT:?}");
    watch.lost().unwrap()
}

fn ruleset() -> String {
    nft_ruleset(&NetNs::current().unwrap())
}

#[test]
fn a_table_that_somebody_deletes_is_put_back_whole() {
    in_own_netns(|| {
        let internet = Internet::connect();
        let host = Arc::new(HostNetwork::set_up(Some("egress0")).unwrap());
        let watch = host.watch().unwrap();
        let slots = [0, 1].map(|index| NetSlot::create(&host, index, 0).unwrap());
        assert!(!lost(&watch), "slots come and go");
        assert!(!host.restore().unwrap());
        assert!(!lost(&watch), "nothing but the set was written");
        let whole = ruleset();

        let here = listen_in(&NetNs::current().unwrap());
        let far = internet.listen();
        let guest = Guest::boot(&slots[0], true);
        let denied = denied_hosts();
        nft("flush ruleset");
        // That it gets there now shows that only the table was in the way.
        guest.send(&Datagram { to: HOST, text: "open", ..PROPER }.frame());
        assert_eq!(receive(&here).0, "open");
        guest.send(&Datagram { to: denied[0], text: "open", ..PROPER }.frame());
        assert_eq!(receive(&far).0, "open");

        assert!(lost(&watch));
        let began = Instant::now();
        assert!(host.restore().unwrap());
        println!("put back in {:?}", began.elapsed());
        assert_eq!(ruleset(), whole);
        for to in denied {
            guest.send(&Datagram { to, text: "denied", ..PROPER }.frame());
        }
        guest.send(&Datagram { to: HOST, text: "denied", ..PROPER }.frame());
        guest.send(&PROPER.frame());
        let (text, from) = receive(&far);
        assert_eq!((text.as_str(), from.ip()), ("proper", HOST.into()));
        UdpSocket::bind((HOST, 0)).unwrap().send_to(b"host", (HOST, PORT)).unwrap();
        assert_eq!(receive(&here).0, "host");

        // What is about others, and a call too many, change nothing.
        assert!(lost(&watch), "the old one was deleted, if there was one");
        assert!(!host.restore().unwrap());
        nft("add table inet other; delete table inet other; add table ip manta; delete table ip manta");
        assert!(!lost(&watch));
        assert!(!host.restore().unwrap());
        assert_eq!(ruleset(), whole);

        drop(guest);
        for slot in slots {
            slot.destroy().unwrap();
        }
        Arc::into_inner(host).unwrap().tear_down().unwrap();
        assert!(lost(&watch), "the server deletes it itself");
        assert_eq!(ruleset(), "", "and nobody puts it back");
    });
}

#[test]
fn slots_come_and_go_while_the_table_is_gone() {
    in_own_netns(|| {
        let _internet = Internet::connect();
        let host = Arc::new(HostNetwork::set_up(Some("egress0")).unwrap());
        let watch = host.watch().unwrap();
        let [one, other] = [1, 2].map(|index| NetSlot::create(&host, index, 0).unwrap());

        nft("flush ruleset");
        one.destroy().unwrap();
        assert_eq!(ruleset(), "", "nobody needed it for that");
        let third = NetSlot::create(&host, 3, 0).unwrap();
        let rules = ruleset();
        assert!(rules.contains("\"mt-2\"") && rules.contains("\"mt-3\"") && !rules.contains("\"mt-1\""));
        assert!(lost(&watch));
        assert!(host.restore().unwrap(), "it is told that it was gone");
        assert!(!host.restore().unwrap(), "once");
        assert_eq!(ruleset(), rules);

        // Somebody loads rules that were saved when other sandboxes were there.
        nft("delete element inet manta sandboxes { \"mt-2\" . 198.18.0.5 }");
        nft("add element inet manta sandboxes { \"mt-9\" . 198.18.0.19 }");
        let saved = ruleset();
        nft(&format!("flush ruleset; {saved}"));
        assert!(lost(&watch));
        assert!(!host.restore().unwrap(), "it is there");
        assert_eq!(ruleset(), rules, "and lets out whom it should");
        nft("flush ruleset; add table inet manta; add chain inet manta theirs");
        assert!(lost(&watch));
        assert!(host.restore().unwrap(), "another of that name is not it");
        assert_eq!(ruleset(), rules);

        other.destroy().unwrap();
        third.destroy().unwrap();
        Arc::into_inner(host).unwrap().tear_down().unwrap();
    });
}

#[test]
fn a_watch_that_missed_something_says_so() {
    in_own_netns(|| {
        let host = HostNetwork::set_up(None).unwrap();
        let watch = host.watch().unwrap();
        let rules = ruleset();
        nft("add table inet other; add set inet other many { type mark; }");
        let elements: Vec<_> = (0..5000).map(|mark| mark.to_string()).collect();
        let elements = format!("element inet other many {{ {} }}", elements.join(", "));
        for _ in 0..16 {
            nft(&format!("add {elements}; delete {elements}"));
        }
        nft("delete table inet other");
        assert!(lost(&watch), "more was said than there is room for");
        assert!(!host.restore().unwrap());
        assert_eq!(ruleset(), rules);
        nft("add table inet other");
        assert!(!lost(&watch), "it hears again");
        host.tear_down().unwrap();
    });
}
