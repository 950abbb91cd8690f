//! Adoption: what is refused, what is answered, and which files are written. The kernel's parts, of which the
//! test machine has only its own, are tested in guests.
#![allow(clippy::unwrap_used)] // in the helpers too

mod common;
#[path = "common/sys.rs"]
mod sys;

use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use common::Agent;
use manta_agent::names::Names;
use manta_agent_proto::{Adopt, Frame, Hello, Identity, Network, PROTOCOL_VERSION, Reply, Request, encode};

fn identity(hostname: &str) -> Identity {
    Identity {
        hostname: hostname.into(),
        machine_id: "0123456789abcdef0123456789abcdef".into(),
        boot_id: "01234567-89ab-4def-8123-456789abcdef".into(),
        network: Network {
            address: Ipv4Addr::new(10, 77, 0, 2),
            prefix_len: 24,
            gateway: Ipv4Addr::new(10, 77, 0, 1),
            dns: vec![Ipv4Addr::new(10, 77, 0, 53), Ipv4Addr::new(9, 9, 9, 9)],
        },
    }
}

fn adopt(identity: Option<Identity>) -> Request {
    Request::Adopt(Adopt { entropy: vec![7; 32], unix_ns: 1, identity })
}

fn unix_ns() -> u64 {
    u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos()).unwrap()
}

#[test]
fn hello_and_adopt_in_one_write_are_answered() {
    for mut agent in [Agent::silent(), Agent::listening()] {
        let hello = Hello { version: PROTOCOL_VERSION, session: 99, resume: None };
        let mut bytes = Vec::new();
        encode(&Frame::Hello(hello.clone()), &mut bytes).unwrap();
        encode(&Frame::Request { id: 1, request: adopt(Some(identity("a"))) }, &mut bytes).unwrap();
        let before = unix_ns();
        agent.send_raw(&bytes);
        assert_eq!(agent.receive(), Frame::Hello(hello));
        let Frame::Reply { id: 1, reply: Reply::Adopted { unix_ns: then } } = agent.receive() else {
            panic!()
        };
        assert!((before..=unix_ns()).contains(&then), "{then}");
    }
}

#[test]
fn beside_a_guest_nothing_is_changed() {
    let name = || rustix::system::uname().nodename().to_owned();
    let files = || ["/etc/hostname", "/etc/hosts", "/etc/machine-id"].map(|path| fs::read(path).ok());
    let before = (name(), files());
    let mut agent = Agent::start();
    for _ in 0..2 {
        agent.request(1, adopt(Some(identity("not-this-machine"))));
        assert!(matches!(agent.finish(1).reply, Some(Reply::Adopted { .. })));
    }
    assert_eq!((name(), files()), before);
}

#[test]
fn what_is_malformed_is_refused_by_name() {
    let good = || identity("a");
    let id = |text: &str| Identity { machine_id: text.into(), ..good() };
    let boot = |text: &str| Identity { boot_id: text.into(), ..good() };
    let cases = [
        (identity(""), "host name"),
        (identity("a b"), "host name"),
        (identity("a\nnameserver 6.6.6.6"), "host name"),
        (identity("a#"), "host name"),
        (identity(&"x".repeat(65)), "host name"),
        (id(""), "machine id"),
        (id("0123456789abcdef0123456789abcde"), "machine id"),
        (id("0123456789abcdef0123456789abcdef0"), "machine id"),
        (id("0123456789ABCDEF0123456789ABCDEF"), "machine id"),
        (id("01234567-89ab-4def-8123-4567-9ab"), "machine id"),
        (boot(""), "boot id"),
        (boot("0123456789abcdef0123456789abcdef0123"), "boot id"),
        (boot("01234567-89AB-4def-8123-456789abcdef"), "boot id"),
        (boot("012345678-9ab-4def-8123-456789abcdef"), "boot id"),
        (boot("01234567-89ab-4def-8123-456789abcde\n"), "boot id"),
    ];
    let mut agent = Agent::start();
    let mut refused = |request: Request| {
        agent.request(1, request);
        match agent.finish(1).reply {
            Some(Reply::Failed { message }) => message,
            other => panic!("{other:?}"),
        }
    };
    for (identity, what) in cases {
        let message = refused(adopt(Some(identity.clone())));
        assert!(message.ends_with(&format!("is not a {what}")), "{message} for {identity:?}");
    }
    let message = refused(Request::Adopt(Adopt { entropy: vec![1; 31], unix_ns: 0, identity: None }));
    assert!(message.contains("31 bytes of entropy"), "{message}");
}

#[test]
fn entropy_goes_to_a_random_device_or_nowhere() {
    let null = File::options().write(true).open("/dev/null").unwrap();
    assert_eq!(manta_agent::sys::add_entropy(&null, &[1; 32]), Err(rustix::io::Errno::NOTTY));
    assert_eq!(manta_agent::sys::reseed(&null), Err(rustix::io::Errno::NOTTY));
}

const BOOT_ID: &str = "ffffffff-ffff-4fff-8fff-ffffffffffff\n";

