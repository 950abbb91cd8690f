//! What sandboxes reach: the internet, and nothing else.

use std::io::Write;
use std::net::TcpListener;
use std::process::{Command, Stdio};

use crate::harness::{DENIED, HOST_ADDRESS, Host, INTERNET, Server, eventually, scaled};

/// Fetches a URL: 0 and the body, or curl's exit status.
fn fetch(server: &Server, id: &str, url: &str) -> (i64, String) {
    let ran = server.sh(id, &format!("curl -sS --max-time 4 {url}"));
    (ran["exit_code"].as_i64().expect("an exit status"), ran["stdout"].as_str().expect("stdout").to_owned())
}

#[test]
fn a_sandbox_reaches_the_internet_and_no_denied_range() {
    let host = Host::enter();
    let server = Server::start();
    let id = server.create();
    assert_eq!(fetch(&server, &id, &host.url(INTERNET)), (0, "internet".to_owned()));
    // Behind the host's own address, as every sandbox is.
    assert_eq!(
        host.calls().into_iter().collect::<Vec<_>>(),
        [(INTERNET, "203.0.113.1".parse().expect("address"))]
    );
    // One command for all ranges: each takes its full time to fail.
    let urls: Vec<_> = DENIED.iter().map(|&address| host.url(address)).collect();
    let cmd =
        format!("for u in {}; do curl -sS --max-time 2 $u >/dev/null 2>&1 & done; wait", urls.join(" "));
    server.sh(&id, &cmd);
    assert_eq!(host.calls().len(), 1, "a denied range was reached: {:?}", host.calls());
    // The addresses are out there: the host itself, which is not a sandbox, reaches them.
    for address in DENIED {
        let port = host
            .url(address)
            .rsplit(':')
            .next()
            .expect("a port")
            .trim_end_matches('/')
            .parse()
            .expect("a port");
        assert!(std::net::TcpStream::connect((address, port)).is_ok(), "{address} is not there at all");
    }
}

#[test]
fn a_firewall_that_is_loaded_anew_lets_no_sandbox_out() {
    let host = Host::enter();
    let server = Server::start();
    let id = server.create();
    let degraded = server.get("/healthz")["degraded"].clone();
    let listener = TcpListener::bind("0.0.0.0:0").expect("listen on the host");
    let port = listener.local_addr().expect("an address").port();
    listener.set_nonblocking(true).expect("non-blocking");
    let confined = |id: &str| {
        let rules = host.ruleset();
        let address = server.info(id).expect("listed")["host_address"].clone();
        let address = address.as_str().expect("an address");
        let admitted = [" ", ","].iter().any(|end| rules.contains(&format!(". {address}{end}")));
        admitted && !rules.contains("table ip manta")
    };
    let reaches_the_internet_only = |id: &str| {
        let urls = DENIED.map(|address| host.url(address)).join(" ");
        let cmd = format!(
            "for u in http://{HOST_ADDRESS}:{port}/ {urls}; do curl -sS --max-time 2 $u >/dev/null 2>&1 & done; wait"
        );
        server.sh(id, &cmd);
        assert_eq!(fetch(&server, id, &host.url(INTERNET)), (0, "internet".to_owned()));
        assert_eq!(host.calls().len(), 1, "a denied range was reached: {:?}", host.calls());
        assert!(listener.accept().is_err(), "a connection from the sandbox arrived");
    };
    reaches_the_internet_only(&id);

    host.nft("flush ruleset");
    eventually("the rules are back", scaled(20), || confined(&id));
    reaches_the_internet_only(&id);
    let restored = || {
        let metrics = server.raw("GET", "/metrics", "", b"").text;
        metrics.lines().any(|line| line == "manta_net_rules_restored_total 1")
    };
    eventually("it is counted", scaled(20), restored);
    assert!(server.log().contains("somebody has deleted the nftables table"), "{}", server.log());
    assert_eq!(server.get("/healthz")["degraded"], degraded);

    // New ones find it there, or put it back themselves.
    host.nft("flush ruleset");
    let new = server.create();
    eventually("both are confined", scaled(20), || confined(&id) && confined(&new));
    reaches_the_internet_only(&new);
    host.nft("flush ruleset");
    server.destroy(&id).ok();
    eventually("the other is confined", scaled(20), || confined(&new));
}

#[test]
fn rules_that_cannot_be_put_back_are_told_of_and_tried_again() {
    let host = Host::enter();
    let server = Server::start();
    let id = server.create();
    let degraded = || server.get("/healthz")["degraded"].to_string();
    // Only who made a table with an owner may change it, and it goes with him.
    let mut owner = Command::new("nft").arg("-i").stdin(Stdio::piped()).spawn().expect("nft is needed");
    let commands = b"flush ruleset; add table inet manta { flags owner; }\n";
    owner.stdin.as_mut().expect("its standard input").write_all(commands).expect("tell it");
    eventually("the server says so", scaled(20), || degraded().contains("it cannot be put back"));
    // As nothing confines the sandbox it is shut off.
    assert_ne!(fetch(&server, &id, &host.url(INTERNET)).0, 0);
    assert!(host.calls().is_empty(), "{:?}", host.calls());
    drop(owner.stdin.take());
    owner.wait().expect("it ends");
    eventually("the rules are back", scaled(20), || !degraded().contains("inet manta"));
    assert_eq!(fetch(&server, &id, &host.url(INTERNET)), (0, "internet".to_owned()));
}

