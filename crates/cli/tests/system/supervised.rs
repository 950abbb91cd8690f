//! The server under systemd's conditions, as `docs/manta.service` names them.

use std::os::unix::net::UnixDatagram;

use crate::harness::{Host, Server, new_dir, scaled};

/// Not to be set: each takes from the server, or from the VMMs that inherit it, what they cannot do without.
const TOO_MUCH: [&str; 8] = [
    "ProtectHostname",
    "ProtectKernelTunables",
    "ProtectControlGroups",
    "MemoryDenyWriteExecute",
    "RestrictNamespaces",
    "PrivateDevices",
    "PrivateNetwork",
    "PrivateUsers",
];

/// What the unit file says of `name`.
fn find(name: &str) -> Option<String> {
    // Not read: where the tests run there may be no checkout.
    let unit = include_str!("../../../../docs/manta.service");
    unit.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('=')).map(str::to_owned)
}

fn unit(name: &str) -> String {
    find(name).unwrap_or_else(|| panic!("{name} is not in the unit file"))
}

#[test]
fn the_unit_takes_nothing_that_is_needed_and_gives_up_on_nothing() {
    let set: Vec<_> = TOO_MUCH.into_iter().filter(|name| find(name).is_some()).collect();
    assert!(set.is_empty(), "{set:?}");
    // Ended while it starts, or not started again, it would cost the sandboxes that live.
    assert_eq!((unit("TimeoutStartSec").as_str(), unit("StartLimitIntervalSec").as_str()), ("infinity", "0"));
    assert_eq!(unit("KillMode"), "process");
}

#[test]
fn the_units_capabilities_are_enough_and_the_supervisor_is_told() {
    let host = Host::enter();
    let capabilities: Vec<_> = unit("CapabilityBoundingSet")
        .split(' ')
        .map(|name| format!("+{}", name.strip_prefix("CAP_").expect("a capability").to_lowercase()))
        .collect();
    let bounding = format!("--bounding-set=-all,{}", capabilities.join(","));
    let umask = format!("umask {} && exec \"$@\"", unit("UMask"));
    let dir = new_dir();
    let (path, said) = (dir.path().join("notify"), |socket: &UnixDatagram| {
        let mut text = [0; 100];
        let length = socket.recv(&mut text).expect("a word from the server");
        String::from_utf8_lossy(&text[..length]).into_owned()
    });
    let supervisor = UnixDatagram::bind(&path).expect("a socket");
    supervisor.set_read_timeout(Some(scaled(60))).expect("a time limit");

    let words = ["sh", "-c", &umask, "sh", "setpriv", &bounding, "--no-new-privs"];
    let mut server = Server::under(
        &words,
        &[("NOTIFY_SOCKET", path.to_str().expect("a path")), ("MANTA_NETNS_POOL_SIZE", "0")],
    );
    assert_eq!(said(&supervisor).trim(), "READY=1");
    let id = server.create();
    assert_eq!(server.stdout(&id, "echo original > /root/word; cat /root/word"), "original");
    let clone = server.restore(&server.snapshot(&id));
    assert_eq!(server.stdout(&clone, "cat /root/word"), "original");
    let again = server.restore(&server.snapshot(&clone));
    assert_eq!(server.stdout(&again, "cat /root/word"), "original");
    for id in [&id, &clone, &again] {
        server.destroy(id).ok();
    }
    host.await_no_slots();
    server.stop();
    assert_eq!(said(&supervisor).trim(), "STOPPING=1");
}
