//! Looking at snapshots, deleting and cleaning up, without a server.

use std::fs;
use std::path::Path;

use manta_host::lock::WorkDirLock;

use crate::snapshots::files::bytes_on_disk;
use crate::snapshots::testing::{make, store};
use crate::snapshots::{Limits, OfflineError, SnapshotDir, Store};

#[test]
fn the_list_needs_no_lock_and_judges_files_only() {
    let (dir, store) = store();
    let _server = WorkDirLock::acquire(dir.path()).unwrap();
    let good = make(&store, Some("good"));
    let cut = make(&store, None);
    fs::write(cut.files().memory, "cut").unwrap();
    let garbage = make(&store, None);
    fs::write(garbage.dir.join("manifest.json"), "garbage").unwrap();
    let _underway = store.begin(None, 1).unwrap();

    let list = SnapshotDir::open(dir.path()).unwrap().list().unwrap();
    assert_eq!(list.len(), 3);
    let of = |id: &manta_api::SnapshotId| list.iter().find(|saved| saved.id == *id).unwrap();
    let saved = of(&good.manifest.id);
    assert_eq!((saved.name.as_deref(), &saved.problem), (Some("good"), &None));
    assert_eq!(saved.machine.as_ref().unwrap().vmm, "qemu");
    assert_eq!(saved.disk_bytes, bytes_on_disk(&good.dir));
    assert!(saved.disk_bytes.memory >= 64 * 1024, "{saved:?}");
    let problem = |id| of(id).problem.clone().unwrap();
    assert_eq!(problem(&cut.manifest.id), "its file memory has 3 bytes instead of 65536");
    assert!(problem(&garbage.manifest.id).contains("is not a manifest"));
    assert_eq!(of(&garbage.manifest.id).machine, None);
}

#[test]
fn a_work_directory_without_snapshots_has_none_and_one_that_is_not_there_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(SnapshotDir::open(dir.path()).unwrap().list().unwrap(), []);
    let nowhere = SnapshotDir::open(&dir.path().join("nowhere"));
    assert!(matches!(nowhere, Err(OfflineError::NoWorkDir(_))));
}

#[test]
fn nothing_is_changed_under_a_running_server() {
    let (dir, _store) = store();
    let server = WorkDirLock::acquire(dir.path()).unwrap();
    let error = SnapshotDir::open(dir.path()).unwrap().lock().unwrap_err();
    assert!(matches!(error, OfflineError::InUse(_)), "{error}");
    drop(server);
    let locked = SnapshotDir::open(dir.path()).unwrap().lock().unwrap();
    assert!(WorkDirLock::acquire(dir.path()).is_err(), "a server that starts now would not see the change");
    drop(locked);
}

#[test]
fn a_snapshot_is_deleted_by_its_id() {
    let (dir, store) = store();
    let made = make(&store, None);
    drop(store);
    let locked = SnapshotDir::open(dir.path()).unwrap().lock().unwrap();
    locked.delete(&made.manifest.id).unwrap();
    assert!(!made.dir.exists());
    let error = locked.delete(&made.manifest.id).unwrap_err();
    assert!(error.to_string().contains("there is no snapshot"), "{error}");
}

#[test]
fn a_clean_up_removes_what_can_never_be_restored_and_nothing_else() {
    let (dir, store) = store();
    let good = make(&store, None).dir.clone();
    let [cut, missing, garbage, newer] = [0; 4].map(|_| make(&store, None).dir.clone());
    fs::write(cut.join("memory"), "cut").unwrap();
    fs::remove_file(missing.join("state")).unwrap();
    fs::write(garbage.join("manifest.json"), "garbage").unwrap();
    fs::write(newer.join("manifest.json"), "{\"format\": 2}").unwrap();
    drop(store);
    let snapshots = dir.path().join("snapshots");
    let golden = dir.path().join("golden");
    let template = make(&Store::open(&golden, Limits::NONE).unwrap(), None).dir.clone();
    let made = |path: std::path::PathBuf| {
        fs::create_dir(&path).unwrap();
        fs::write(path.join("memory"), vec![1; 8192]).unwrap();
        path
    };
    let leftovers = [
        made(snapshots.join(".new-snap-00000000000000000001")),
        made(snapshots.join(".dead-snap-00000000000000000002")),
        made(snapshots.join("snap-00000000000000000003")),
        made(golden.join(".new-snap-00000000000000000004")),
    ];
    let other = made(snapshots.join("other"));

    let mut expected = vec![cut, missing, garbage];
    expected.extend(leftovers);
    expected.sort();
    let locked = SnapshotDir::open(dir.path()).unwrap().lock().unwrap();
    let dry = locked.gc(true).unwrap();
    assert!(expected.iter().all(|path| path.exists()), "a dry run removes nothing");
    let report = locked.gc(false).unwrap();
    assert_eq!(report, dry);
    assert!(report.problems.is_empty());
    assert!(report.removed.iter().map(|gone| &gone.path).eq(&expected), "{report:?}");
    assert!(report.removed.iter().all(|gone| gone.bytes >= 8192), "{report:?}");
    assert!(expected.iter().all(|path| !path.exists()));
    let kept: [&Path; 4] = [&good, &newer, &template, &other];
    assert!(kept.iter().all(|path| path.exists()));
    assert_eq!(locked.gc(false).unwrap(), crate::snapshots::GcReport::default());
}
