//! Snapshots of a work directory whose server may not be running: for `manta snapshot`.

use std::io;
use std::path::{Path, PathBuf};

use manta_api::{SandboxId, SnapshotBytes, SnapshotId};
use manta_host::lock::{LockError, WorkDirLock};
use manta_host::remove_all;
use serde::Serialize;
use thiserror::Error;

use super::files::{bytes_on_disk, dir_bytes};
use super::manifest::Manifest;
use super::scan::{Found, scan};
use super::store::{Limits, Store};
use super::stored::{Stored, Unreadable};
use crate::dirs;
use crate::error::chain;

/// The snapshots below a work directory, to be looked at. Needs no lock: what a server does meanwhile is seen
/// or not.
#[derive(Debug)]
pub struct SnapshotDir {
    work_dir: PathBuf,
}

/// The same, with no server running: to be changed.
#[derive(Debug)]
pub struct LockedSnapshotDir {
    work_dir: PathBuf,
    _lock: WorkDirLock,
}

/// A snapshot as found on the disk. Whether a server can restore it only that server knows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SavedSnapshot {
    /// The snapshot.
    pub id: SnapshotId,
    /// As given when it was made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// When it was made, milliseconds since 1970.
    pub created_unix_ms: u64,
    /// What it was made of; none when its manifest is of no use.
    #[serde(flatten)]
    pub machine: Option<SavedMachine>,
    /// What its files take on the disk, bytes. Blocks shared with other files count in each.
    pub disk_bytes: SnapshotBytes,
    /// What is wrong with its files, if that can be seen without reading them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// What a snapshot was made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SavedMachine {
    /// The sandbox.
    pub sandbox_id: SandboxId,
    /// `qemu` or `firecracker`.
    pub vmm: String,
    /// Version of the VMM.
    pub vmm_version: String,
    /// Virtual processors.
    pub vcpus: u8,
    /// Memory, MiB.
    pub mem_mib: u32,
}

/// What a clean-up removed, or would have.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct GcReport {
    /// Directories that are gone.
    pub removed: Vec<RemovedSnapshot>,
    /// What could not be removed, and why.
    pub problems: Vec<String>,
}

/// One directory of a [`GcReport`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemovedSnapshot {
    /// The directory.
    pub path: PathBuf,
    /// Why it is of no use.
    pub reason: String,
    /// What it took on the disk, bytes.
    pub bytes: u64,
}

