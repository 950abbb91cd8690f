//! A running QEMU and its VM.

use std::sync::Arc;

use async_trait::async_trait;
use serde_json::json;
use tokio::net::UnixStream;

use super::AGENT_SOCKET;
use super::console::Console;
use super::qmp::Qmp;
use crate::child::Child;
use crate::console::printable;
use crate::dir::VmDir;
use crate::error::VmmError;
use crate::vmm::{Exit, MicroVm};

#[derive(Debug)]
pub(super) struct QemuVm {
    child: Child,
    dir: VmDir,
    qmp: Qmp,
    console: Arc<Console>,
}

impl QemuVm {
    pub(super) fn new(child: Child, dir: VmDir, qmp: Qmp) -> Self {
        let console = Arc::new(Console::default());
        tokio::spawn(end_with_guest(qmp.clone(), Arc::clone(&console)));
        Self { child, dir, qmp, console }
    }

    fn exit(&self, status: String) -> Exit {
        let status =
            self.qmp.shutdown_reason().map_or(status, |reason| format!("ended by its guest ({reason})"));
        Exit { status, console: self.printed() }
    }

    /// Why something failed: the end of QEMU, if it is ending, else `error`.
    async fn failure(&self, error: VmmError) -> VmmError {
        self.child.dying().await.map_or(error, |status| VmmError::Ended(self.exit(status)))
    }

    fn printed(&self) -> String {
        printable(&[&self.console.text(), &self.child.output()])
    }
}

/// When the guest ends itself, QEMU stays: takes over its console, then lets it go. Ends with QEMU.
async fn end_with_guest(qmp: Qmp, console: Arc<Console>) {
    if qmp.shutdown().await.is_none() {
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

    async fn boot(&self) -> Result<(), VmmError> {
        match self.qmp.execute("cont", json!({})).await {
            Ok(_) => Ok(()),
            Err(source) => Err(self.failure(VmmError::Qmp { command: "cont", source }).await),
        }
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
