//! The journal: what a successor finds in it, whenever its writer was killed, and what happens while it cannot be
//! written.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use manta_api::{Event, EventKind, SandboxId};
use proptest::prelude::*;
use tempfile::TempDir;

use super::archive::{OF_ONE, Wanted};
use super::db::{Change, Db, ENDINGS, EVENTS, FILE, Found, UNWRITTEN};
use super::error::JournalError;
use super::*;
use crate::ending::Ending;
use crate::snapshots::stored;

fn id(n: u8) -> SandboxId {
    SandboxId::from_random([n; 10])
}

fn row(n: u8, step: Step) -> Row {
    Row {
        id: id(n),
        step,
        boot_id: "a boot".to_owned(),
        slot: u16::from(n),
        uid: 1000,
        snapshot_id: None,
        vsock_port: 5252,
        disk: Some(DiskId { dev: 1, ino: u64::MAX }),
        process: Some(VmmProcess { pid: 7, start_ticks: 9 }),
        info: None,
        expires_unix_ms: Some(5),
        ending: None,
        machine: Some(Arc::new(stored(1).manifest.machine.clone())),
    }
}

fn event(seq: u64, n: u8) -> Arc<Event> {
    Arc::new(Event { seq, unix_ms: 1, ..Event::new(EventKind::Exec, Some(id(n))) })
}

fn open(dir: &Path) -> Result<(Db, Found), JournalError> {
    Db::open(dir, || false)
}

fn reopened(dir: &TempDir) -> Found {
    open(dir.path()).unwrap().1
}

#[tokio::test]
async fn what_was_written_is_found_by_the_next_server() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _, found) = Journal::open(dir.path(), || false).unwrap();
    assert_eq!((found.rows.len(), found.next_seq), (0, 1));
    let mut record = Record::begin(&journal, row(1, Step::Making)).await.unwrap();
    record.waits();
    let gone = Record::begin(&journal, row(2, Step::Making)).await.unwrap();
    let mut ended = Record::begin(&journal, row(3, Step::Making)).await.unwrap();
    drop(gone.forget());
    drop(ended.ends(Ending::Expired));
    drop(ended.forget());
    written(journal.events((1..=3).map(|seq| event(seq, 1)).collect())).await.unwrap();
    journal.close();
    let found = reopened(&dir);
    assert_eq!(found.rows, [row(1, Step::Waiting)]);
    assert_eq!(found.endings, [(id(3), Ending::Expired)]);
    assert_eq!(found.next_seq, 4, "it ended well");
    assert!(written(journal.remove(id(1), None)).await.is_err(), "it is closed");
}

#[test]
fn numbers_of_events_never_come_twice() {
    let dir = tempfile::tempdir().unwrap();
    let (mut db, _) = open(dir.path()).unwrap();
    db.commit([Change::Events(vec![event(1, 1), event(2, 1)])].iter()).unwrap();
    drop(db); // as when it is killed: nothing says that it ended well
    assert_eq!(reopened(&dir).next_seq, 2 + UNWRITTEN + 1);
    assert_eq!(reopened(&dir).next_seq, 2 + UNWRITTEN + 1, "a server that told nothing lost nothing");
}

#[test]
fn endings_and_events_are_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let (mut db, _) = open(dir.path()).unwrap();
    let end = |n: u64| {
        let mut bytes = [0; 10];
        bytes[..8].copy_from_slice(&n.to_le_bytes());
        Change::Remove(SandboxId::from_random(bytes), Some(Ending::Requested))
    };
    let ends: Vec<_> = (0..ENDINGS + 5).map(end).collect();
    db.commit(ends.iter()).unwrap();
    for from in (1..=EVENTS + 3000).step_by(1000) {
        db.commit([Change::Events((from..from + 1000).map(|seq| event(seq, 1)).collect())].iter()).unwrap();
    }
    let of_events = |sql| db.connection().query_row(sql, [], |row| row.get::<_, u64>(0)).unwrap();
    assert_eq!(of_events("SELECT count(*) FROM events"), EVENTS);
    assert_eq!(of_events("SELECT max(seq) FROM events"), EVENTS + 3000);
    drop(db);
    let found = reopened(&dir);
    assert_eq!(found.endings.len() as u64, ENDINGS);
    let Change::Remove(oldest, _) = end(5) else { unreachable!() };
    assert_eq!(found.endings[0].0, oldest);
}