/// Why the snapshots could not be looked at or changed.
#[derive(Debug, Error)]
pub enum OfflineError {
    /// No such directory.
    #[error("there is no work directory {0}; name it with --work-dir or MANTA_WORK_DIR")]
    NoWorkDir(PathBuf),
    /// A server would not know of the change.
    #[error("a server is using {0}; use its POST /snapshot/delete, or stop it first")]
    InUse(PathBuf),
    /// The work directory could not be locked.
    #[error("cannot lock the work directory")]
    Lock(#[source] LockError),
    /// A directory could not be read.
    #[error("cannot read directory {path}")]
    Read {
        /// The directory.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A snapshot could not be deleted.
    #[error("cannot delete {id}: {reason}")]
    Delete {
        /// Which.
        id: SnapshotId,
        /// Why not, with all causes.
        reason: String,
    },
}

impl SnapshotDir {
    /// Those of `work_dir`.
    ///
    /// # Errors
    /// `NoWorkDir`.
    pub fn open(work_dir: &Path) -> Result<Self, OfflineError> {
        if !work_dir.is_dir() {
            return Err(OfflineError::NoWorkDir(work_dir.to_owned()));
        }
        Ok(Self { work_dir: work_dir.to_owned() })
    }

    /// All snapshots, oldest first.
    ///
    /// # Errors
    /// `Read`, such as for those who are not root.
    pub fn list(&self) -> Result<Vec<SavedSnapshot>, OfflineError> {
        let found = scan_if_there(&dirs::snapshots(&self.work_dir))?;
        let mut list: Vec<_> = found
            .into_iter()
            .filter_map(|found| match found {
                Found::Snapshot(stored) => Some(saved(&stored)),
                Found::Unreadable(unreadable) => Some(unusable(&unreadable)),
                Found::Leftover(_) | Found::Bare(_) => None,
            })
            .collect();
        list.sort_by(|a, b| (a.created_unix_ms, &a.id).cmp(&(b.created_unix_ms, &b.id)));
        Ok(list)
    }

    /// Keeps servers out until the result is dropped.
    ///
    /// # Errors
    /// `InUse` when one runs; `Lock`.
    pub fn lock(self) -> Result<LockedSnapshotDir, OfflineError> {
        let lock = WorkDirLock::acquire(&self.work_dir).map_err(|error| match error {
            LockError::WorkDirInUse { dir } => OfflineError::InUse(dir),
            other => OfflineError::Lock(other),
        })?;
        Ok(LockedSnapshotDir { work_dir: self.work_dir, _lock: lock })
    }
}

impl LockedSnapshotDir {
    /// Deletes one snapshot.
    ///
    /// # Errors
    /// `Delete`.
    pub fn delete(&self, id: &SnapshotId) -> Result<(), OfflineError> {
        Store::open(&dirs::snapshots(&self.work_dir), Limits::NONE)
            .and_then(|store| store.delete(id))
            .map_err(|error| OfflineError::Delete { id: id.clone(), reason: chain(&error) })
    }

    /// Removes what can never be restored: what was half made or half removed, and what lacks a manifest or a
    /// file, or has one of the wrong length or kind; or, with `dry_run`, only says what that is. A snapshot of
    /// another version of Manta is kept, and one that could not be looked at.
    ///
    /// # Errors
    /// `Read`; nothing is removed then.
    pub fn gc(&self, dry_run: bool) -> Result<GcReport, OfflineError> {
        let mut found = scan_if_there(&dirs::snapshots(&self.work_dir))?;
        found.extend(scan_if_there(&dirs::golden(&self.work_dir))?);
        let mut report = GcReport::default();
        for (path, reason) in found.into_iter().filter_map(garbage) {
            let bytes = dir_bytes(&path);
            match if dry_run { Ok(()) } else { remove_all(&path) } {
                Ok(()) => report.removed.push(RemovedSnapshot { path, reason, bytes }),
                Err(error) => report.problems.push(format!("cannot remove {}: {error}", path.display())),
            }
        }
        report.removed.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(report)
    }
}

/// Where it is and why it is of no use; none when it may be of use.
fn garbage(found: Found) -> Option<(PathBuf, String)> {
    let (dir, damage) = match found {
        Found::Leftover(path) => return Some((path, "half made or half removed".to_owned())),
        Found::Bare(path) => return Some((path, "it has no manifest".to_owned())),
        Found::Unreadable(unreadable) => (unreadable.dir.clone(), unreadable.damage()),
        Found::Snapshot(stored) => (stored.dir.clone(), stored.check_sizes().err()?),
    };
    damage.for_good.then(|| (dir, damage.to_string()))
}

fn scan_if_there(dir: &Path) -> Result<Vec<Found>, OfflineError> {
    match scan(dir) {
        Ok(found) => Ok(found),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(source) => Err(OfflineError::Read { path: dir.to_owned(), source }),
    }
}

fn saved(stored: &Stored) -> SavedSnapshot {
    let Manifest { id, name, created_unix_ms, sandbox_id, machine, .. } = &stored.manifest;
    SavedSnapshot {
        id: id.clone(),
        name: name.clone().map(String::from),
        created_unix_ms: *created_unix_ms,
        machine: Some(SavedMachine {
            sandbox_id: sandbox_id.clone(),
            vmm: machine.vmm.clone(),
            vmm_version: machine.vmm_version.clone(),
            vcpus: machine.vcpus,
            mem_mib: machine.mem_mib,
        }),
        disk_bytes: bytes_on_disk(&stored.dir),
        problem: stored.check_sizes().err().map(|damage| damage.to_string()),
    }
}

fn unusable(unreadable: &Unreadable) -> SavedSnapshot {
    SavedSnapshot {
        id: unreadable.id.clone(),
        name: None,
        created_unix_ms: unreadable.changed_unix_ms,
        machine: None,
        disk_bytes: bytes_on_disk(&unreadable.dir),
        problem: Some(unreadable.reason()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::sync::Arc;

    use super::*;
    use crate::snapshots::testing::manifest;

    #[test]
    fn a_snapshot_that_cannot_be_looked_at_is_no_garbage() {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("dir");
        let found = || {
            let stored = Stored { manifest: manifest("snap-00000000000000000001"), dir: dir.clone() };
            Found::Snapshot(Arc::new(stored))
        };
        // A link to itself fails otherwise than what is missing.
        symlink(&dir, &dir).unwrap();
        let Found::Snapshot(stored) = found() else { unreachable!() };
        let problem = saved(&stored).problem.unwrap();
        assert!(problem.starts_with("its file state cannot be looked at: "), "{problem}");
        assert_eq!(garbage(found()), None);

        fs::remove_file(&dir).unwrap();
        fs::create_dir(&dir).unwrap();
        let reason = |found| garbage(found).unwrap().1;
        assert_eq!(reason(found()), "its file state is missing");
        symlink("elsewhere", dir.join("state")).unwrap();
        assert_eq!(reason(found()), "its file state is not a regular file");
    }
}
