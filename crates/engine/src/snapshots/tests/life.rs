//! From a draft to its end: made, listed, restored from, deleted; after crashes.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use crate::snapshots::machine::Machine;
use crate::snapshots::testing::{commit, fill, machine, make, sandbox, store};
use crate::snapshots::{Limits, Store, StoreError};

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn a_committed_snapshot_is_listed_and_found_again_after_a_restart() {
    let (dir, store) = store();
    let made = make(&store, Some("ready"));
    let id = &made.manifest.id;
    let listed = store.list(&machine());
    let [info] = listed.as_slice() else { panic!("{listed:?}") };
    assert_eq!((&info.id, info.name.as_deref(), &info.sandbox_id), (id, Some("ready"), &sandbox()));
    assert_eq!((info.restorable, &info.reason), (true, &None));
    assert_eq!(info.disk_bytes.memory, fs::metadata(made.files().memory).unwrap().blocks() * 512);
    assert!(info.disk_bytes.memory >= 64 * 1024, "{info:?}");
    assert_eq!(made.manifest.pause_us, 900);

    drop(store);
    let again = Store::open(&dir.path().join("snapshots"), Limits::NONE).unwrap();
    assert_eq!(again.list(&machine()), listed);
    let got = again.get(id, &machine()).unwrap();
    assert_eq!(got.manifest, made.manifest);
    assert_eq!(fs::read(got.files().state).unwrap(), b"processors and devices");
    assert_eq!(fs::metadata(got.disk()).unwrap().len(), 32 * 1024);
}

#[test]
fn files_are_read_only_and_directories_are_closed_to_others() {
    let (dir, store) = store();
    let made = make(&store, None);
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(&dir.path().join("snapshots")), 0o700);
    assert_eq!(mode(&made.dir), 0o700);
    for name in names(&made.dir) {
        assert_eq!(mode(&made.dir.join(&name)), 0o444, "{name}");
    }
    assert_eq!(names(&made.dir).len(), 4);
    // One that others could search is closed again.
    fs::set_permissions(dir.path().join("snapshots"), fs::Permissions::from_mode(0o755)).unwrap();
    Store::open(&dir.path().join("snapshots"), Limits::NONE).unwrap();
    assert_eq!(mode(&dir.path().join("snapshots")), 0o700);
}

#[test]
fn a_draft_that_is_dropped_leaves_nothing() {
    let (dir, store) = store();
    let draft = store.begin(Some("ready".parse().unwrap()), 1).unwrap();
    fill(&draft);
    assert_eq!(names(&dir.path().join("snapshots")).len(), 1);
    assert!(store.list(&machine()).is_empty(), "a draft is no snapshot");
    drop(draft);
    assert!(names(&dir.path().join("snapshots")).is_empty());
    make(&store, Some("ready"));
}

#[test]
fn a_draft_that_lacks_a_file_does_not_become_a_snapshot() {
    let (dir, store) = store();
    for missing in ["state", "memory", "disk.ext4"] {
        let draft = store.begin(None, 1).unwrap();
        fill(&draft);
        fs::remove_file(draft.disk().with_file_name(missing)).unwrap();
        let error = commit(draft).unwrap_err();
        assert!(matches!(&error, StoreError::Io { path, .. } if path.ends_with(missing)), "{error}");
        assert!(names(&dir.path().join("snapshots")).is_empty());
    }
    assert!(store.list(&machine()).is_empty());
}

#[test]
fn a_link_in_place_of_a_file_is_not_sealed() {
    let (dir, store) = store();
    let target = dir.path().join("target");
    fs::write(&target, "not ours").unwrap();
    let draft = store.begin(None, 1).unwrap();
    fill(&draft);
    fs::remove_file(draft.disk()).unwrap();
    std::os::unix::fs::symlink(&target, draft.disk()).unwrap();
    let before = fs::metadata(&target).unwrap().mode();
    commit(draft).unwrap_err();
    assert_eq!(fs::metadata(&target).unwrap().mode(), before);
    assert_eq!(fs::read(&target).unwrap(), b"not ours");
}