#[test]
fn one_of_a_later_version_is_refused_and_one_without_sense_is_put_aside_if_nobody_needs_it() {
    let dir = tempfile::tempdir().unwrap();
    let (mut db, _) = open(dir.path()).unwrap();
    db.commit([Change::Put(Box::new(row(1, Step::Handed)))].iter()).unwrap();
    db.connection().pragma_update(None, "user_version", 3).unwrap();
    drop(db);
    let error = open(dir.path()).unwrap_err();
    assert!(matches!(error, JournalError::Newer { found: 3, known: 2, .. }), "{error}");
    let path = dir.path().join(FILE);
    rusqlite::Connection::open(&path).unwrap().pragma_update(None, "user_version", 2).unwrap();
    assert_eq!(reopened(&dir).rows.len(), 1);

    for spoil in ["UPDATE sandboxes SET entry = 'x'", "DROP TABLE endings", "DELETE FROM server"] {
        rusqlite::Connection::open(&path).unwrap().execute_batch(spoil).unwrap();
        assert!(matches!(open(dir.path()), Err(JournalError::Corrupt { .. })), "{spoil}");
        let (_, found) = Db::open(dir.path(), || true).unwrap();
        assert!(found.rows.is_empty() && found.put_aside.is_some(), "{spoil}");
        assert_eq!(reopened(&dir).put_aside, None);
    }
    fs::write(&path, "no journal at all, and long enough to be looked at".repeat(9)).unwrap();
    assert!(matches!(open(dir.path()), Err(JournalError::Corrupt { .. })));
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    assert!(matches!(open(dir.path()), Err(JournalError::Open { .. })));
}

#[test]
fn one_of_version_1_becomes_as_one_of_today_and_loses_nothing() {
    let (old, new) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let schema = |dir: &TempDir| {
        let journal = rusqlite::Connection::open(dir.path().join(FILE)).unwrap();
        let mut all = journal.prepare("SELECT sql FROM sqlite_schema ORDER BY name").unwrap();
        let all = all.query_map([], |row| row.get::<_, Option<String>>(0)).unwrap();
        all.collect::<Result<Vec<_>, _>>().unwrap()
    };
    let (mut db, _) = open(old.path()).unwrap();
    db.commit([Change::Put(Box::new(row(1, Step::Handed))), Change::Events(vec![event(1, 1)])].iter())
        .unwrap();
    // Version 2 replaced the index, and nothing else.
    let back = "DROP INDEX events_of; PRAGMA user_version = 1;
        CREATE INDEX events_of ON events (sandbox_id, seq) WHERE sandbox_id IS NOT NULL;";
    db.connection().execute_batch(back).unwrap();
    drop(db);
    drop(open(new.path()).unwrap());
    assert_ne!(schema(&old), schema(&new));
    let found = reopened(&old);
    assert_eq!((found.rows.len(), found.next_seq > 1), (1, true));
    assert_eq!(schema(&old), schema(&new));
}

#[tokio::test]
async fn what_cannot_be_written_is_refused_or_made_up_for() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _, _) = Journal::open(dir.path(), || false).unwrap();
    let mut kept = Record::begin(&journal, row(1, Step::Handed)).await.unwrap();
    let gone = Record::begin(&journal, row(2, Step::Handed)).await.unwrap();
    let other = rusqlite::Connection::open(dir.path().join(FILE)).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    assert!(Record::begin(&journal, row(3, Step::Making)).await.is_err());
    assert!(journal.ensure_writable().is_err());
    assert!(written(kept.extend(stored_info(), Some(77))).await.is_err());
    assert!(written(gone.forget()).await.is_err());
    assert!(written(journal.events(vec![event(1, 1)])).await.is_err());
    other.execute_batch("ROLLBACK").unwrap();
    // Whoever begins something next finds that it can be written.
    let fourth = Record::begin(&journal, row(4, Step::Making)).await;
    assert!(fourth.is_ok() && journal.ensure_writable().is_ok());
    journal.close();
    let mut found: Vec<_> =
        reopened(&dir).rows.iter().map(|row| (row.id.clone(), row.expires_unix_ms)).collect();
    found.sort();
    assert_eq!(found, [(id(1), Some(77)), (id(4), Some(5))]);
}

