//! The Firecracker driver. Spawns Firecracker, which then knows nothing of its VM until [`vm`] lets it boot
//! the guest or load a snapshot.
//!
//! A restored guest shares the pages of the snapshot's memory file until it writes to them (`MAP_PRIVATE`).
//! To save it again costs what it has changed: Firecracker notes that, and writes only those pages, in place,
//! into a clone of that file, which is made before the pause. What else a snapshot remembers of its host has
//! the same name for every VM: the disks and the vsock's socket in the working directory, the tap.

mod adopt;
mod api;
mod files;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod jail;
mod requests;
mod saved;
mod vm;
mod vsock;
mod watch;

use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use manta_host::Credentials;
use manta_host::process::{Capabilities, Rlimits};
use rustix::fs::OFlags;
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use crate::child::{Child, Command};
use crate::console::printable;
use crate::dir::{VmDir, open_image};
use crate::disk_limits::DiskLimits;
use crate::error::VmmError;
use crate::snapshot::MAX_STATE;
use crate::version::Requirement;
use crate::vmm::{Accelerator, Exit, MicroVm, Origin, Place, Survivor, VmSpec, Vmm, VmmInfo, VmmKind};
use jail::Jailer;
use vm::FirecrackerVm;
use vsock::Vsock;
use watch::SocketWatch;

pub use api::ApiError;
pub use jail::JailerChoice;

/// Firecracker's API, in the VM's directory.
const API_SOCKET: &str = "api.sock";

/// The module whose messages are logged: the VM's, among them why a processor stopped. Not that of the API: it logs
/// each request, in the room for what the guest prints; and what goes wrong there is answered.
const LOGGED: &str = "vmm";

/// Up to here, memory is one part of the machine's address space; what exceeds it lies beyond 4 GiB.
const ONE_PART_MIB: u32 = 3072;

/// From the start to a listening API: 5 to 35 ms on an idle machine.
const READY_TIMEOUT: Duration = Duration::from_secs(10);

/// What Firecracker maps beside the guest's memory, bytes: many times what it needs.
const ADDRESS_SPACE: u64 = 1 << 30;

/// Up to 1023 connections of the guest's vsock, and a few dozen; the jailer's own limit.
const OPEN_FILES: u64 = 2048;

/// Beside one for each virtual processor: its own, the API's, and some to spare.
const THREADS: u64 = 16;

/// A user may have 128 inotify instances by default, and each start takes one for its few milliseconds.
const CONCURRENT_STARTS: usize = 32;

const REQUIREMENT: Requirement = Requirement {
    name: "Firecracker",
    marker: "Firecracker v",
    needed: (1, 8),
    reason: "earlier ones do not describe the machine by ACPI",
};

/// The Firecracker at `bin` (a path, or a name to be found in `PATH`) as a VMM, in jails by the jailer chosen.
/// Blocks while they print their versions. Says nothing about KVM: see [`crate::probe_kvm`].
///
/// # Errors
/// When Firecracker cannot be run, or is older than 1.8; when there is no jailer of its release, unless none is
/// wanted.
pub fn firecracker(bin: &Path, jailer: &JailerChoice) -> Result<Arc<dyn Vmm>, VmmError> {
    let program = REQUIREMENT.check(bin)?;
    let jailer = Jailer::find(jailer, &program)?;
    let info = VmmInfo {
        kind: VmmKind::Firecracker,
        version: program.version,
        accelerator: Accelerator::Kvm,
        jailer: jailer.as_ref().map(|jailer| jailer.program.clone()),
    };
    Ok(Arc::new(Firecracker {
        info,
        program: program.path,
        jailer,
        starts: Semaphore::new(CONCURRENT_STARTS),
    }))
}

#[derive(Debug)]
struct Firecracker {
    info: VmmInfo,
    program: PathBuf,
    /// None if its VMs run without.
    jailer: Option<Jailer>,
    starts: Semaphore,
}

#[async_trait]
impl Vmm for Firecracker {
    fn info(&self) -> &VmmInfo {
        &self.info
    }

    fn can_rest(&self) -> bool {
        can_rest(&self.info.version)
    }

    fn needs_links(&self) -> bool {
        true
    }

    fn check_dir(&self, dir: &Path) -> Result<(), VmmError> {
        if self.jailer.is_some() { jail::check_dir(dir) } else { Ok(()) }
    }

    fn machine(&self, spec: &VmSpec) -> String {
        requests::text(&requests::configure(spec, "", vsock::SOCKET))
    }

