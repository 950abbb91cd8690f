//! Snapshots that cannot be made or restored: the right error, nothing left, everything else goes on.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Instant;

use manta_host::disk::reflink_supported;
use serde_json::{Value, json};

use crate::harness::{
    Answer, Host, Server, edit_manifest, entries, eventually, kill, new_dir, scaled, spin, zeros,
};

const NO_SNAPSHOT: &str = "snap-00000000000000000000";
const NO_SANDBOX: &str = "sb-00000000000000000000";

/// No VMM, directory or link of a sandbox.
fn no_sandbox_is_left(server: &Server, host: &Host) {
    // One that took sandboxes back tries its golden snapshot meanwhile.
    eventually("no sandbox is left", scaled(30), || {
        server.get("/sandboxes") == json!({"sandboxes": []})
            && server.vmms().is_empty()
            && server.sandbox_dirs() == 0
    });
    host.await_no_slots();
}

/// The snapshots on the disk are those, and each can be restored.
fn only_these_are_left(server: &Server, snapshots: &[&str]) {
    let mut expected: Vec<_> = snapshots.iter().map(|id| (*id).to_owned()).collect();
    expected.sort();
    assert_eq!(entries(&server.snapshots_dir()), expected);
    let mut listed: Vec<_> =
        server.snapshots().iter().map(|info| info["id"].as_str().expect("an id").to_owned()).collect();
    listed.sort();
    assert_eq!(listed, expected);
    for snapshot in snapshots {
        let clone = server.restore(snapshot);
        assert_eq!(server.stdout(&clone, "echo works"), "works");
        server.destroy(&clone).ok();
    }
}

#[test]
fn what_is_wrong_with_a_request_is_told() {
    let _host = Host::enter();
    let server = Server::start();
    let id = server.create();
    server.try_restore(NO_SNAPSHOT).error(404, "snapshot_not_found");
    server.delete_snapshot(NO_SNAPSHOT).error(404, "snapshot_not_found");
    server.try_snapshot(NO_SANDBOX).error(404, "sandbox_not_found");
    for odd in ["", "1", "..", "../golden", "snap-0123", NO_SANDBOX, "snap-0000000000000000000G"] {
        assert!(server.try_restore(odd).error(400, "bad_request").contains("not a snapshot id"), "{odd}");
        server.delete_snapshot(odd).error(400, "bad_request");
    }
    for odd in ["", "1", "..", NO_SNAPSHOT] {
        server.try_snapshot(odd).error(400, "bad_request");
    }
    let named = |name: &str| server.post("/snapshot/create", &json!({"sandbox_id": id, "name": name}));
    for odd in ["", ".hidden", "-x", "a/b", "a b", "a\n", "ä", &"x".repeat(65)] {
        assert!(named(odd).error(400, "bad_request").contains("name"), "{odd:?}");
    }
    let more = json!({"sandbox_id": id, "colour": 1});
    assert!(server.post("/snapshot/create", &more).error(400, "bad_request").contains("colour"));
    assert!(entries(&server.snapshots_dir()).is_empty());

    let made = named("taken").ok();
    assert!(named("taken").error(409, "snapshot_name_taken").contains("taken"));
    only_these_are_left(&server, &[made["snapshot_id"].as_str().expect("an id")]);
    // The golden one is nobody's: neither to be restored by its id, nor to be deleted.
    let golden = &entries(&server.golden_dir())[0];
    server.try_restore(golden).error(404, "snapshot_not_found");
    server.delete_snapshot(golden).error(404, "snapshot_not_found");
    assert_eq!(server.stdout(&id, "echo fine"), "fine");
}

