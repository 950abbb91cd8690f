//! All snapshots of one directory, and what may be added to them.

use std::collections::HashMap;
use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use manta_api::{SnapshotId, SnapshotInfo};
use manta_host::random::random_bytes;
use manta_host::remove_all;
use tracing::{info, warn};

use super::draft::Draft;
use super::error::StoreError;
use super::files::{bury, bytes_on_disk, dir_bytes, new_dir, sync_dir};
use super::machine::{Compare, Machine};
use super::name::SnapshotName;
use super::scan::{Found, scan};
use super::stored::{Stored, Unreadable};
use crate::failpoint::{Failpoint, reached};

/// See [`Limits::reserve_bytes`]; where nothing else is set.
const RESERVE_BYTES: u64 = 256 << 20;

/// How much may be kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Most snapshots.
    pub(crate) max_snapshots: usize,
    /// Most bytes that all of them take on the disk. Blocks that files share count in each.
    pub(crate) max_bytes: u64,
    /// Bytes that stay free on the file system, or one hundredth of it if that is more.
    pub(crate) reserve_bytes: u64,
}

impl Limits {
    /// Whatever the file system holds.
    pub(crate) const NONE: Self =
        Self { max_snapshots: usize::MAX, max_bytes: u64::MAX, reserve_bytes: RESERVE_BYTES };

    /// That `needed` bytes may be kept beside `used`.
    fn check_bytes(self, used: u64, needed: u64) -> Result<(), StoreError> {
        if used.saturating_add(needed) > self.max_bytes {
            return Err(StoreError::TooLarge { limit: self.max_bytes, used, needed });
        }
        Ok(())
    }
}

/// The snapshots in one directory. Its only user: clones share what they know. All that it does blocks.
#[derive(Debug, Clone)]
pub(crate) struct Store(Arc<Inner>);

#[derive(Debug)]
pub(super) struct Inner {
    pub(super) dir: PathBuf,
    limits: Limits,
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    entries: HashMap<SnapshotId, (Entry, u64)>,
    drafts: HashMap<SnapshotId, Reservation>,
    /// Bytes in what could not be removed; the next start tries again.
    leftover_bytes: u64,
}

/// A snapshot; beside it in the table, what it takes on the disk, bytes.
#[derive(Debug, Clone)]
enum Entry {
    Stored(Arc<Stored>),
    Unreadable(Arc<Unreadable>),
}

#[derive(Debug)]
struct Reservation {
    name: Option<SnapshotName>,
    /// What it may need; what it takes when all is written.
    bytes: u64,
    /// Where it is being written; none when all is.
    dir: Option<PathBuf>,
}