fn stored_info() -> manta_api::SandboxInfo {
    manta_api::SandboxInfo {
        id: id(1),
        owner: None,
        state: manta_api::SandboxState::Running,
        reason: None,
        vmm: "qemu".to_owned(),
        snapshot_id: None,
        created_unix_s: 1,
        expires_unix_s: None,
        pid: None,
        guest_address: [172, 16, 0, 2].into(),
        host_address: [198, 18, 0, 2].into(),
    }
}

#[tokio::test]
async fn events_are_read_and_what_is_missing_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, archive, _) = Journal::open(dir.path(), || false).unwrap();
    let events = (11..=20).map(|seq| event(seq, u8::try_from(seq % 2).unwrap())).collect();
    written(journal.events(events)).await.unwrap();
    let read = async |from, below, of: Option<u8>, exactly, most| {
        let page = archive.read(Wanted { from, below, of: of.map(id), exactly, most }).await;
        let events: Vec<_> = page.events.iter().map(|event| (event.seq, event.lost)).collect();
        (events, page.next)
    };
    let plain = |numbers: &[u64]| numbers.iter().map(|seq| (*seq, None)).collect::<Vec<_>>();
    assert_eq!(read(11, 14, None, true, 9).await, (plain(&[11, 12, 13]), 14));
    assert_eq!(read(11, 21, None, true, 2).await, (plain(&[11, 12]), 13));
    assert_eq!(read(11, 16, Some(1), true, 9).await, (plain(&[11, 13, 15]), 16));
    assert_eq!(read(1, 12, None, false, 9).await, (plain(&[11]), 12));
    assert_eq!(read(1, 12, None, true, 9).await, (vec![(10, Some(10)), (11, None)], 12));
    assert_eq!(read(20, 30, None, true, 9).await, (vec![(20, None), (29, Some(9))], 30));
    assert_eq!(read(20, 30, Some(1), true, 9).await, (vec![(29, Some(9))], 30));
    assert_eq!(read(3, 9, None, true, 9).await, (vec![(8, Some(6))], 9));
}

#[test]
fn events_of_one_sandbox_are_found_without_looking_at_others() {
    let dir = tempfile::tempdir().unwrap();
    let (db, _) = open(dir.path()).unwrap();
    let mut plan = db.connection().prepare(&format!("EXPLAIN QUERY PLAN {OF_ONE}")).unwrap();
    let steps = plan.query_map(rusqlite::params![1, 2, 3, "x"], |row| row.get::<_, String>(3)).unwrap();
    let steps: Vec<_> = steps.map(Result::unwrap).filter(|step| step.contains("events")).collect();
    assert_eq!(steps.len(), 2, "{steps:?}");
    let found = |step: &String| step.contains("INDEX events_of (sandbox_id=? AND seq>? AND seq<?)");
    assert!(steps.iter().all(found), "{steps:?}");
}

#[tokio::test]
async fn after_an_orderly_end_all_is_in_the_one_file() {
    let [dir, copy] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let (journal, archive, _) = Journal::open(dir.path(), || false).unwrap();
    written(journal.events((1..=50).map(|seq| event(seq, 1)).collect())).await.unwrap();
    journal.close();
    fs::copy(dir.path().join(FILE), copy.path().join(FILE)).unwrap();
    let log = fs::metadata(dir.path().join(format!("{FILE}-wal"))).map_or(0, |log| log.len());
    assert_eq!((log, reopened(&copy).next_seq), (0, 51));
    drop(archive);
}

