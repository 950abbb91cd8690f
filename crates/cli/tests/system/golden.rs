//! The golden snapshot: made once, made anew when it does not fit, done without when it cannot be made.
//! And the command that looks at snapshots without a server.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::harness::{
    Host, Server, artifact, artifacts, binary, entries, eventually, new_dir, scaled, zeros,
};

/// The one golden snapshot.
fn golden(server: &Server) -> String {
    let found = entries(&server.golden_dir());
    assert_eq!(found.len(), 1, "{found:?}");
    found[0].clone()
}

/// Where a new sandbox of this server comes from: a snapshot, or booted.
fn origin(server: &Server) -> Option<String> {
    let id = server.create();
    assert_eq!(server.stdout(&id, "hostname"), id);
    let origin =
        server.info(&id).expect("listed").get("snapshot_id").map(|id| id.as_str().expect("an id").to_owned());
    server.destroy(&id).ok();
    origin
}

/// Why it is degraded; there is one reason.
fn degraded(server: &Server) -> String {
    let health = server.get("/healthz");
    assert_eq!(health["status"], "degraded", "{health:#}");
    let reasons = health["degraded"].as_array().expect("reasons");
    assert_eq!(reasons.len(), 1, "{health:#}");
    reasons[0].as_str().expect("a reason").to_owned()
}

fn memory_of(server: &Server) -> PathBuf {
    server.golden_dir().join(golden(server)).join("memory")
}

#[test]
fn it_is_made_once_and_anew_for_other_settings() {
    let _host = Host::enter();
    let server = Server::start();
    assert_eq!(server.get("/healthz")["status"], "ok");
    let first = golden(&server);
    assert_eq!(origin(&server), Some(first.clone()));
    assert!(server.snapshots().is_empty(), "it is nobody's");

    let server = Server::in_dir(server.end(), &[]);
    assert_eq!(golden(&server), first);

    let server = Server::in_dir(server.end(), &[("MANTA_MEM_MIB", "320")]);
    let second = golden(&server);
    assert_ne!(second, first);
    assert_eq!(origin(&server), Some(second.clone()));
    let id = server.create();
    let mib: u32 =
        server.stdout(&id, "awk '/MemTotal/ { print int($2 / 1024) }' /proc/meminfo").parse().expect("MiB");
    assert!((260..=320).contains(&mib), "{mib} MiB");
    assert_eq!(server.get("/healthz")["status"], "ok");
}

#[test]
fn a_damaged_one_is_made_anew_at_the_start_and_done_without_until_then() {
    let _host = Host::enter();
    let server = Server::start();
    let first = golden(&server);
    let kept = server.create();
    zeros(&memory_of(&server), 4096);
    assert_eq!(origin(&server), None, "it was not booted");
    assert!(degraded(&server).contains("memory"), "{}", degraded(&server));
    assert_eq!(origin(&server), None);
    // What was restored before is not touched.
    assert_eq!(server.stdout(&kept, "python3 -c 'print(6 * 7)'"), "42");

    let server = Server::in_dir(server.end(), &[]);
    assert_ne!(golden(&server), first);
    assert_eq!(origin(&server), Some(golden(&server)));
    assert_eq!(server.get("/healthz")["status"], "ok");
}

#[test]
fn one_that_is_whole_and_yet_cannot_be_restored_is_made_anew_at_the_start() {
    let _host = Host::enter();
    let server = Server::start();
    let (first, memory) = (golden(&server), memory_of(&server));
    let dir = server.end();
    zeros(&memory, fs::metadata(&memory).expect("its memory").len());
    let server = Server::in_dir(dir, &[]);
    assert_ne!(golden(&server), first);
    assert_eq!(origin(&server), Some(golden(&server)));
    assert_eq!(server.get("/healthz")["status"], "ok");
}

#[test]
fn a_root_image_replaced_under_a_running_server_changes_nothing_until_its_next_start() {
    let _host = Host::enter();
    let (_, built) =
        artifacts().into_iter().find(|(name, _)| *name == "MANTA_ROOTFS_PATH").expect("an image");
    let images = new_dir();
    let image = images.path().join("rootfs.ext4");
    // No link: that would show in the image's times, and servers of other tests would hash it anew.
    fs::copy(&built, &image).expect("copy the image");
    let server = Server::with(&[("MANTA_ROOTFS_PATH", image.to_str().expect("a path"))]);
    let another = artifact(&[0; 1 << 20]);
    fs::copy(another.path(), images.path().join("another")).expect("another image");
    fs::rename(images.path().join("another"), &image).expect("put it in place");
    let uses_it = "sha256sum /usr/bin/* > /dev/null && python3 -c 'import json, ssl, sqlite3'";
    let id = server.create();
    assert_eq!(server.stdout(&id, uses_it), "");
    let clone = server.restore(&server.snapshot(&id));
    assert_eq!(server.stdout(&clone, uses_it), "");
}