#[test]
fn a_sandbox_that_is_going_or_dead_is_not_saved() {
    let _host = Host::enter();
    let server = Server::with(&[("MANTA_DESTROY_DRAIN", "60s")]);
    let (id, dead) = (server.create(), server.create());
    kill(server.vmm_of(&dead));
    eventually("it failed", scaled(10), || server.info(&dead).is_some_and(|info| info["state"] == "failed"));
    server.try_snapshot(&dead).error(409, "sandbox_not_running");
    // The destroy waits for this command, which ends when its caller hangs up.
    let caller = server.begin("/exec", &json!({"sandbox_id": id, "cmd": "touch /tmp/begun; sleep 300"}));
    eventually("it runs", scaled(30), || server.sh(&id, "test -e /tmp/begun")["exit_code"] == 0);
    std::thread::scope(|scope| {
        let destroy = scope.spawn(|| server.destroy(&id));
        eventually("the destroy began", scaled(10), || {
            server.info(&id).is_some_and(|info| info["state"] == "stopping")
        });
        server.try_snapshot(&id).error(409, "sandbox_not_running");
        drop(caller);
        destroy.join().expect("an answer").ok();
    });
    server.try_snapshot(&id).error(404, "sandbox_not_found");
    only_these_are_left(&server, &[]);
}

#[test]
fn a_snapshot_of_another_machine_is_refused_with_what_differs() {
    let _host = Host::enter();
    let server = Server::start();
    let id = server.create();
    let snapshots: Vec<String> = (0..4).map(|_| server.snapshot(&id)).collect();
    let dir = server.end();
    let edits: [(&str, Value, &str); 3] = [
        ("vcpus", json!(9), "9 vCPUs"),
        ("vmm_version", json!("0.0.1"), "VMM version 0.0.1"),
        ("guest_kernel", json!("0123"), "the guest kernel is another one"),
    ];
    for (snapshot, (field, value, _)) in snapshots.iter().zip(&edits) {
        let path = dir.path().join("work/snapshots").join(snapshot);
        edit_manifest(&path, |manifest| manifest["machine"][*field] = value.clone());
    }
    let server = Server::in_dir(dir, &[]);
    for (snapshot, (_, _, sentence)) in snapshots.iter().zip(&edits) {
        let message = server.try_restore(snapshot).error(409, "snapshot_incompatible");
        assert!(message.contains(sentence), "{message}");
        let info = server.snapshot_info(snapshot);
        assert_eq!(info["restorable"], false, "{info:#}");
        assert!(info["reason"].as_str().expect("a reason").contains(sentence), "{info:#}");
        server.delete_snapshot(snapshot).ok();
    }
    only_these_are_left(&server, &[&snapshots[3]]);
}

/// A file of a snapshot, and what is done to it.
type Damage<'a> = (&'a str, &'a dyn Fn(&Path));

#[test]
fn a_damaged_snapshot_is_refused_and_the_file_is_named() {
    let host = Host::enter();
    let server = Server::with(&[("MANTA_NETNS_POOL_SIZE", "0")]);
    let id = server.create();
    let snapshots: Vec<String> = (0..6).map(|_| server.snapshot(&id)).collect();
    server.destroy(&id).ok();
    let damages: [Damage; 5] = [
        ("state", &|file| {
            let mut bytes = fs::read(file).expect("read the state");
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            fs::write(file, bytes).expect("write the state");
        }),
        ("memory", &|file| {
            let bytes = fs::metadata(file).expect("its length").len();
            fs::File::options()
                .write(true)
                .open(file)
                .and_then(|open| open.set_len(bytes - 4096))
                .expect("cut it");
        }),
        ("disk.ext4", &|file| fs::remove_file(file).expect("remove it")),
        ("state", &|file| {
            let moved = file.with_file_name("moved");
            fs::rename(file, &moved).expect("move it");
            symlink(&moved, file).expect("put a link in its place");
        }),
        ("manifest.json", &|file| fs::write(file, "{").expect("write it")),
    ];
    let dir = server.snapshots_dir();
    for (snapshot, (file, damage)) in snapshots.iter().zip(&damages) {
        damage(&dir.join(snapshot).join(file));
    }
    // What of them is read at the start must not matter.
    let server = Server::in_dir(server.end(), &[("MANTA_NETNS_POOL_SIZE", "0")]);
    for (snapshot, (file, _)) in snapshots.iter().zip(&damages) {
        let message = server.try_restore(snapshot).error(409, "snapshot_damaged");
        assert!(message.contains(&format!(" {file} ")), "{message}");
    }
    for (n, snapshot) in snapshots.iter().enumerate() {
        // A changed byte is not seen by looking, only by reading.
        assert_eq!(server.snapshot_info(snapshot)["restorable"], n == 0 || n == 5, "{snapshot}");
    }
    no_sandbox_is_left(&server, &host);
    snapshots[..5].iter().for_each(|snapshot| drop(server.delete_snapshot(snapshot).ok()));
    only_these_are_left(&server, &[&snapshots[5]]);
}