/// A machine's root with what an image may have.
fn root() -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    let etc = root.path().join("etc");
    fs::create_dir(root.path().join("run")).unwrap();
    fs::create_dir(&etc).unwrap();
    fs::write(etc.join("hostname"), "the-image's-own\n").unwrap();
    fs::write(etc.join("machine-id"), "").unwrap();
    symlink("../run/systemd/resolve/stub-resolv.conf", etc.join("resolv.conf")).unwrap();
    root
}

fn read(root: &Path, path: &str) -> String {
    fs::read_to_string(root.join(path)).unwrap()
}

#[test]
fn names_are_written_over_whatever_was_there() {
    sys::in_own_namespaces(|| {
        let directory = root();
        let root = directory.path();
        let mut names = Names::create(root.to_owned(), BOOT_ID).unwrap();
        assert_eq!(read(root, "etc/hostname"), "sandbox\n");
        assert_eq!(read(root, "etc/machine-id"), "");
        assert_eq!(read(root, "run/manta/boot_id"), BOOT_ID);
        for name in ["a-rather-long.example", "a-rather-long.example", "sb-2", "sb-33"] {
            names.set(&identity(name)).unwrap();
            names.set_servers(&identity(name).network.dns).unwrap();
            assert_eq!(read(root, "etc/hostname"), format!("{name}\n"));
            let hosts = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n";
            assert_eq!(read(root, "etc/hosts"), format!("{hosts}10.77.0.2\t{name}\n"));
            assert_eq!(read(root, "etc/resolv.conf"), "nameserver 10.77.0.53\nnameserver 9.9.9.9\n");
            assert!(fs::symlink_metadata(root.join("etc/resolv.conf")).unwrap().is_file());
            assert_eq!(read(root, "etc/machine-id"), "0123456789abcdef0123456789abcdef\n");
            assert_eq!(read(root, "run/manta/boot_id"), "01234567-89ab-4def-8123-456789abcdef\n");
            assert_eq!(rustix::system::uname().nodename().to_bytes(), name.as_bytes());
            assert_eq!(fs::read_dir(root.join("etc")).unwrap().count(), 4, "a temporary file is left");
            assert!(!root.join("var").exists(), "D-Bus has no machine id of its own here");
        }
    });
}

#[test]
fn a_machine_id_of_dbus_is_followed() {
    sys::in_own_namespaces(|| {
        let directory = root();
        let root = directory.path();
        let mut names = Names::create(root.to_owned(), BOOT_ID).unwrap();
        let dbus = root.join("var/lib/dbus");
        fs::create_dir_all(&dbus).unwrap();
        fs::write(dbus.join("machine-id"), "old\n").unwrap();
        names.set(&identity("a")).unwrap();
        assert_eq!(read(root, "var/lib/dbus/machine-id"), "0123456789abcdef0123456789abcdef\n");
        fs::remove_file(dbus.join("machine-id")).unwrap();
        symlink("../../../etc/machine-id", dbus.join("machine-id")).unwrap();
        names.set(&identity("a")).unwrap();
        assert!(fs::symlink_metadata(dbus.join("machine-id")).unwrap().is_symlink());
    });
}

#[test]
fn what_users_made_of_hosts_stays() {
    sys::in_own_namespaces(|| {
        let directory = root();
        let root = directory.path();
        let mut names = Names::create(root.to_owned(), BOOT_ID).unwrap();
        names.set(&identity("first")).unwrap();
        let ours = read(root, "etc/hosts");
        fs::write(root.join("etc/hosts"), format!("{ours}10.9.9.9\tdatabase\n")).unwrap();
        names.set(&identity("the-second")).unwrap();
        let expected = format!("{}10.9.9.9\tdatabase\n", ours.replace("first", "the-second"));
        assert_eq!(read(root, "etc/hosts"), expected);
        for users in ["all mine\n".as_bytes(), &[0xff, b'\n'], &[b'#'; 2 << 20]] {
            fs::write(root.join("etc/hosts"), users).unwrap();
            names.set(&identity("third")).unwrap();
            assert!(fs::read(root.join("etc/hosts")).unwrap() == users);
        }
    });
}

#[test]
fn no_path_that_users_break_keeps_a_clone_from_being_one() {
    sys::in_own_namespaces(|| {
        let directory = root();
        let root = directory.path();
        let mut names = Names::create(root.to_owned(), BOOT_ID).unwrap();
        names.set(&identity("first")).unwrap();
        fs::remove_dir_all(root.join("run/manta")).unwrap();
        fs::remove_dir_all(root.join("etc")).unwrap();
        names.set(&identity("second")).unwrap();
        assert_eq!(rustix::system::uname().nodename().to_bytes(), b"second");
    });
}

#[test]
fn a_file_that_cannot_be_made_is_named() {
    let directory = root();
    fs::create_dir(directory.path().join("etc/hosts")).unwrap();
    let error = Names::create(directory.path().to_owned(), BOOT_ID).unwrap_err();
    assert!(error.to_string().ends_with("etc/hosts"), "{error}");
}