#[test]
fn without_one_the_server_serves_and_says_why() {
    let host = Host::enter();
    let kernel = artifact(b"this is not a kernel");
    let path = kernel.path().to_str().expect("a path");
    let server = Server::with(&[("MANTA_KERNEL_PATH", path), ("MANTA_NETNS_POOL_SIZE", "0")]);
    assert!(degraded(&server).contains("no golden snapshot"), "{}", degraded(&server));
    // That of the other kernel is of no use any more.
    assert!(entries(&server.golden_dir()).is_empty());
    server.raw("POST", "/create", "", b"").error(502, "boot_failed");

    let settings = [("MANTA_AGENT_WAIT_TIMEOUT", "50ms"), ("MANTA_NETNS_POOL_SIZE", "0")];
    let server = Server::in_dir(server.end(), &settings);
    assert!(degraded(&server).contains("50 ms"), "{}", degraded(&server));
    assert!(entries(&server.golden_dir()).is_empty());
    assert_eq!((server.vmms(), server.sandbox_dirs()), (Vec::new(), 0));
    host.await_no_slots();

    // With what was wrong put right, the next start makes it.
    let server = Server::in_dir(server.end(), &[]);
    assert_eq!(origin(&server), Some(golden(&server)));
}

#[test]
fn sigterm_while_it_is_made_leaves_nothing() {
    let host = Host::enter();
    let links = host.links();
    let mut server = Server::starting();
    eventually("it is being made", scaled(60), || !server.vmms().is_empty());
    server.signal(Signal::TERM);
    assert!(server.wait(scaled(20)).success(), "{}", server.log());
    assert_eq!((server.vmms(), server.sandbox_dirs()), (Vec::new(), 0));
    assert!(entries(&server.golden_dir()).is_empty());
    assert_eq!(host.links(), links);
    assert_eq!(host.ruleset().trim(), "");
}

/// `manta snapshot`.
fn offline(work_dir: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(binary());
    command
        .arg("snapshot")
        .args(arguments)
        .arg("--work-dir")
        .arg(work_dir)
        .output()
        .expect("run manta snapshot")
}

fn printed(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn snapshots_are_listed_deleted_and_cleaned_up_without_a_server_and_only_listed_beside_one() {
    let _host = Host::enter();
    let server = Server::start();
    let id = server.create();
    let body = json!({"sandbox_id": id, "name": "named"});
    let named =
        server.post("/snapshot/create", &body).ok()["snapshot_id"].as_str().expect("an id").to_owned();
    let [doomed, damaged] = [server.snapshot(&id), server.snapshot(&id)];
    let all = [named.clone(), doomed.clone(), damaged.clone()];
    let list = |work_dir: &Path| -> Vec<Value> {
        serde_json::from_str(&printed(&offline(work_dir, &["list", "--json"]))).expect("one JSON array")
    };
    let work_dir = server.work_dir.clone();
    let ids = |list: &[Value]| {
        list.iter().map(|one| one["id"].as_str().expect("an id").to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(ids(&list(&work_dir)), all);
    for refused in [&["delete", &doomed][..], &["gc"], &["gc", "--dry-run"]] {
        let output = offline(&work_dir, refused);
        assert!(!output.status.success(), "{refused:?} beside a server");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains("a server is using"), "{said}");
    }
    assert_eq!(server.snapshots().len(), 3);

    let dir = server.end();
    let listed = list(&work_dir);
    assert_eq!(ids(&listed), all);
    assert_eq!((&listed[0]["name"], &listed[0]["sandbox_id"]), (&json!("named"), &json!(id)));
    assert!(listed[0]["disk_bytes"]["memory"].as_u64().expect("bytes") > 0);
    let table = printed(&offline(&work_dir, &["list"]));
    assert!(table.contains(&named) && table.contains("named") && table.lines().count() == 4, "{table}");
    assert!(printed(&offline(&work_dir, &["delete", &doomed])).contains(&doomed));
    assert!(!offline(&work_dir, &["delete", &doomed]).status.success(), "it is not there any more");

    let snapshots = work_dir.join("snapshots");
    let half_made = snapshots.join(".new-snap-00000000000000000000");
    fs::create_dir(&half_made).expect("a half-made snapshot");
    fs::write(half_made.join("memory"), [1; 8192]).expect("a half-made file");
    zeros(&snapshots.join(&damaged).join("memory"), 4096);
    let would = printed(&offline(&work_dir, &["gc", "--dry-run"]));
    assert!(would.contains(&damaged) && would.contains(".new-") && !would.contains(&named), "{would}");
    assert!(half_made.exists() && snapshots.join(&damaged).exists());
    let golden = entries(&work_dir.join("golden"));
    let removed = printed(&offline(&work_dir, &["gc"]));
    assert!(removed.contains(&damaged) && removed.contains(".new-"), "{removed}");
    assert_eq!(entries(&snapshots), [named.as_str()]);
    assert_eq!(entries(&work_dir.join("golden")), golden);

    let server = Server::in_dir(dir, &[]);
    let clone = server.restore(&named);
    assert_eq!(server.stdout(&clone, "echo works"), "works");
}
