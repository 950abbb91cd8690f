//! What one sandbox does is not seen in another, nor in the image they share.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use sha2::{Digest, Sha256};

use crate::harness::{Host, Server};

#[test]
fn files_of_one_sandbox_are_in_no_other_and_the_shared_image_stays_as_it_is() {
    let _host = Host::enter();
    let image = std::env::var_os("MANTA_ROOTFS_PATH").map_or_else(
        || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../guest-artifacts/rootfs.ext4")),
        PathBuf::from,
    );
    let before = hash(&image);
    let server = Server::start();
    let (one, other) = (server.create(), server.create());
    server.stdout(&one, "echo secret > /root/secret; echo changed > /etc/hostname; rm /usr/bin/git; sync");
    assert_eq!(
        server.stdout(&one, "cat /root/secret; ls /usr/bin/git 2>&1 | grep -c 'No such'"),
        "secret\n1"
    );
    assert_eq!(server.sh(&other, "cat /root/secret")["exit_code"], 1);
    assert_eq!(server.stdout(&other, "ls /usr/bin/git"), "/usr/bin/git");
    // Not even through the block device.
    assert_ne!(server.sh(&one, "for d in /dev/vd?; do [ $(cat /sys/block/${d#/dev/}/ro) = 1 ] && echo x | dd of=$d conv=notrunc; done")["exit_code"], 0);
    server.destroy(&one).ok();
    let third = server.create();
    assert_eq!(server.sh(&third, "cat /root/secret")["exit_code"], 1);
    assert_eq!(server.stdout(&third, "git --version | cut -c1-11"), "git version");
    drop(server);
    assert_eq!(hash(&image), before, "the shared image changed");
}

#[test]
fn guests_have_a_kernel_of_their_own_and_vmms_are_not_root() {
    let _host = Host::enter();
    let server = Server::start();
    let id = server.create();
    let host_kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").expect("the host's kernel");
    assert_ne!(server.stdout(&id, "uname -r"), host_kernel.trim());
    assert!(server.stdout(&id, "uname -r").starts_with("6.12."));

    let own = std::fs::read_link("/proc/thread-self/ns/net").expect("own namespace");
    for pid in server.vmms() {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("its status");
        let uid = status.lines().find_map(|line| line.strip_prefix("Uid:")).expect("a uid");
        assert!(uid.split_whitespace().all(|uid| uid != "0"), "the VMM runs as root: {uid}");
        assert!(status.contains("NoNewPrivs:\t1"), "{status}");
        for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
            assert!(status.contains(&format!("{set}:\t0000000000000000\n")), "{status}");
        }
        let namespace = std::fs::read_link(format!("/proc/{pid}/ns/net")).expect("its namespace");
        assert_ne!(namespace, own, "the VMM is in the host's network namespace");
    }
    assert_eq!(server.vmms().len(), 1);
}

#[test]
fn firecracker_sees_nothing_of_the_host_but_its_jail() {
    if std::env::var("MANTA_TEST_VMM").as_deref() != Ok("firecracker") {
        println!("skipped: the VMM is not Firecracker");
        return;
    }
    let _host = Host::enter();
    let server = Server::start();
    assert_eq!(server.get("/healthz")["degraded"], serde_json::json!([]));
    for id in [server.create(), server.create()] {
        let dir = server.work_dir.join("sandboxes").join(&id);
        let found = std::fs::metadata(&dir).expect("its directory");
        let jailed = server.vmms().into_iter().find(|pid| {
            let root = std::fs::metadata(format!("/proc/{pid}/root")).expect("its root");
            (root.dev(), root.ino()) == (found.dev(), found.ino())
        });
        let pid = jailed.unwrap_or_else(|| panic!("no VMM has {} as its root", dir.display()));
        // All paths begin at a root or a working directory, and none leads out of its one mount.
        let mounts = std::fs::read_to_string(format!("/proc/{pid}/mountinfo")).expect("its mounts");
        assert_eq!(mounts.lines().count(), 1, "{mounts}");
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("its status");
        assert!(status.contains("Seccomp:\t2"), "{status}");
        assert!(status.lines().any(|line| line.trim_end() == "Groups:"), "{status}");
    }
    // Restored or booted, saved and restored again, all in jails.
    let id = server.create();
    server.stdout(&id, "echo kept > /root/kept; sync");
    let snapshot = server.snapshot(&id);
    let restored = server.restore(&snapshot);
    assert_eq!(server.stdout(&restored, "cat /root/kept"), "kept");
    let again = server.restore(&server.snapshot(&restored));
    assert_eq!(server.stdout(&again, "cat /root/kept"), "kept");
    server.destroy(&restored).ok();
    assert_eq!(server.stdout(&again, "cat /root/kept"), "kept");
}

fn hash(path: &PathBuf) -> String {
    let mut file = File::open(path).expect("the root image");
    let (mut hasher, mut buffer) = (Sha256::new(), vec![0; 1 << 20]);
    loop {
        match file.read(&mut buffer).expect("read the root image") {
            0 => return format!("{:x}", hasher.finalize()),
            length => hasher.update(&buffer[..length]),
        }
    }
}