    async fn spawn(
        &self,
        place: Place,
        spec: &VmSpec,
        origin: &Origin,
    ) -> Result<Box<dyn MicroVm>, VmmError> {
        let dir = Arc::new(VmDir::open(&place.dir)?);
        let owner = (place.credentials.uid, place.credentials.gid);
        let memory_len = u64::from(spec.mem_mib) << 20;
        let tracks_changes = *origin != Origin::Boot && can_track(&self.info.version, spec.mem_mib);
        let (start, vsock, base) = match origin {
            Origin::Boot => {
                let mut start = requests::configure(spec, &place.tap_name, vsock::SOCKET);
                start.push(requests::start());
                if spec.disk_limits != DiskLimits::default() {
                    start.extend(requests::limit_disks(spec.disk_limits));
                }
                (start, Vsock::listen(&dir, spec.vsock_port, owner.0)?, None)
            }
            Origin::Snapshot(files) => {
                // Open: the name may be gone when it is needed.
                let open = || open_image("snapshot's memory", &files.memory, OFlags::RDONLY);
                let base = tracks_changes.then(open).transpose()?;
                let mut start = vec![requests::load(memory_len, tracks_changes)];
                start.extend(requests::limit_disks(spec.disk_limits));
                (start, Vsock::of_restored(spec.vsock_port), base)
            }
        };
        let command = self.command(place, spec, origin, &dir).await?;
        // Never closed.
        let permit = self.starts.acquire().await;
        let watch = SocketWatch::new(&dir)?;
        let child = Child::spawn(command).await?;
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
        if let Some(failure) = failure {
            child.kill().await?;
            return Err(failure);
        }
        Ok(Box::new(FirecrackerVm {
            child,
            dir,
            vsock,
            owner,
            start,
            can_rest: self.can_rest(),
            memory_len,
            tracks_changes,
            base: Mutex::new(base.map(File::from)),
            other_version: None,
        }))
    }

    async fn adopt(&self, survivor: Survivor, spec: &VmSpec) -> Result<Box<dyn MicroVm>, VmmError> {
        Ok(Box::new(adopt::adopt(survivor, spec, &self.info.version).await?))
    }
}

impl Firecracker {
    /// Puts the VM's files into its directory, and says what to start there.
    async fn command(
        &self,
        place: Place,
        spec: &VmSpec,
        origin: &Origin,
        dir: &Arc<VmDir>,
    ) -> Result<Command, VmmError> {
        // Firecracker opens the tap itself, which it can only when nobody else has it open.
        drop(place.tap);
        let id = instance_id(&place.dir);
        let prepare = {
            let (dir, spec, origin) = (Arc::clone(dir), spec.clone(), origin.clone());
            let (jailer, id) = (self.jailer.clone(), id.clone());
            move || {
                if let Some(jailer) = jailer {
                    jailer.prepare(&dir, &id)?;
                }
                files::link(&dir, &spec, &origin)
            }
        };
        let prepared = spawn_blocking(prepare).await;
        let disk_len =
            prepared.map_err(|broken| VmmError::Jail { dir: place.dir.clone(), source: broken.into() })??;

        let memory_len = u64::from(spec.mem_mib) << 20;
        let rlimits = Rlimits {
            address_space: Some(memory_len + ADDRESS_SPACE),
            file_size: Some(disk_len.max(memory_len).max(MAX_STATE)),
            locked_memory: Some(0),
            open_files: Some(OPEN_FILES),
            processes: Some(u64::from(spec.vcpus) + THREADS),
        };
        let Credentials { uid, gid, .. } = place.credentials;
        let (program, mut args, credentials, capabilities) = match &self.jailer {
            Some(jailer) => {
                let root = Credentials { uid: 0, gid: 0, groups: Vec::new() };
                (&jailer.program, jailer.args(&id, (uid, gid)), root, Capabilities::Among(jail::CAPABILITIES))
            }
            None => (&self.program, vec!["--id".into(), id.into()], place.credentials, Capabilities::OfUser),
        };
        args.extend(["--api-sock", API_SOCKET, "--level", "Info", "--module", LOGGED].map(OsString::from));
        Ok(Command {
            program: program.clone(),
            args,
            dir: place.dir,
            netns: place.netns,
            credentials,
            fds: Vec::new(),
            jail: None,
            cgroup: place.cgroup,
            rlimits,
            capabilities,
        })
    }
}

/// Whether changed pages alone can be saved. Firecracker 1.14 puts those of a memory of two parts in wrong
/// places (its pull request 5705).
fn can_track(version: &str, mem_mib: u32) -> bool {
    mem_mib <= ONE_PART_MIB || !version.starts_with("1.14.")
}

/// Whether a guest can be paused without being saved. In these two the host's vsock connections hang afterwards
/// (Firecracker's pull requests 6100 and 6182).
fn can_rest(version: &str) -> bool {
    !matches!(version, "1.16.0" | "1.16.1")
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
    fn changes_are_tracked_except_where_firecracker_misplaces_them() {
        assert!(can_track("1.12.1", 4096));
        assert!(can_track("1.14.1", 3072));
        assert!(!can_track("1.14.1", 3073));
        assert!(can_track("1.15.0", 4096));
    }

    #[test]
    fn guests_rest_except_where_they_would_not_be_reached_again() {
        assert!(can_rest("1.15.1"));
        assert!(!can_rest("1.16.0"));
        assert!(!can_rest("1.16.1"));
        assert!(can_rest("1.16.2"));
    }

    #[test]
    fn instance_id_keeps_what_firecracker_allows() {
        assert_eq!(instance_id(Path::new("/var/lib/manta/sb-0123")), "sb-0123");
        assert_eq!(instance_id(Path::new("/var/lib/manta/a_b.ü c")), "abc");
        assert_eq!(instance_id(Path::new("/")), "vm");
        assert_eq!(instance_id(Path::new(&"x".repeat(99))).len(), 64);
    }
}
