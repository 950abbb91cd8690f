//! The Firecracker driver. Spawns Firecracker, which then knows nothing of its VM until [`vm`] boots it: a
//! process that was started ahead of time could as well load a snapshot.

mod api;
mod requests;
mod vm;
mod vsock;
mod watch;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::child::{Child, Command};
use crate::console::printable;
use crate::dir::{Image, VmDir};
use crate::error::VmmError;
use crate::version::Requirement;
use crate::vmm::{Accelerator, Exit, MicroVm, Place, VmSpec, Vmm, VmmInfo, VmmKind};
use vm::FirecrackerVm;
use vsock::Vsock;
use watch::SocketWatch;

pub use api::ApiError;

/// Firecracker's API, in the VM's directory.
const API_SOCKET: &str = "api.sock";

/// From the start to a listening API: 5 to 35 ms on an idle machine.
const READY_TIMEOUT: Duration = Duration::from_secs(10);

/// A user may have 128 inotify instances by default, and each start takes one for its few milliseconds.
const CONCURRENT_STARTS: usize = 32;

const REQUIREMENT: Requirement = Requirement {
    name: "Firecracker",
    marker: "Firecracker v",
    needed: (1, 8),
    reason: "earlier ones do not describe the machine by ACPI",
};

/// The Firecracker at `bin` (a path, or a name to be found in `PATH`) as a VMM. Blocks while it prints its
/// version. Says nothing about KVM: see [`crate::probe_kvm`].
///
/// # Errors
/// When it cannot be run, or is older than 1.8.
pub fn firecracker(bin: &Path) -> Result<Arc<dyn Vmm>, VmmError> {
    let program = REQUIREMENT.check(bin)?;
    let info =
        VmmInfo { kind: VmmKind::Firecracker, version: program.version, accelerator: Accelerator::Kvm };
    Ok(Arc::new(Firecracker { info, program: program.path, starts: Semaphore::new(CONCURRENT_STARTS) }))
}

#[derive(Debug)]
struct Firecracker {
    info: VmmInfo,
    program: PathBuf,
    starts: Semaphore,
}

#[async_trait]
impl Vmm for Firecracker {
    fn info(&self) -> &VmmInfo {
        &self.info
    }

    async fn spawn(&self, place: Place, spec: &VmSpec) -> Result<Box<dyn MicroVm>, VmmError> {
        // Firecracker opens the tap itself, which it can only when nobody else has it open.
        drop(place.tap);
        let dir = VmDir::open(&place.dir)?;
        let fds = Image::open_all(spec)?;
        let vsock = Vsock::listen(&dir, spec.vsock_port, place.credentials.uid)?;
        // It would log each request, in the room for what the guest prints.
        let args = ["--api-sock", API_SOCKET, "--id", &instance_id(&place.dir), "--level", "Warn"]
            .map(OsString::from);
        // Never closed.
        let permit = self.starts.acquire().await;
        let watch = SocketWatch::new(&dir)?;
        let child = Child::spawn(Command {
            program: self.program.clone(),
            args: args.into(),
            dir: place.dir,
            netns: place.netns,
            credentials: place.credentials,
            fds,
        })
        .await?;
        let failure = tokio::select! {
            ready = timeout(READY_TIMEOUT, watch.connectable(&dir, API_SOCKET)) => match ready {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(error),
                Err(_) => Some(VmmError::NotReady(READY_TIMEOUT)),
            },
            status = child.ended() => {
                Some(VmmError::Ended(Exit { status, console: printable(&[&child.output()]) }))
            }
        };
        drop(permit);
        match failure {
            None => Ok(Box::new(FirecrackerVm::new(child, dir, vsock, place.tap_name, spec.clone()))),
            Some(failure) => {
                child.kill().await?;
                Err(failure)
            }
        }
    }
}

/// The name Firecracker gives itself in its messages: the directory's, as far as its rules allow (1 to 64
/// letters, digits and hyphens).
fn instance_id(dir: &Path) -> String {
    let name = dir.file_name().unwrap_or_default().to_string_lossy();
    let id: String = name.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '-').take(64).collect();
    if id.is_empty() { "vm".to_owned() } else { id }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instance_id_keeps_what_firecracker_allows() {
        assert_eq!(instance_id(Path::new("/var/lib/manta/sb-0123")), "sb-0123");
        assert_eq!(instance_id(Path::new("/var/lib/manta/a_b.ü c")), "abc");
        assert_eq!(instance_id(Path::new("/")), "vm");
        assert_eq!(instance_id(Path::new(&"x".repeat(99))).len(), 64);
    }
}
