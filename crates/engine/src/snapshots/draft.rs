//! A snapshot being made. Owns its directory until it is complete.

use std::fs::{self, DirBuilder};
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use manta_api::{SandboxId, SnapshotId};
use manta_host::remove_all;
use manta_vmm::SnapshotFiles;
use tracing::warn;

use super::error::StoreError;
use super::files::{DISK, MANIFEST, MEMORY, STATE, bury, bytes_on_disk, dir_bytes, new_dir, seal, sync_dir};
use super::machine::Machine;
use super::manifest::{FORMAT, Manifest};
use super::name::SnapshotName;
use super::store::Inner;
use super::stored::Stored;
use crate::failpoint::{Failpoint, reached};

/// A place in the store, its name and its directory. Dropped without [`Draft::commit`], it removes all of it,
/// blocking.
#[derive(Debug)]
pub(crate) struct Draft {
    store: Arc<Inner>,
    id: SnapshotId,
    name: Option<SnapshotName>,
    /// Moves when the snapshot is complete.
    dir: PathBuf,
    committed: bool,
}

impl Draft {
    /// Makes the directory of a draft that `store` has reserved a place for.
    pub(super) fn create(
        store: Arc<Inner>,
        id: SnapshotId,
        name: Option<SnapshotName>,
    ) -> Result<Self, StoreError> {
        let dir = new_dir(&store.dir, &id);
        // From here on the drop gives the place back.
        let draft = Self { store, id, name, dir, committed: false };
        DirBuilder::new()
            .mode(0o700)
            .create(&draft.dir)
            .map_err(StoreError::io("make directory", &draft.dir))?;
        Ok(draft)
    }

    /// Where a VMM is to write state and memory; neither exists yet.
    pub(crate) fn files(&self) -> SnapshotFiles {
        SnapshotFiles { state: self.dir.join(STATE), memory: self.dir.join(MEMORY) }
    }

    /// Where the disk is to be cloned to; it does not exist yet.
    pub(crate) fn disk(&self) -> PathBuf {
        self.dir.join(DISK)
    }

    /// Completes the snapshot: all three files must be there. When this is back, it survives a power cut.
    /// Blocking, as long as the medium takes.
    ///
    /// # Errors
    /// `TooLarge` or `NoSpace` when it takes more room than was reserved and there is; `Io`. Nothing is left of
    /// the snapshot then.
    pub(crate) fn commit(
        mut self,
        sandbox_id: SandboxId,
        created_unix_ms: u64,
        machine: Machine,
        pause: Duration,
    ) -> Result<Arc<Stored>, StoreError> {
        let files = seal(&self.dir).map_err(|(path, source)| StoreError::Io {
            action: "bring to the disk the file",
            path,
            source,
        })?;
        self.store.settle(&self.id, bytes_on_disk(&self.dir).total())?;
        let manifest = Manifest {
            format: FORMAT,
            id: self.id.clone(),
            name: self.name.clone(),
            created_unix_ms,
            pause_us: u64::try_from(pause.as_micros()).unwrap_or(u64::MAX),
            sandbox_id,
            machine,
            files,
        };
        manifest.write(&self.dir).map_err(StoreError::io("write", &self.dir.join(MANIFEST)))?;
        sync_dir(&self.dir).map_err(StoreError::io("bring to the disk the directory", &self.dir))?;
        reached(Failpoint::SnapshotSealed);
        let dir = self.store.dir.join(self.id.as_str());
        // The one step at which it begins to exist: all before is a leftover after a crash.
        fs::rename(&self.dir, &dir).map_err(StoreError::io("rename", &self.dir))?;
        self.dir = dir;
        sync_dir(&self.store.dir)
            .map_err(StoreError::io("bring to the disk the directory", &self.store.dir))?;
        reached(Failpoint::SnapshotNamed);
        let stored = Arc::new(Stored { manifest, dir: self.dir.clone() });
        self.store.admit(stored.clone());
        self.committed = true;
        Ok(stored)
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if self.committed {
            return;
        }
        warn!(snapshot_id = %self.id, "a snapshot was not completed; removing it");
        // Renamed first, for the case that it has its final name already.
        let dir = bury(&self.store.dir, &self.dir, &self.id).unwrap_or_else(|_| self.dir.clone());
        let mut stays = 0;
        if let Err(error) = remove_all(&dir) {
            stays = dir_bytes(&dir);
            warn!(dir = %dir.display(), stays, %error, "it stays until the next start");
        }
        self.store.release(&self.id, stays);
    }
}