#[test]
fn a_slot_is_used_again_only_if_its_sandbox_used_no_network() {
    let host = Host::enter();
    // With one slot made ahead of time, at most one other lies above a slot that came back.
    let server = Server::with(&[("MANTA_NETNS_POOL_SIZE", "1")]);
    let address = |id: &str| server.info(id).expect("listed")["host_address"].clone();
    // That of the server's own trial at its start is on its way back: there would be no room for another.
    eventually("all slots wait", scaled(20), || {
        let depth = server.get("/healthz")["pools"]["slots"]["depth"].as_u64().expect("a number");
        depth > 0 && host.links().iter().filter(|link| link.starts_with("mt-")).count() as u64 == depth
    });
    let silent = server.create();
    assert_eq!(server.stdout(&silent, "echo silent"), "silent");
    let first = address(&silent);
    server.destroy(&silent).ok();
    // Those with another slot live on: theirs would come back above it.
    let mut talking = String::new();
    eventually("another has its slot", scaled(20), || {
        talking = server.create();
        address(&talking) == first
    });
    assert_eq!(fetch(&server, &talking, &host.url(INTERNET)), (0, "internet".to_owned()));
    let links = host.links();
    server.destroy(&talking).ok();
    eventually("its links are gone", scaled(20), || !links.is_subset(&host.links()));
    assert_ne!(address(&server.create()), first);
}

#[test]
fn a_sandbox_reaches_neither_the_host_nor_another_sandbox() {
    let _host = Host::enter();
    let server = Server::start();
    let (one, other) = (server.create(), server.create());
    let info = server.info(&other).expect("listed");
    let neighbour = info["host_address"].as_str().expect("an address");
    server.sh(&other, "python3 -m http.server 8000 >/dev/null 2>&1 &");
    crate::harness::eventually("the neighbour listens", crate::harness::scaled(30), || {
        server.sh(&other, "curl -s --max-time 4 http://127.0.0.1:8000/ >/dev/null")["exit_code"] == 0
    });
    assert_ne!(fetch(&server, &one, &format!("http://{neighbour}:8000/")).0, 0, "a neighbour was reached");
    assert_ne!(server.sh(&one, &format!("ping -c 1 -W 2 {neighbour}"))["exit_code"], 0);

    // The host listens on all its addresses, so only the rules keep the sandbox out. The original's
    // sandboxes could destroy each other through the host's API.
    let listener = TcpListener::bind("0.0.0.0:0").expect("listen on the host");
    let port = listener.local_addr().expect("an address").port();
    listener.set_nonblocking(true).expect("non-blocking");
    let own = server.info(&one).expect("listed");
    let own = own["host_address"].as_str().expect("an address");
    let gateway = server.stdout(&one, "ip route show default | awk '{print $3}'");
    let veth_peer = own
        .parse::<std::net::Ipv4Addr>()
        .map(|a| u32::from(a) ^ 1)
        .map(std::net::Ipv4Addr::from)
        .expect("an address");
    for address in
        ["203.0.113.1".to_owned(), gateway, own.to_owned(), veth_peer.to_string(), "127.0.0.1".to_owned()]
    {
        assert_ne!(
            fetch(&server, &one, &format!("http://{address}:{port}/")).0,
            0,
            "the host was reached on {address}"
        );
        assert_ne!(fetch(&server, &one, &format!("http://{address}:{}/healthz", server.address.port())).0, 0);
    }
    assert!(listener.accept().is_err(), "a connection from the sandbox arrived");
}

#[test]
fn a_guest_cannot_pretend_to_be_somebody_else() {
    let host = Host::enter();
    let server = Server::start();
    let id = server.create();
    // The guest knows its gateway by then: else it would look for it under the wrong address, send nothing, and go
    // on failing for a moment after it has the right one back.
    let spoofed = format!(
        "ping -c 1 -W 1 172.16.0.1; ip addr add 198.51.100.99/32 dev eth0; \
         curl -sS --max-time 3 --interface 198.51.100.99 {}",
        host.url(INTERNET)
    );
    assert_ne!(server.sh(&id, &spoofed)["exit_code"], 0);
    assert!(host.calls().is_empty(), "{:?}", host.calls());
    // With its own address all is well, so it was the spoofing that failed.
    assert_eq!(fetch(&server, &id, &host.url(INTERNET)).0, 0);
    // A changed MAC cuts the guest off rather than letting it roam.
    let cmd = format!(
        "ip link set eth0 down; ip link set eth0 address 06:00:00:00:00:99; ip link set eth0 up; \
         ip route add default via 172.16.0.1; curl -sS --max-time 3 {}",
        host.url(INTERNET)
    );
    let before = host.calls().len();
    assert_ne!(server.sh(&id, &cmd)["exit_code"], 0);
    assert_eq!(host.calls().len(), before);
}

#[test]
fn without_a_way_out_sandboxes_work_and_the_server_says_so() {
    let host = Host::enter();
    let server = Server::with(&[("MANTA_HOST_IFACE", "none")]);
    let health = server.get("/healthz");
    assert_eq!(health["status"], "degraded");
    assert!(health["degraded"][0].as_str().expect("a reason").contains("no egress"), "{health:#}");
    let id = server.create();
    assert_eq!(server.stdout(&id, "echo works"), "works");
    assert_ne!(fetch(&server, &id, &host.url(INTERNET)).0, 0);
    assert!(host.calls().is_empty());
}
