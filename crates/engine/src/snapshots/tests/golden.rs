//! The one golden snapshot.

use std::fs;

use crate::snapshots::machine::Machine;
use crate::snapshots::testing::{fill, machine, make, sandbox, store};

#[test]
fn the_golden_snapshot_is_the_newest_that_fits_and_the_others_go() {
    let (dir, store) = store();
    let old = make(&store, None);
    let broken = make(&store, None);
    fs::remove_file(broken.files().memory).unwrap();
    let foreign = {
        let draft = store.begin(None, 1).unwrap();
        fill(&draft);
        let other = Machine { agent: "another".to_owned(), ..machine() };
        draft.commit(sandbox(), u64::MAX, other, std::time::Duration::ZERO).unwrap()
    };
    let newest = {
        let draft = store.begin(None, 1).unwrap();
        fill(&draft);
        let created = old.manifest.created_unix_ms + 1;
        draft.commit(sandbox(), created, machine(), std::time::Duration::ZERO).unwrap()
    };
    let bare = dir.path().join("snapshots/snap-00000000000000000001");
    fs::create_dir(&bare).unwrap();
    let underway = store.begin(None, 1).unwrap();

    let chosen = store.golden(&machine()).unwrap().unwrap();
    assert_eq!(chosen.manifest, newest.manifest);
    chosen.check().unwrap();
    for gone in [&old.dir, &broken.dir, &foreign.dir, &bare] {
        assert!(!gone.exists(), "{}", gone.display());
    }
    fill(&underway);
    assert_eq!(store.list(&machine()).len(), 1);
    assert_eq!(store.golden(&machine()).unwrap().unwrap().manifest, newest.manifest);
}

#[test]
fn a_new_agent_needs_a_new_golden_snapshot() {
    let (_dir, store) = store();
    make(&store, None);
    let current = Machine { agent: "another".to_owned(), ..machine() };
    assert!(store.golden(&current).unwrap().is_none());
    assert!(store.list(&machine()).is_empty());
    assert!(store.golden(&machine()).unwrap().is_none());
}