impl Store {
    /// Opens `dir`, or makes it: removes what a crash left there and reads what is complete. A snapshot whose
    /// manifest is of no use is kept, and listed with the reason.
    ///
    /// # Errors
    /// `Io` when the directory cannot be made, read, or closed to others.
    pub(crate) fn open(dir: &Path, limits: Limits) -> Result<Self, StoreError> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(StoreError::io("make directory", dir))?;
        fs::set_permissions(dir, Permissions::from_mode(0o700))
            .map_err(StoreError::io("close to others the directory", dir))?;
        let mut held = Held::default();
        for found in scan(dir).map_err(StoreError::io("read directory", dir))? {
            match found {
                Found::Leftover(path) => match remove_all(&path) {
                    Ok(()) => info!(dir = %path.display(), "removed what is left of a snapshot"),
                    Err(error) => {
                        warn!(dir = %path.display(), %error, "a leftover stays");
                        held.leftover_bytes += dir_bytes(&path);
                    }
                },
                Found::Bare(path) => {
                    warn!(dir = %path.display(), "no manifest; `manta snapshot gc` removes it");
                }
                Found::Unreadable(unreadable) => {
                    warn!(snapshot_id = %unreadable.id, reason = unreadable.reason(), "cannot be restored");
                    let bytes = dir_bytes(&unreadable.dir);
                    let id = unreadable.id.clone();
                    held.entries.insert(id, (Entry::Unreadable(Arc::new(unreadable)), bytes));
                }
                Found::Snapshot(stored) => held.insert(stored),
            }
        }
        Ok(Self(Arc::new(Inner { dir: dir.to_owned(), limits, held: Mutex::new(held) })))
    }

    /// Reserves a place, the name and `needed_bytes` of room for a new snapshot, until the draft is committed
    /// or dropped.
    ///
    /// # Errors
    /// `NameTaken`, `TooMany`, `TooLarge`, `NoSpace`; `Io` when its directory cannot be made.
    pub(crate) fn begin(&self, name: Option<SnapshotName>, needed_bytes: u64) -> Result<Draft, StoreError> {
        let inner = &self.0;
        let random = random_bytes().map_err(StoreError::io("make up an id in", &inner.dir))?;
        let id = SnapshotId::from_random(random);
        {
            let mut held = inner.lock();
            held.admits(name.as_ref(), needed_bytes, inner.limits)?;
            check_space(&inner.dir, held.unwritten().saturating_add(needed_bytes), inner.limits)?;
            let dir = Some(new_dir(&inner.dir, &id));
            held.drafts.insert(id.clone(), Reservation { name: name.clone(), bytes: needed_bytes, dir });
        }
        Draft::create(inner.clone(), id, name)
    }

    /// All snapshots, oldest first, and which of them can be restored on `current` by what is cheap to know:
    /// files are looked at, not read.
    pub(crate) fn list(&self, current: &Machine) -> Vec<SnapshotInfo> {
        let mut infos: Vec<_> = self
            .entries()
            .iter()
            .map(|entry| match entry {
                Entry::Stored(stored) => stored.info(current),
                Entry::Unreadable(unreadable) => unreadable.info(),
            })
            .collect();
        infos.sort_by(|a, b| (a.created_unix_ms, &a.id).cmp(&(b.created_unix_ms, &b.id)));
        infos
    }

    /// A snapshot that can be restored on `current`: nothing differs, and all was checked but the content of
    /// memory and disk. When it is deleted before its files are opened, that fails; ask again, to be told
    /// `NotFound`.
    ///
    /// # Errors
    /// `NotFound`, `Incompatible`, `Damaged`.
    pub(crate) fn get(&self, id: &SnapshotId, current: &Machine) -> Result<Arc<Stored>, StoreError> {
        let entry = self.0.lock().entries.get(id).map(|(entry, _)| entry.clone());
        match entry {
            None => Err(StoreError::NotFound(id.clone())),
            Some(Entry::Unreadable(unreadable)) => Err(unreadable.error()),
            Some(Entry::Stored(stored)) => {
                stored.check_machine(current, Compare::User)?;
                stored.check()?;
                Ok(stored)
            }
        }
    }

    /// Removes a snapshot, whatever state it is in. What was restored from it runs on: it has the files open.
    ///
    /// # Errors
    /// `NotFound`; `Io` when it cannot be renamed, and then it still exists, or not be removed, and then it
    /// does not exist any more but takes room, which counts, until the next start.
    pub(crate) fn delete(&self, id: &SnapshotId) -> Result<(), StoreError> {
        let parent = &self.0.dir;
        let dir = parent.join(id.as_str());
        let dead = {
            let mut held = self.0.lock();
            if !held.entries.contains_key(id) {
                return Err(StoreError::NotFound(id.clone()));
            }
            let buried = match bury(parent, &dir, id) {
                // Removed behind our back.
                Err(error) if error.kind() == io::ErrorKind::NotFound => None,
                buried => Some(buried.map_err(StoreError::io("rename", &dir))?),
            };
            held.entries.remove(id);
            buried
        };
        let Some(dead) = dead else { return Ok(()) };
        reached(Failpoint::DeleteBuried);
        let removed = sync_dir(parent)
            .map_err(StoreError::io("bring to the disk the directory", parent))
            .and_then(|()| remove_all(&dead).map_err(StoreError::io("remove", &dead)));
        if removed.is_err() {
            self.0.lock().leftover_bytes += dir_bytes(&dead);
        }
        reached(Failpoint::DeleteRemoved);
        removed
    }

    /// The one golden snapshot here that can be restored on `current`, the newest of several; all others are
    /// removed, as far as they can be.
    ///
    /// # Errors
    /// `Io` when the directory cannot be read.
    pub(crate) fn golden(&self, current: &Machine) -> Result<Option<Arc<Stored>>, StoreError> {
        let mut entries = self.entries();
        entries.sort_by_key(|entry| std::cmp::Reverse(entry.created_unix_ms()));
        let mut chosen: Option<Arc<Stored>> = None;
        for entry in entries {
            let (id, reason) = match entry {
                Entry::Unreadable(unreadable) => (unreadable.id.clone(), unreadable.reason()),
                Entry::Stored(stored) => {
                    let id = stored.manifest.id.clone();
                    let usable = stored.check_machine(current, Compare::Golden).and_then(|()| stored.check());
                    match usable {
                        Ok(()) if chosen.is_none() => {
                            chosen = Some(stored);
                            continue;
                        }
                        Ok(()) => (id, "there is a newer one".to_owned()),
                        Err(error) => (id, error.to_string()),
                    }
                }
            };
            info!(snapshot_id = %id, reason, "removing a golden snapshot");
            if let Err(error) = self.delete(&id) {
                warn!(error = crate::error::chain(&error), "a golden snapshot stays");
            }
        }
        let dir = &self.0.dir;
        for found in scan(dir).map_err(StoreError::io("read directory", dir))? {
            if let Found::Bare(path) = found
                && let Err(error) = remove_all(&path)
            {
                warn!(dir = %path.display(), %error, "what is left of a golden snapshot stays");
            }
        }
        Ok(chosen)
    }

    fn entries(&self) -> Vec<Entry> {
        self.0.lock().entries.values().map(|(entry, _)| entry.clone()).collect()
    }
}