#[test]
fn a_full_store_refuses_and_the_sandbox_goes_on() {
    let _host = Host::enter();
    let server = Server::with(&[("MANTA_MAX_SNAPSHOTS", "1")]);
    let id = server.create();
    let snapshot = server.snapshot(&id);
    assert!(server.try_snapshot(&id).error(507, "snapshot_storage_full").contains("delete some"));
    assert_eq!(server.stdout(&id, "echo fine"), "fine");
    only_these_are_left(&server, &[&snapshot]);
    server.delete_snapshot(&snapshot).ok();
    let next = server.snapshot(&id);
    only_these_are_left(&server, &[&next]);

    let server = Server::in_dir(server.end(), &[("MANTA_MAX_SNAPSHOT_MIB", "1")]);
    let id = server.create();
    assert!(server.try_snapshot(&id).error(507, "snapshot_storage_full").contains("1048576 bytes"));
    assert_eq!(server.stdout(&id, "echo fine"), "fine");
    only_these_are_left(&server, &[&next]);
}

/// Moments while a snapshot is made, told by what is there in its directory: one after the other.
const MOMENTS: [&str; 6] = ["", ".", "memory", "disk.ext4", "state", "manifest.json"];

/// Waits until the one snapshot being made is at that moment; false when it is past it.
fn at(moment: &str, snapshots: &Path) -> bool {
    spin(scaled(2), || {
        let half_made = entries(snapshots).into_iter().find(|name| name.starts_with(".new-"));
        moment.is_empty() || half_made.is_some_and(|name| snapshots.join(name).join(moment).exists())
    })
}

#[test]
fn a_vmm_killed_while_it_is_saved_leaves_no_half_made_snapshot() {
    let host = Host::enter();
    let server = Server::with(&[("MANTA_NETNS_POOL_SIZE", "0")]);
    let mut failed = 0;
    for moment in MOMENTS {
        let id = server.create();
        server.stdout(&id, "head -c 8000000 /dev/urandom > /root/dirty");
        let pid = server.vmm_of(&id);
        let answer: Answer = std::thread::scope(|scope| {
            let saving = scope.spawn(|| server.try_snapshot(&id));
            at(moment, &server.snapshots_dir());
            kill(pid);
            saving.join().expect("an answer")
        });
        eventually("the sandbox failed", scaled(20), || {
            server.info(&id).is_some_and(|info| info["state"] == "failed")
        });
        server.destroy(&id).ok();
        if answer.status == 200 {
            // It was complete, so it is good.
            let snapshot = answer.body["snapshot_id"].as_str().expect("an id");
            only_these_are_left(&server, &[snapshot]);
            server.delete_snapshot(snapshot).ok();
        } else {
            answer.error(502, "snapshot_failed");
            failed += 1;
        }
        only_these_are_left(&server, &[]);
        no_sandbox_is_left(&server, &host);
    }
    assert!(failed > 0, "none was killed early enough");
}

