//! A running QEMU and its VM.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use manta_host::ProcessId;
use serde_json::{Value, json};
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::AGENT_SOCKET;
use super::console::Console;
use super::memory::Memory;
use super::qmp::{Qmp, QmpError, Told};
use crate::child::Child;
use crate::console::printable;
use crate::dir::{Image, VmDir};
use crate::error::VmmError;
use crate::vmm::{BoxFuture, Exit, MicroVm, SnapshotFiles};

/// Loading a state takes milliseconds: it holds no memory.
const LOAD_TIMEOUT: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub(super) struct QemuVm {
    pub(super) child: Child,
    pub(super) dir: Arc<VmDir>,
    pub(super) memory: Memory,
    /// For one step of work on the files of a snapshot.
    pub(super) files_timeout: Duration,
    /// Of an adopted QEMU, if it is not of the version that snapshots are of: its, then that.
    pub(super) other_version: Option<(String, String)>,
    qmp: Qmp,
    console: Arc<Console>,
}

impl QemuVm {
    pub(super) fn new(child: Child, dir: VmDir, memory: Memory, files_timeout: Duration, qmp: Qmp) -> Self {
        let console = Arc::new(Console::default());
        tokio::spawn(end_with_guest(qmp.clone(), Arc::clone(&console)));
        Self { child, dir: Arc::new(dir), memory, files_timeout, other_version: None, qmp, console }
    }

    pub(super) async fn command(&self, command: &'static str, arguments: Value) -> Result<(), VmmError> {
        match self.qmp.execute(command, arguments).await {
            Ok(_) => Ok(()),
            // It lives then.
            Err(source @ QmpError::Refused(_)) => Err(VmmError::Qmp { command, source }),
            Err(source) => Err(self.failure(VmmError::Qmp { command, source }).await),
        }
    }

    /// Loads the state of the snapshot the VM was spawned for.
    async fn load(&self) -> Result<(), VmmError> {
        let command = "migrate-incoming";
        self.command(command, json!({ "uri": format!("file:{}", Image::State.path()) })).await?;
        let over = |told: &Told| matches!(told.migration.as_deref(), Some("completed" | "failed"));
        let source = match timeout(LOAD_TIMEOUT, self.qmp.told(over)).await {
            Ok(Ok(told)) if told.migration.as_deref() == Some("completed") => return Ok(()),
            Ok(Ok(_)) => QmpError::Refused("the state cannot be loaded".to_owned()),
            Ok(Err(error)) => error,
            Err(_) => QmpError::Timeout(LOAD_TIMEOUT),
        };
        // With a state that is none, QEMU ends.
        Err(self.failure(VmmError::Qmp { command, source }).await)
    }

    pub(super) fn exit(&self, status: String) -> Exit {
        let status =
            self.qmp.shutdown_reason().map_or(status, |reason| format!("ended by its guest ({reason})"));
        Exit { status, console: self.printed() }
    }

    /// Why something failed: the end of QEMU, if it is ending, else `error`.
    pub(super) async fn failure(&self, error: VmmError) -> VmmError {
        self.child.dying().await.map_or(error, |status| VmmError::Ended(self.exit(status)))
    }

    fn printed(&self) -> String {
        printable(&[&self.console.text(), &self.child.output()])
    }
}

/// When the guest ends itself, QEMU stays: takes over its console, then lets it go. Ends with QEMU.
async fn end_with_guest(qmp: Qmp, console: Arc<Console>) {
    if qmp.told(|told| told.shutdown.is_some()).await.is_err() {
        return;
    }
    if let Err(error) = console.fetch(&qmp).await {
        tracing::debug!(%error, "the console of an ended guest was lost");
    }
    if let Err(error) = qmp.execute("quit", json!({})).await {
        tracing::debug!(%error, "QEMU did not answer to quit");
    }
}

#[async_trait]
impl MicroVm for QemuVm {
    fn pid(&self) -> u32 {
        self.child.pid()
    }

    fn process_id(&self) -> ProcessId {
        self.child.id()
    }

    async fn start(&self) -> Result<(), VmmError> {
        if let Memory::Private(_) = self.memory {
            self.load().await?;
        }
        self.command("cont", json!({})).await
    }

    async fn rest(&self) -> Result<(), VmmError> {
        self.command("stop", json!({})).await
    }

    async fn wake(&self) -> Result<(), VmmError> {
        self.command("cont", json!({})).await
    }

    async fn snapshot(
        &self,
        files: &SnapshotFiles,
        while_paused: BoxFuture<'_, io::Result<()>>,
    ) -> Result<Duration, VmmError> {
        self.save(files, while_paused).await
    }

    async fn connect_agent(&self) -> Result<UnixStream, VmmError> {
        // What is sent before the guest has opened its port waits in the socket.
        let connected = self.dir.connect(AGENT_SOCKET).await;
        if let Some(status) = self.child.status() {
            return Err(VmmError::Ended(self.exit(status)));
        }
        match connected {
            Ok(stream) => Ok(stream),
            Err(source) => Err(self.failure(self.dir.connect_error(AGENT_SOCKET, source)).await),
        }
    }

    async fn exited(&self) -> Exit {
        let status = self.child.ended().await;
        self.exit(status)
    }

    async fn kill(&self) -> Result<(), VmmError> {
        self.child.kill().await
    }

    async fn console(&self) -> String {
        if self.child.status().is_none()
            && let Err(error) = self.console.fetch(&self.qmp).await
        {
            tracing::debug!(%error, "the console could not be read");
        }
        self.printed()
    }
}