#[test]
fn the_list_is_oldest_first() {
    let (_dir, store) = store();
    let mut made = Vec::new();
    for created in [1_700_000_000_300, 1_700_000_000_100, 1_700_000_000_200] {
        let draft = store.begin(None, 1).unwrap();
        fill(&draft);
        let stored = draft.commit(sandbox(), created, machine(), std::time::Duration::ZERO).unwrap();
        made.push((created, stored.manifest.id.clone()));
    }
    made.sort();
    let listed = store.list(&machine()).into_iter().map(|info| (info.created_unix_ms, info.id));
    assert!(listed.eq(made));
}

#[test]
fn a_deleted_snapshot_is_gone_and_who_has_it_open_keeps_it() {
    let (dir, store) = store();
    let made = make(&store, Some("ready"));
    let id = made.manifest.id.clone();
    let mut clone = File::open(made.files().memory).unwrap();
    store.delete(&id).unwrap();
    assert!(names(&dir.path().join("snapshots")).is_empty());
    assert!(store.list(&machine()).is_empty());
    assert!(matches!(store.get(&id, &machine()), Err(StoreError::NotFound(_))));
    assert!(matches!(store.delete(&id), Err(StoreError::NotFound(_))));
    let mut memory = Vec::new();
    clone.read_to_end(&mut memory).unwrap();
    assert_eq!(memory, vec![0x5a; 64 * 1024]);
    make(&store, Some("ready"));
}

#[test]
fn deleting_at_once_succeeds_once() {
    let (_dir, store) = store();
    let id = make(&store, None).manifest.id.clone();
    let deleted = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(|| store.delete(&id).is_ok())).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).filter(|ok| *ok).count()
    });
    assert_eq!(deleted, 1);
}

#[test]
fn what_was_removed_behind_our_back_can_be_deleted() {
    let (_dir, store) = store();
    let made = make(&store, None);
    fs::remove_dir_all(&made.dir).unwrap();
    store.delete(&made.manifest.id).unwrap();
    assert!(store.list(&machine()).is_empty());
}

#[test]
fn a_snapshot_of_another_machine_is_listed_and_refused_with_the_reason() {
    let (_dir, store) = store();
    let id = make(&store, None).manifest.id.clone();
    let current = Machine { vcpus: 2, agent: "another".to_owned(), ..machine() };
    let info = store.list(&current).remove(0);
    assert_eq!(
        (info.restorable, info.reason.as_deref()),
        (false, Some("it has 1 vCPUs, this server's sandboxes 2"))
    );
    let error = store.get(&id, &current).unwrap_err();
    assert!(
        matches!(&error, StoreError::Incompatible { differences, .. } if differences.len() == 1),
        "{error}"
    );
    let other_agent = Machine { agent: "another".to_owned(), ..machine() };
    store.get(&id, &other_agent).unwrap();
}

/// A server that died between any two steps of a commit or a delete leaves one of these directories.
#[test]
fn what_a_crash_leaves_is_never_listed() {
    let (dir, store) = store();
    let kept = make(&store, None);
    let snapshots = dir.path().join("snapshots");
    let complete = make(&store, None);
    // Not renamed yet; with and without a manifest.
    let new = snapshots.join(format!(".new-{}", complete.manifest.id));
    fs::rename(&complete.dir, &new).unwrap();
    let half = snapshots.join(".new-snap-00000000000000000001");
    fs::create_dir(&half).unwrap();
    fs::write(half.join("memory"), "half").unwrap();
    // Renamed, and partly removed.
    let dead = snapshots.join(".dead-snap-00000000000000000002");
    fs::create_dir(&dead).unwrap();
    fs::write(dead.join("manifest.json"), "{}").unwrap();
    // No crash leaves this, but others might.
    let bare = snapshots.join("snap-00000000000000000003");
    fs::create_dir(&bare).unwrap();
    fs::write(bare.join("memory"), "bare").unwrap();
    // Not ours.
    fs::create_dir(snapshots.join("lost+found")).unwrap();

    let again = Store::open(&snapshots, Limits::NONE).unwrap();
    let listed = again.list(&machine());
    assert_eq!(
        listed.into_iter().map(|info| info.id).collect::<Vec<_>>(),
        std::slice::from_ref(&kept.manifest.id)
    );
    let mut left = names(&snapshots);
    left.sort();
    let mut expected =
        vec!["lost+found".to_owned(), "snap-00000000000000000003".to_owned(), kept.manifest.id.to_string()];
    expected.sort();
    assert_eq!(left, expected);
}
