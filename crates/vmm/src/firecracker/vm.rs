//! A running Firecracker and its VM.

use async_trait::async_trait;
use tokio::net::UnixStream;

use super::API_SOCKET;
use super::api::{Api, ApiError};
use super::requests::{configure, start};
use super::vsock::{self, Vsock};
use crate::child::Child;
use crate::console::printable;
use crate::dir::VmDir;
use crate::error::VmmError;
use crate::vmm::{Exit, MicroVm, VmSpec};

#[derive(Debug)]
pub(super) struct FirecrackerVm {
    child: Child,
    dir: VmDir,
    vsock: Vsock,
    tap_name: String,
    spec: VmSpec,
}

impl FirecrackerVm {
    pub(super) fn new(child: Child, dir: VmDir, vsock: Vsock, tap_name: String, spec: VmSpec) -> Self {
        Self { child, dir, vsock, tap_name, spec }
    }

    async fn configure_and_start(&self) -> Result<(), VmmError> {
        let failed = |request: &str| {
            let request = request.to_owned();
            move |source| VmmError::Api { request, source }
        };
        let stream =
            self.dir.connect(API_SOCKET).await.map_err(ApiError::Connect).map_err(failed("connect"))?;
        let mut api = Api::new(stream).await.map_err(failed("connect"))?;
        let mut requests = configure(&self.spec, &self.tap_name, vsock::SOCKET);
        requests.push(start());
        for request in requests {
            api.put(&request).await.map_err(failed(&format!("PUT {}", request.path)))?;
        }
        Ok(())
    }

    /// Takes a step as long as Firecracker lives; its end is the error else.
    async fn alive<T>(&self, step: impl Future<Output = Result<T, VmmError>>) -> Result<T, VmmError> {
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

    async fn boot(&self) -> Result<(), VmmError> {
        self.alive(self.configure_and_start()).await
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
}
