//! How much is kept, and names.

use std::fs::{self, File};
use std::path::Path;
use std::sync::Barrier;
use std::thread;

use rustix::fs::{FallocateFlags, fallocate};

use crate::snapshots::testing::{commit, fill, make, store};
use crate::snapshots::{Limits, Store, StoreError};

fn limited(limits: Limits) -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), limits).unwrap();
    (dir, store)
}

#[test]
fn names_are_unique_among_snapshots_and_drafts() {
    let (_dir, store) = store();
    let name = || Some("ready".parse().unwrap());
    let draft = store.begin(name(), 1).unwrap();
    assert!(matches!(store.begin(name(), 1), Err(StoreError::NameTaken(_))));
    fill(&draft);
    let made = commit(draft).unwrap();
    assert!(matches!(store.begin(name(), 1), Err(StoreError::NameTaken(_))));
    make(&store, Some("Ready"));
    make(&store, None);
    make(&store, None);
    store.delete(&made.manifest.id).unwrap();
    make(&store, Some("ready"));
}

#[test]
fn no_more_snapshots_than_allowed_however_many_begin_at_once() {
    const THREADS: usize = 16;
    let (_dir, store) = limited(Limits { max_snapshots: 3, ..Limits::NONE });
    let (begin, began) = (Barrier::new(THREADS), Barrier::new(THREADS));
    let made = thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|_| {
                scope.spawn(|| {
                    begin.wait();
                    let draft = store.begin(None, 1);
                    // None is given back before all have tried.
                    began.wait();
                    match draft {
                        Ok(draft) => {
                            fill(&draft);
                            Some(commit(draft).unwrap())
                        }
                        Err(StoreError::TooMany { limit: 3 }) => None,
                        Err(error) => panic!("{error}"),
                    }
                })
            })
            .collect();
        threads.into_iter().filter_map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
    });
    assert_eq!(made.len(), 3);
    assert!(matches!(store.begin(None, 1), Err(StoreError::TooMany { .. })));
    store.delete(&made[0].manifest.id).unwrap();
    make(&store, None);
}

#[test]
fn no_more_bytes_than_allowed_with_what_is_promised_to_drafts() {
    let (dir, store) = limited(Limits { max_bytes: 10 << 20, ..Limits::NONE });
    let first = store.begin(None, 6 << 20).unwrap();
    let error = store.begin(None, 6 << 20).unwrap_err();
    assert!(matches!(error, StoreError::TooLarge { used, .. } if used == 6 << 20), "{error}");
    let second = store.begin(None, 4 << 20).unwrap();
    drop(second);
    // Of the 6 MiB it was promised, the snapshot takes some 100 KiB.
    fill(&first);
    let made = commit(first).unwrap();
    drop(store.begin(None, 9 << 20).unwrap());
    let used = |store: &Store| match store.begin(None, 10 << 20) {
        Err(StoreError::TooLarge { used, .. }) => used,
        other => panic!("{other:?}"),
    };
    let one = used(&store);
    assert!((96 * 1024..2 << 20).contains(&one), "{one}");
    make(&store, None);
    let again = Store::open(dir.path(), Limits { max_bytes: 10 << 20, ..Limits::NONE }).unwrap();
    assert_eq!(used(&again), 2 * one, "what was there before the start counts");
    // Nor is a snapshot for free that cannot be read.
    std::fs::write(made.dir.join("manifest.json"), "garbage").unwrap();
    let again = Store::open(dir.path(), Limits { max_bytes: 10 << 20, ..Limits::NONE }).unwrap();
    assert!(used(&again) >= 2 * one);
}

#[test]
fn a_snapshot_that_the_file_system_has_no_room_for_is_not_begun() {
    let (dir, store) = limited(Limits::NONE);
    let found = rustix::fs::statvfs(dir.path()).unwrap();
    let free = found.f_bavail * found.f_frsize;
    // Room for it, but not for the reserve: half of the least reserve is missing.
    let error = store.begin(None, free.saturating_sub(128 << 20)).unwrap_err();
    assert!(matches!(error, StoreError::NoSpace { .. }), "{error}");
    assert!(matches!(store.begin(None, u64::MAX), Err(StoreError::NoSpace { .. })));
    // What is promised counts: two of these do not fit, one does.
    if free > 4 << 30 {
        let _one = store.begin(None, free / 3 * 2).unwrap();
        assert!(matches!(store.begin(None, free / 3 * 2), Err(StoreError::NoSpace { .. })));
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "nothing is left of what was refused");
}

/// Makes a file that takes `bytes` on the disk.
fn allocate(path: &Path, bytes: u64) {
    let file = File::create(path).unwrap();
    fallocate(file, FallocateFlags::empty(), 0, bytes).unwrap();
}

#[test]
fn a_draft_that_outgrew_its_room_is_no_snapshot_unless_there_is_more() {
    let (dir, store) = limited(Limits { max_bytes: 10 << 20, ..Limits::NONE });
    let other = store.begin(None, 6 << 20).unwrap();
    let grown = || {
        let draft = store.begin(None, 2 << 20).unwrap();
        fill(&draft);
        allocate(&draft.disk(), 5 << 20);
        draft
    };
    let error = commit(grown()).unwrap_err();
    let StoreError::TooLarge { used, needed, .. } = error else { panic!("{error}") };
    assert_eq!(used, 6 << 20, "the others");
    assert!(needed >= 5 << 20, "{needed}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "the other draft is all there is");

    drop(other);
    let made = commit(grown()).unwrap();
    let error = commit(grown()).unwrap_err();
    assert!(matches!(error, StoreError::TooLarge { used, .. } if used >= 5 << 20), "{error}");
    store.delete(&made.manifest.id).unwrap();
    // Holes take nothing.
    let sparse = store.begin(None, 2 << 20).unwrap();
    fill(&sparse);
    File::options().write(true).open(sparse.disk()).unwrap().set_len(1 << 30).unwrap();
    commit(sparse).unwrap();
}

#[test]
fn what_a_draft_has_written_counts_once_and_the_reserve_is_left() {
    let (dir, store) = limited(Limits::NONE);
    let room = || match store.begin(None, u64::MAX) {
        Err(StoreError::NoSpace { free, reserve, .. }) => free.saturating_sub(reserve),
        other => panic!("{other:?}"),
    };
    if room() < 4 << 30 {
        eprintln!("skipped: less than 4 GiB are free in {}", dir.path().display());
        return;
    }
    // Others use the disk at the same time: 128 MiB and more are left for them.
    let draft = store.begin(None, 256 << 20).unwrap();
    fill(&draft);
    allocate(&draft.files().memory, 256 << 20);
    let _other = store.begin(None, room() - (128 << 20)).unwrap();
    // What it takes now was the other's, whose promise holds.
    allocate(&draft.disk(), 1 << 30);
    let error = commit(draft).unwrap_err();
    assert!(matches!(error, StoreError::NoSpace { .. }), "{error}");
}