#[test]
fn a_sandbox_destroyed_while_it_is_saved_goes_and_leaves_no_half_made_snapshot() {
    let host = Host::enter();
    let server = Server::with(&[("MANTA_NETNS_POOL_SIZE", "0")]);
    for moment in MOMENTS {
        let id = server.create();
        let answer = std::thread::scope(|scope| {
            let saving = scope.spawn(|| server.try_snapshot(&id));
            at(moment, &server.snapshots_dir());
            server.destroy(&id).ok();
            saving.join().expect("an answer")
        });
        assert!([200, 404, 409, 502].contains(&answer.status), "{moment:?}: {answer:?}");
        no_sandbox_is_left(&server, &host);
        let made: Vec<_> = answer.body["snapshot_id"].as_str().into_iter().collect();
        only_these_are_left(&server, &made);
        made.iter().for_each(|snapshot| drop(server.delete_snapshot(snapshot).ok()));
    }
}

#[test]
fn a_guest_that_does_not_let_itself_be_saved_does_not_hold_up_its_end() {
    let host = Host::enter();
    let server = Server::with(&[("MANTA_NETNS_POOL_SIZE", "0")]);
    let id = server.create();
    server
        .stdout(&id, "mount -t cgroup2 none /mnt && mkdir /mnt/frozen && echo 1 > /mnt/frozen/cgroup.procs");
    // The agent answers nobody from here on, the snapshot's request to be quiet included.
    let _freezing = server.begin(
        "/exec",
        &json!({"sandbox_id": id, "cmd": "echo $$ > /mnt/cgroup.procs; echo 1 > /mnt/frozen/cgroup.freeze"}),
    );
    std::thread::scope(|scope| {
        let frozen = (0..20).any(|_| {
            let answered = scope.spawn(|| server.post("/exec", &json!({"sandbox_id": id, "cmd": "true"})));
            !spin(scaled(2), || answered.is_finished())
        });
        assert!(frozen, "the agent answers all the same");
        let saving = scope.spawn(|| server.try_snapshot(&id));
        assert!(spin(scaled(5), || !entries(&server.snapshots_dir()).is_empty()), "it is not being saved");
        assert!(!spin(scaled(1), || saving.is_finished()), "the guest was saved all the same");
        let began = Instant::now();
        server.destroy(&id).ok();
        assert!(began.elapsed() < scaled(5), "the destroy took {:?}", began.elapsed());
    });
    no_sandbox_is_left(&server, &host);
    assert!(entries(&server.snapshots_dir()).iter().all(|name| !name.starts_with('.')));
}

#[test]
fn sigterm_while_a_sandbox_is_saved_leaves_no_half_made_snapshot() {
    let _host = Host::enter();
    let mut server = Server::start();
    for moment in ["", ".", "memory", "state"] {
        let id = server.create();
        let saving = server.begin("/snapshot/create", &json!({"sandbox_id": id}));
        at(moment, &server.snapshots_dir());
        // Within the time that every end is given; nobody waits for a next start to have it clean.
        let dir = server.end();
        let left = entries(&dir.path().join("work/snapshots"));
        assert!(left.len() <= 1 && left.iter().all(|name| name.starts_with("snap-")), "{moment:?}: {left:?}");
        assert_eq!(entries(&dir.path().join("work/sandboxes")), [""; 0]);
        drop(saving);
        server = Server::in_dir(dir, &[]);
        only_these_are_left(&server, &left.iter().map(String::as_str).collect::<Vec<_>>());
        left.iter().for_each(|snapshot| drop(server.delete_snapshot(snapshot).ok()));
    }
}

#[test]
fn a_client_that_hangs_up_while_its_snapshot_is_made_leaves_none() {
    let _host = Host::enter();
    let server = Server::start();
    let id = server.create();
    for moment in ["", ".", "memory", "state"] {
        let request = server.begin("/snapshot/create", &json!({"sandbox_id": id}));
        at(moment, &server.snapshots_dir());
        drop(request);
        // The next is made after it, so that it is over.
        let next = server.snapshot(&id);
        eventually("only the other is left", scaled(20), || {
            entries(&server.snapshots_dir()) == [next.as_str()]
        });
        only_these_are_left(&server, &[&next]);
        server.delete_snapshot(&next).ok();
    }
    assert_eq!(server.stdout(&id, "echo fine"), "fine");
}