#[test]
fn a_damaged_page_of_events_is_noticed_at_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(FILE);
    let (mut db, _) = open(dir.path()).unwrap();
    for from in (1..=EVENTS).step_by(1000) {
        db.commit([Change::Events((from..from + 1000).map(|seq| event(seq, 1)).collect())].iter()).unwrap();
    }
    db.settle();
    drop(db);
    let began = std::time::Instant::now();
    assert_eq!(Db::open(dir.path(), || true).unwrap().1.put_aside, None, "whole");
    println!("opened and looked through within {:?}", began.elapsed());

    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / 2 / 4096 * 4096;
    bytes[middle..middle + 4096].fill(0);
    fs::write(&path, bytes).unwrap();
    assert_eq!(Db::open(dir.path(), || false).unwrap().1.put_aside, None, "nobody looked");
    assert!(Db::open(dir.path(), || true).unwrap().1.put_aside.is_some());
    assert_eq!(Db::open(dir.path(), || true).unwrap().1.put_aside, None);
}

/// What a journal says of sandboxes and endings.
type State = (BTreeMap<SandboxId, Step>, BTreeMap<SandboxId, Ending>);

fn state(found: &Found) -> State {
    (
        found.rows.iter().map(|row| (row.id.clone(), row.step)).collect(),
        found.endings.iter().cloned().collect(),
    )
}

fn model(state: &mut State, change: &Change) {
    match change {
        Change::Put(row) => drop(state.0.insert(row.id.clone(), row.step)),
        Change::Remove(id, ending) => {
            state.0.remove(id);
            state.1.extend(ending.iter().map(|ending| (id.clone(), ending.clone())));
        }
        Change::Events(_) | Change::EndWell => {}
    }
}

fn change() -> impl Strategy<Value = Change> {
    let step = prop_oneof![Just(Step::Making), Just(Step::Waiting), Just(Step::Handed), Just(Step::Ending)];
    prop_oneof![
        (0..6u8, step).prop_map(|(n, step)| Change::Put(Box::new(row(n, step)))),
        (0..6u8, any::<bool>())
            .prop_map(|(n, told)| Change::Remove(id(n), told.then_some(Ending::Requested))),
        (1..500u64).prop_map(|seq| Change::Events(vec![event(seq, 1)])),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Killed anywhere: the files are as they were at that moment, the last write perhaps not to its end.
    #[test]
    fn a_writer_killed_anywhere_leaves_what_was_true_after_one_of_its_commits(
        commits in prop::collection::vec(prop::collection::vec(change(), 1..4), 1..8),
        cut in 0.0..1.0f64,
        within in 0..4usize,
    ) {
        let dir = tempfile::tempdir().unwrap();
        let (mut db, _) = open(dir.path()).unwrap();
        let mut states = vec![State::default()];
        let (last, whole) = commits.split_last().unwrap();
        for changes in whole {
            db.commit(changes.iter()).unwrap();
            let mut next = states.last().unwrap().clone();
            changes.iter().for_each(|change| model(&mut next, change));
            states.push(next);
        }
        let copy = |cut: Option<f64>| {
            let to = tempfile::tempdir().unwrap();
            fs::copy(dir.path().join(FILE), to.path().join(FILE)).unwrap();
            let mut log = fs::read(dir.path().join(format!("{FILE}-wal"))).unwrap();
            if let Some(cut) = cut {
                log.truncate((log.len() as f64 * cut) as usize);
            }
            fs::write(to.path().join(format!("{FILE}-wal")), log).unwrap();
            to
        };
        // Between two statements of a commit.
        db.begin_and_apply(last.iter().take(within)).unwrap();
        prop_assert_eq!(&state(&reopened(&copy(None))), states.last().unwrap());
        // In the middle of a write.
        let torn = copy(Some(cut));
        if let Ok((_, found)) = open(torn.path()) {
            prop_assert!(states.contains(&state(&found)));
        } else {
            prop_assert!(false, "it cannot be read");
        }
    }
}
