//! Saving a running VM: pause, devices, memory, resume.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::memory::{self, Memory, Process};
use super::vm::QemuVm;
use crate::error::VmmError;
use crate::snapshot::{MAX_STATE, STATE, copy_out, finish, save};
use crate::vmm::{BoxFuture, SnapshotFiles};

/// For one step of work on files. The longest copies a booted guest's memory or brings it to the medium.
const FILES_TIMEOUT: Duration = Duration::from_secs(120);

impl QemuVm {
    pub(super) async fn save(
        &self,
        files: &SnapshotFiles,
        while_paused: BoxFuture<'_, io::Result<()>>,
    ) -> Result<Duration, VmmError> {
        if let Memory::Private(_) = self.memory {
            // All but what the guest has written since its restore. Takes its time, so before the pause.
            self.copy_memory(files).await?;
        }
        let begin = Instant::now();
        let saved = self.save_paused(files, while_paused).await;
        let resumed = self.command("cont", json!({})).await;
        let pause = begin.elapsed();
        let result = match (saved, resumed) {
            (Ok(()), Ok(())) => self.finish(files).await,
            (Err(error), Ok(())) => Err(error),
            (_, Err(error @ VmmError::Ended(_))) => Err(error),
            (_, Err(error)) => Err(VmmError::Resume(Box::new(error))),
        };
        if result.is_err()
            && let Err(error) = self.dir.remove(STATE)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(dir = %self.dir.path().display(), %error, "cannot remove a state not used");
        }
        result.map(|()| pause)
    }

    async fn save_paused(
        &self,
        files: &SnapshotFiles,
        while_paused: BoxFuture<'_, io::Result<()>>,
    ) -> Result<(), VmmError> {
        self.command("stop", json!({})).await?;
        // Everything but memory and disks. Has to do with Xen only that Xen needed it first. "live" would
        // give the disks away.
        self.command("xen-save-devices-state", json!({ "filename": STATE, "live": false })).await?;
        let memory = async {
            match &self.memory {
                Memory::Shared(_) => self.copy_memory(files).await,
                Memory::Private(snapshot) => self.copy_own_pages(snapshot, files).await,
            }
        };
        // The disk is at rest since "stop".
        let (memory, done) = tokio::join!(memory, while_paused);
        memory.and(done.map_err(VmmError::WhilePaused))
    }

    async fn copy_memory(&self, files: &SnapshotFiles) -> Result<(), VmmError> {
        let (from, to) = (self.memory.path(), files.memory.clone());
        blocking(move || memory::copy(&from, &to)).await.map_err(save(&files.memory))
    }

    async fn copy_own_pages(&self, snapshot: &File, files: &SnapshotFiles) -> Result<(), VmmError> {
        let pid = self.child.pid();
        let process = Process::open(pid, snapshot);
        if let Some(status) = self.child.status() {
            return Err(VmmError::Ended(self.exit(status)));
        }
        let unread = |source| VmmError::Memory { pid, source };
        let (process, to) = (process.map_err(unread)?, files.memory.clone());
        let pages = blocking(move || process.copy_own_pages(&to)).await.map_err(unread);
        match pages {
            Ok(pages) => {
                tracing::debug!(pid, pages, "saved a restored guest's own pages");
                Ok(())
            }
            Err(error) => Err(self.failure(error).await),
        }
    }

    /// Only here, when the guest runs again.
    async fn finish(&self, files: &SnapshotFiles) -> Result<(), VmmError> {
        let (dir, to) = (Arc::clone(&self.dir), files.clone());
        let done = blocking(move || {
            Ok(copy_out(&dir, STATE, &to.state, MAX_STATE)
                .and_then(|()| finish(&to.state))
                .and_then(|()| finish(&to.memory)))
        });
        done.await.map_err(save(&files.memory))?
    }
}

/// Does work on files elsewhere; it is not waited for for ever.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    match timeout(FILES_TIMEOUT, spawn_blocking(work)).await {
        Ok(done) => done?,
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}
