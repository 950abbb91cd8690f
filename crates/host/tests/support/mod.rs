//! What the tests of this crate share: network namespaces to test in, a pretend internet, a pretend guest.
//! Nothing here touches the namespace the tests were started in.

#![allow(dead_code, unreachable_pub, clippy::unwrap_used, reason = "test support; each test uses its part")]

pub mod frame;
pub mod guest;
pub mod internet;
mod sys;

use std::os::fd::{AsFd, AsRawFd};
use std::process::Command;

use manta_host::NetNs;

/// Runs `test` in a network namespace of its own, with loopback up.
pub fn in_own_netns<T: Send>(test: impl FnOnce() -> T + Send) -> T {
    let netns = NetNs::create().expect("root is needed to create network namespaces");
    netns
        .run(|| {
            ip("link set lo up");
            test()
        })
        .unwrap()
}

/// Runs iproute2's `ip` in the calling thread's namespace, and returns what it printed.
pub fn ip(args: &str) -> String {
    run("ip", &args.split_whitespace().collect::<Vec<_>>())
}

/// A namespace as `ip` takes it.
pub fn path_of(netns: &NetNs) -> String {
    format!("/proc/{}/fd/{}", std::process::id(), netns.as_fd().as_raw_fd())
}

/// All rules in a namespace, without counters and handles.
pub fn nft_ruleset(netns: &NetNs) -> String {
    netns.run(|| run("nft", &["-s", "list", "ruleset"])).unwrap()
}

/// Runs `nft` in the calling thread's namespace, and returns what it printed.
pub fn nft(command: &str) -> String {
    run("nft", &[command])
}

/// A kernel setting of the calling thread's namespace.
pub fn sysctl(name: &str) -> String {
    std::fs::read_to_string(format!("/proc/sys/net/{name}")).unwrap().trim().to_owned()
}

pub fn set_sysctl(name: &str, value: &str) {
    std::fs::write(format!("/proc/sys/net/{name}"), value).unwrap();
}

fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().unwrap();
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}
