//! Files that are not as they were written.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use manta_api::SnapshotId;
use tempfile::TempDir;

use crate::snapshots::testing::{machine, make, store};
use crate::snapshots::{Limits, Store, StoreError, Stored};

/// Damages a snapshot and says which file is refused then, and how; it must still be listed, and be
/// deletable.
fn refused(damage: impl Fn(&Path), listed_as_restorable: bool) -> (&'static str, String) {
    let (_dir, store) = store();
    let made = make(&store, None);
    damage(&made.dir);
    let info = store.list(&machine()).remove(0);
    assert_eq!(info.restorable, listed_as_restorable, "{info:?}");
    assert_eq!(info.reason.is_none(), listed_as_restorable);
    assert!(made.check().is_err());
    let error = store.get(&made.manifest.id, &machine()).unwrap_err();
    store.delete(&made.manifest.id).unwrap();
    let StoreError::Damaged { damage, .. } = error else { panic!("{error}") };
    (damage.file, damage.why)
}

fn set_len(path: &Path, bytes: u64) {
    OpenOptions::new().write(true).open(path).unwrap().set_len(bytes).unwrap();
}

#[test]
fn a_file_of_another_length_is_refused() {
    let cut = refused(|dir| set_len(&dir.join("memory"), 4096), false);
    assert_eq!(cut, ("memory", "has 4096 bytes instead of 65536".to_owned()));
    assert_eq!(refused(|dir| set_len(&dir.join("disk.ext4"), 1 << 30), false).0, "disk.ext4");
    assert_eq!(refused(|dir| set_len(&dir.join("state"), 0), false).0, "state");
}

#[test]
fn a_flipped_bit_in_the_state_is_found_when_it_is_to_be_restored() {
    let flip = |dir: &Path| {
        let mut state = fs::read(dir.join("state")).unwrap();
        state[3] ^= 1;
        fs::write(dir.join("state"), state).unwrap();
    };
    let (file, why) = refused(flip, true);
    assert_eq!(file, "state");
    assert!(why.contains("SHA-256"), "{why}");
}

#[test]
fn a_missing_file_is_refused() {
    for name in ["state", "memory", "disk.ext4"] {
        let found = refused(|dir| fs::remove_file(dir.join(name)).unwrap(), false);
        assert_eq!(found, (name, "is missing".to_owned()));
    }
}

#[test]
fn what_is_no_regular_file_is_refused() {
    for name in ["state", "memory", "disk.ext4"] {
        // The content is right, but it lies where others may change it.
        let link = |dir: &Path| {
            fs::rename(dir.join(name), dir.join("elsewhere")).unwrap();
            symlink("elsewhere", dir.join(name)).unwrap();
        };
        assert_eq!(refused(link, false), (name, "is not a regular file".to_owned()));
        // Whoever opens it to read waits for a writer.
        let fifo = |dir: &Path| {
            fs::remove_file(dir.join(name)).unwrap();
            assert!(Command::new("mkfifo").arg(dir.join(name)).status().unwrap().success());
        };
        assert_eq!(refused(fifo, false), (name, "is not a regular file".to_owned()));
    }
}

fn is_of_the_manifest(error: &StoreError) -> bool {
    matches!(error, StoreError::Damaged { damage, .. } if damage.file == "manifest.json")
}

/// A store that was opened with a snapshot in it whose manifest was changed.
fn reopened(change: impl Fn(&Arc<Stored>)) -> (TempDir, Store, SnapshotId) {
    let (dir, store) = store();
    let made = make(&store, Some("ready"));
    change(&made);
    let again = Store::open(&dir.path().join("snapshots"), Limits::NONE).unwrap();
    (dir, again, made.manifest.id.clone())
}

fn rewrite(stored: &Stored, text: impl AsRef<[u8]>) {
    fs::write(stored.dir.join("manifest.json"), text).unwrap();
}

#[test]
fn a_snapshot_with_a_manifest_of_garbage_is_kept_and_listed_with_the_reason() {
    let (dir, store, id) = reopened(|stored| rewrite(stored, b"\0\xff{"));
    let info = store.list(&machine()).remove(0);
    assert_eq!((&info.id, info.restorable), (&id, false));
    let reason = info.reason.unwrap();
    assert!(reason.starts_with("its file manifest.json is not a manifest: "), "{reason}");
    assert!(info.disk_bytes.memory > 0);
    let error = store.get(&id, &machine()).unwrap_err();
    assert!(is_of_the_manifest(&error), "{error}");
    assert!(dir.path().join("snapshots").join(id.as_str()).join("memory").exists());
    store.delete(&id).unwrap();
    assert!(!dir.path().join("snapshots").join(id.as_str()).exists());
}

#[test]
fn a_manifest_of_another_format_is_no_damage() {
    let (_dir, store, id) = reopened(|stored| rewrite(stored, "{\"format\": 7, \"new\": true}"));
    let error = store.get(&id, &machine()).unwrap_err();
    let StoreError::Incompatible { differences, .. } = error else { panic!("{error}") };
    assert_eq!(differences, ["its file manifest.json has format 7, this version of manta reads format 1"]);
}

#[test]
fn the_manifest_of_another_snapshot_is_refused() {
    let (_dir, store, id) = reopened(|stored| {
        let mut other = stored.manifest.clone();
        other.id = "snap-00000000000000000001".parse().unwrap();
        rewrite(stored, serde_json::to_string(&other).unwrap());
    });
    let error = store.get(&id, &machine()).unwrap_err();
    assert!(is_of_the_manifest(&error), "{error}");
}

#[test]
fn a_link_in_place_of_a_snapshot_is_not_followed() {
    let (dir, store, id) = reopened(|stored| {
        let aside = stored.dir.with_file_name("aside");
        fs::rename(&stored.dir, &aside).unwrap();
        symlink(aside, &stored.dir).unwrap();
    });
    let error = store.get(&id, &machine()).unwrap_err();
    assert!(is_of_the_manifest(&error), "{error}");
    store.delete(&id).unwrap();
    assert!(dir.path().join("snapshots/aside/memory").exists(), "what a link points to is not ours");
}