impl Inner {
    /// All of a draft is written, and takes `bytes`: more than was reserved if its guest wrote to its disk
    /// meanwhile. From here on it counts as what it takes.
    ///
    /// # Errors
    /// `TooLarge`, `NoSpace`; `Io` when the room cannot be found out.
    pub(super) fn settle(&self, id: &SnapshotId, bytes: u64) -> Result<(), StoreError> {
        let mut held = self.lock();
        let used = held.used();
        let Some(draft) = held.drafts.get_mut(id) else { return Ok(()) };
        let others = used.saturating_sub(draft.bytes);
        (draft.bytes, draft.dir) = (bytes, None);
        self.limits.check_bytes(others, bytes)?;
        check_space(&self.dir, held.unwritten(), self.limits)
    }

    /// A draft is complete: it is a snapshot now, no reservation.
    pub(super) fn admit(&self, stored: Arc<Stored>) {
        let mut held = self.lock();
        held.drafts.remove(&stored.manifest.id);
        held.insert(stored);
    }

    /// A draft is given up; `stays` bytes of it could not be removed.
    pub(super) fn release(&self, id: &SnapshotId, stays: u64) {
        let mut held = self.lock();
        held.drafts.remove(id);
        held.leftover_bytes += stays;
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Held {
    fn insert(&mut self, stored: Arc<Stored>) {
        let bytes = bytes_on_disk(&stored.dir).total();
        self.entries.insert(stored.manifest.id.clone(), (Entry::Stored(stored), bytes));
    }

    /// Bytes that all take or are promised.
    fn used(&self) -> u64 {
        let stored = self.entries.values().map(|(_, bytes)| *bytes);
        let drafts = self.drafts.values().map(|draft| draft.bytes);
        stored.chain(drafts).fold(self.leftover_bytes, u64::saturating_add)
    }

    /// Bytes promised to drafts that they have not written yet.
    fn unwritten(&self) -> u64 {
        let of = |draft: &Reservation| {
            let dir = draft.dir.as_ref();
            dir.map_or(0, |dir| draft.bytes.saturating_sub(bytes_on_disk(dir).total()))
        };
        self.drafts.values().map(of).fold(0, u64::saturating_add)
    }

    /// Whether one more is allowed.
    fn admits(&self, name: Option<&SnapshotName>, needed: u64, limits: Limits) -> Result<(), StoreError> {
        let stored = self.entries.values().filter_map(|(entry, _)| match entry {
            Entry::Stored(stored) => stored.manifest.name.as_ref(),
            Entry::Unreadable(_) => None,
        });
        let drafts = self.drafts.values().filter_map(|draft| draft.name.as_ref());
        if let Some(name) = name
            && stored.chain(drafts).any(|taken| taken == name)
        {
            return Err(StoreError::NameTaken(name.clone()));
        }
        if self.entries.len() + self.drafts.len() >= limits.max_snapshots {
            return Err(StoreError::TooMany { limit: limits.max_snapshots });
        }
        limits.check_bytes(self.used(), needed)
    }
}

impl Entry {
    fn created_unix_ms(&self) -> u64 {
        match self {
            Self::Stored(stored) => stored.manifest.created_unix_ms,
            Self::Unreadable(unreadable) => unreadable.changed_unix_ms,
        }
    }
}

/// That `needed` bytes fit into the file system of `dir` and leave the reserve.
fn check_space(dir: &Path, needed: u64, limits: Limits) -> Result<(), StoreError> {
    let found = rustix::fs::statvfs(dir)
        .map_err(|error| StoreError::io("find out how much room there is in", dir)(error.into()))?;
    let free = found.f_bavail.saturating_mul(found.f_frsize);
    let reserve = limits.reserve_bytes.max(found.f_blocks.saturating_mul(found.f_frsize) / 100);
    if needed.saturating_add(reserve) > free {
        return Err(StoreError::NoSpace { dir: dir.to_owned(), free, needed, reserve });
    }
    Ok(())
}