#[test]
fn a_server_killed_while_it_saves_leaves_no_half_made_snapshot() {
    let host = Host::enter();
    let settings = [("MANTA_NETNS_POOL_SIZE", "0")];
    let mut server = Server::with(&settings);
    for moment in MOMENTS {
        let id = server.create();
        let saving = server.begin("/snapshot/create", &json!({"sandbox_id": id}));
        at(moment, &server.snapshots_dir());
        server = Server::in_dir(server.kill(), &settings);
        drop(saving);
        // The guest may have stood still.
        assert_eq!(server.stdout(&id, "echo lives on"), "lives on");
        server.destroy(&id).ok();
        no_sandbox_is_left(&server, &host);
        let left = entries(&server.snapshots_dir());
        only_these_are_left(&server, &left.iter().map(String::as_str).collect::<Vec<_>>());
        left.iter().for_each(|snapshot| drop(server.delete_snapshot(snapshot).ok()));
    }
    // One that was answered is there whatever comes.
    let id = server.create();
    let snapshot = server.snapshot(&id);
    let server = Server::in_dir(server.kill(), &settings);
    only_these_are_left(&server, &[&snapshot]);
}

#[test]
fn a_restore_that_fails_leaves_nothing() {
    let host = Host::enter();
    let server = Server::with(&[("MANTA_NETNS_POOL_SIZE", "0")]);
    let id = server.create();
    let good = server.snapshot(&id);
    // The agent cannot write a name of the clone.
    server.stdout(
        &id,
        "mkdir -p /var/lib/dbus && rm -f /var/lib/dbus/machine-id && mknod /var/lib/dbus/machine-id c 1 7",
    );
    let unadoptable = server.snapshot(&id);
    // A guest without a memory; only its size is checked.
    let mindless = server.snapshot(&id);
    let memory = server.snapshot_dir(&mindless).join("memory");
    zeros(&memory, fs::metadata(&memory).expect("its length").len());
    server.destroy(&id).ok();
    no_sandbox_is_left(&server, &host);
    let descriptors = server.descriptors();
    for (snapshot, limit) in [(&unadoptable, scaled(20)), (&mindless, scaled(70))] {
        let began = Instant::now();
        let message = server.try_restore(snapshot).error(502, "boot_failed");
        assert!(began.elapsed() < limit, "it took {:?}: {message}", began.elapsed());
        no_sandbox_is_left(&server, &host);
    }
    eventually("no more descriptors than before", scaled(20), || server.descriptors() <= descriptors);
    let clone = server.restore(&good);
    assert_eq!(server.stdout(&clone, "hostname"), clone);
}

#[test]
fn a_full_host_restores_nothing() {
    let _host = Host::enter();
    let server = Server::with(&[("MANTA_MAX_SANDBOXES", "1")]);
    let id = server.create();
    let snapshot = server.snapshot(&id);
    let answer = server.try_restore(&snapshot);
    assert!(answer.headers.contains("retry-after: 1"), "{}", answer.headers);
    answer.error(503, "host_full");
    server.destroy(&id).ok();
    let clone = server.restore(&snapshot);
    assert_eq!(server.stdout(&clone, "echo works"), "works");
}

#[test]
fn reflinks_that_are_required_are_there_or_the_server_does_not_start() {
    let _host = Host::enter();
    let dir = new_dir();
    let can = reflink_supported(dir.path()).expect("try it");
    match (can, Server::try_in_dir(dir, &[("MANTA_ROOTFS_CLONE_MODE", "reflink-required")])) {
        (true, Ok(server)) => {
            let id = server.create();
            server.stdout(&id, "echo kept > /root/kept");
            let clone = server.restore(&server.snapshot(&id));
            assert_eq!(server.stdout(&clone, "cat /root/kept"), "kept");
        }
        (false, Err(log)) => assert!(log.contains("reflink"), "{log}"),
        (can, started) => panic!("reflinks are possible: {can}, it started: {}", started.is_ok()),
    }
}
