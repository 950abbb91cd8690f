//! A running Firecracker and its VM: started, saved, watched.

use std::fs::File;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use manta_host::ProcessId;
use serde_json::Value;
use tokio::net::UnixStream;

use super::API_SOCKET;
use super::api::{Api, ApiError};
use super::requests::{Pages, Request, create, pause, resume};
use super::saved::{self, MEMORY};
use super::vsock::Vsock;
use crate::child::Child;
use crate::console::printable;
use crate::deadline;
use crate::dir::VmDir;
use crate::error::VmmError;
use crate::snapshot::{STATE, save};
use crate::vmm::{BoxFuture, Exit, MicroVm, SnapshotFiles};

/// What the names of its virtual processors' threads begin with. It has no power switch: they stay when the guest has
/// switched itself off.
const VCPU_THREADS: &str = "fc_vcpu ";

#[derive(Debug)]
pub(super) struct FirecrackerVm {
    pub(super) child: Child,
    pub(super) dir: Arc<VmDir>,
    pub(super) vsock: Vsock,
    /// User and group of the process.
    pub(super) owner: (u32, u32),
    /// What lets the guest run.
    pub(super) start: Vec<Request>,
    /// Whether its host reaches the guest after a pause that was not for a snapshot.
    pub(super) can_rest: bool,
    /// Of the guest, bytes.
    pub(super) memory_len: u64,
    /// Whether Firecracker notes which pages change.
    pub(super) tracks_changes: bool,
    /// Memory as it was when Firecracker began to note changes: what the VM was restored from, later the last
    /// snapshot of it. None if there is no such file, or it does not note them.
    pub(super) base: Mutex<Option<File>>,
    /// Of an adopted Firecracker, if it is not of the version that snapshots are of: its, then that.
    pub(super) other_version: Option<(String, String)>,
}

impl FirecrackerVm {
    /// Makes requests, and gives the answer to the last.
    pub(super) async fn send(&self, requests: &[Request]) -> Result<Value, VmmError> {
        let failed = |request: String| move |source| VmmError::Api { request, source };
        let connected = self.dir.connect(API_SOCKET).await.map_err(ApiError::Connect);
        let stream = connected.map_err(failed("connect".to_owned()))?;
        let mut api = Api::new(stream).await.map_err(failed("connect".to_owned()))?;
        let mut answer = Value::Null;
        for request in requests {
            answer = api.send(request).await.map_err(failed(request.to_string()))?;
        }
        Ok(answer)
    }

    async fn save(
        &self,
        files: &SnapshotFiles,
        while_paused: BoxFuture<'_, io::Result<()>>,
    ) -> Result<Duration, VmmError> {
        if let Some((running, current)) = self.other_version.clone() {
            return Err(VmmError::OtherVersion { running, current });
        }
        // Once asked to save them, Firecracker forgets which pages have changed: if anything fails, it is all
        // of them the next time.
        let base = self.base.lock().unwrap_or_else(PoisonError::into_inner).take();
        let pages = if base.is_some() { Pages::Changed } else { Pages::All };
        if let Some(base) = base {
            let (dir, memory, owner) = (Arc::clone(&self.dir), files.memory.clone(), self.owner);
            self.blocking(files, move || saved::prepare(&dir, &base, &memory, owner)).await?;
        }

        let start = Instant::now();
        let saved = async {
            self.alive(self.send(&[pause(), create(self.memory_len, pages, STATE, MEMORY)])).await?;
            // To its end, even if Firecracker ends.
            deadline::while_paused(while_paused).await
        };
        let saved = saved.await;
        let resumed = self.alive(self.send(&[resume(self.memory_len)])).await;
        let paused = start.elapsed();
        match resumed {
            Ok(_) => saved?,
            Err(ended @ VmmError::Ended(_)) => return Err(ended),
            Err(error) => return Err(VmmError::Resume(Box::new(error))),
        }

        let (dir, taken, len) = (Arc::clone(&self.dir), files.clone(), self.memory_len);
        let memory = self.blocking(files, move || saved::take_over(&dir, &taken, len, pages)).await?;
        if self.tracks_changes {
            *self.base.lock().unwrap_or_else(PoisonError::into_inner) = Some(memory);
        }
        Ok(paused)
    }

    /// Works on the files of a snapshot.
    async fn blocking<T: Send + 'static>(
        &self,
        files: &SnapshotFiles,
        work: impl FnOnce() -> Result<T, VmmError> + Send + 'static,
    ) -> Result<T, VmmError> {
        let done = deadline::blocking(deadline::for_memory(self.memory_len), move || Ok(work()));
        done.await.map_err(save(&files.memory))?
    }

    /// Takes a step as long as Firecracker lives; its end is the error else.
    pub(super) async fn alive<T>(
        &self,
        step: impl Future<Output = Result<T, VmmError>>,
    ) -> Result<T, VmmError> {
        let taken = tokio::select! {
            biased;
            status = self.child.ended() => return Err(VmmError::Ended(self.exit(status))),
            taken = step => taken,
        };
        match taken {
            // Who says no is alive; else it may be ending, and its sockets be the first to go.
            Ok(_) | Err(VmmError::Api { source: ApiError::Fault { .. }, .. }) => taken,
            Err(error) => {
                Err(self.child.dying().await.map_or(error, |status| VmmError::Ended(self.exit(status))))
            }
        }
    }

    fn exit(&self, status: String) -> Exit {
        Exit { status, console: self.printed() }
    }

    fn printed(&self) -> String {
        printable(&[&self.child.output()])
    }
}

#[async_trait]
impl MicroVm for FirecrackerVm {
    fn pid(&self) -> u32 {
        self.child.pid()
    }

    fn process_id(&self) -> ProcessId {
        self.child.id()
    }

    async fn start(&self) -> Result<(), VmmError> {
        self.alive(self.send(&self.start)).await.map(drop)
    }

    async fn rest(&self) -> Result<(), VmmError> {
        if !self.can_rest {
            return Ok(());
        }
        self.alive(self.send(&[pause()])).await.map(drop)
    }

    async fn wake(&self) -> Result<(), VmmError> {
        if !self.can_rest {
            return Ok(());
        }
        self.alive(self.send(&[resume(self.memory_len)])).await.map(drop)
    }

    async fn snapshot(
        &self,
        files: &SnapshotFiles,
        while_paused: BoxFuture<'_, io::Result<()>>,
    ) -> Result<Duration, VmmError> {
        let saved = self.save(files, while_paused).await;
        if saved.is_err() {
            saved::discard(&self.dir);
        }
        saved
    }

    async fn connect_agent(&self) -> Result<UnixStream, VmmError> {
        self.alive(self.vsock.connect(&self.dir)).await
    }

    async fn exited(&self) -> Exit {
        let status = self.child.ended().await;
        self.exit(status)
    }

    async fn kill(&self) -> Result<(), VmmError> {
        self.child.kill().await
    }

    async fn console(&self) -> String {
        self.printed()
    }

    fn ends_with_guest(&self) -> bool {
        false
    }

    fn guest_time(&self) -> Option<Duration> {
        self.child.time_of_threads(VCPU_THREADS)
    }
}
