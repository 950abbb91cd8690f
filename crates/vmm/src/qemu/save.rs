//! Saving a running VM: pause, devices, memory, resume.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;

use super::memory::{self, Memory, Process};
use super::vm::QemuVm;
use crate::deadline::{self, blocking};
use crate::error::VmmError;
use crate::snapshot::{MAX_STATE, STATE, copy_out, finish, save};
use crate::vmm::{BoxFuture, SnapshotFiles};

impl QemuVm {
    pub(super) async fn save(
        &self,
        files: &SnapshotFiles,
        while_paused: BoxFuture<'_, io::Result<()>>,
    ) -> Result<Duration, VmmError> {
        if let Some((running, current)) = self.other_version.clone() {
            return Err(VmmError::OtherVersion { running, current });
        }
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
        let (memory, done) = tokio::join!(memory, deadline::while_paused(while_paused));
        memory.and(done)
    }

    async fn copy_memory(&self, files: &SnapshotFiles) -> Result<(), VmmError> {
        let (from, to) = (self.memory.path(), files.memory.clone());
        blocking(self.files_timeout, move || memory::copy(&from, &to)).await.map_err(save(&files.memory))
    }

    async fn copy_own_pages(&self, snapshot: &File, files: &SnapshotFiles) -> Result<(), VmmError> {
        let pid = self.child.pid();
        let process = Process::open(pid, snapshot);
        if let Some(status) = self.child.status() {
            return Err(VmmError::Ended(self.exit(status)));
        }
        let unread = |source| VmmError::Memory { pid, source };
        let (process, to) = (process.map_err(unread)?, files.memory.clone());
        let pages = blocking(self.files_timeout, move || process.copy_own_pages(&to)).await.map_err(unread);
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
        let done = blocking(self.files_timeout, move || {
            Ok(copy_out(&dir, STATE, &to.state, MAX_STATE)
                .and_then(|()| finish(&to.state))
                .and_then(|()| finish(&to.memory)))
        });
        done.await.map_err(save(&files.memory))?
    }
}
