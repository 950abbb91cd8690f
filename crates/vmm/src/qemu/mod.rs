//! The QEMU driver: the `microvm` machine, under TCG or KVM. Spawns QEMU; [`vm`] is what lives on.

mod adopt;
mod command;
mod confine;
mod console;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod memory;
mod qmp;
mod save;
mod vm;

use std::os::fd::RawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use manta_host::Jail;
use manta_host::process::Capabilities;
use serde_json::json;
use tokio::net::UnixStream;
use tokio::sync::OnceCell;
use tokio::time::timeout;

use crate::child::{Child, Command};
use crate::console::printable;
use crate::deadline;
use crate::dir::{Image, VmDir};
use crate::error::VmmError;
use crate::version::Requirement;
use crate::vmm::{Accelerator, Exit, MicroVm, Origin, Place, Survivor, VmSpec, Vmm, VmmInfo, VmmKind};
use command::{AGENT_FD, QMP_FD, TAP_FD};
use memory::Memory;
use qmp::Qmp;
use vm::QemuVm;

pub use qmp::QmpError;

/// Socket of the VM's control protocol (QMP), in its directory.
const QMP_SOCKET: &str = "qmp.sock";
/// Socket whose bytes the agent reads and writes on its virtio-serial port, in the VM's directory.
const AGENT_SOCKET: &str = "agent.sock";

/// From the start to the first answer: 20 to 40 ms on an idle machine.
const READY_TIMEOUT: Duration = Duration::from_secs(15);

const REQUIREMENT: Requirement = Requirement {
    name: "QEMU",
    marker: "QEMU emulator version ",
    needed: (8, 2),
    reason: "earlier ones cannot map the memory of a snapshot without writing to it",
};

/// The QEMU at `bin` (a path, or a name to be found in `PATH`) as a VMM. Blocks while it prints its version.
///
/// # Errors
/// When it cannot be run, or is older than 8.2.
pub fn qemu(bin: &Path, accelerator: Accelerator) -> Result<Arc<dyn Vmm>, VmmError> {
    let program = REQUIREMENT.check(bin)?;
    let info = VmmInfo { kind: VmmKind::Qemu, version: program.version, accelerator, jailer: None };
    let (program, tsc_khz) = (program.path, manta_host::facts::tsc_khz());
    Ok(Arc::new(Qemu { info, program, tsc_khz, jail: OnceCell::new() }))
}

#[derive(Debug)]
struct Qemu {
    info: VmmInfo,
    program: PathBuf,
    tsc_khz: Option<u64>,
    jail: OnceCell<Arc<Jail>>,
}

#[async_trait]
impl Vmm for Qemu {
    fn info(&self) -> &VmmInfo {
        &self.info
    }

    fn can_rest(&self) -> bool {
        true
    }

    fn needs_links(&self) -> bool {
        false
    }

    fn check_dir(&self, _dir: &Path) -> Result<(), VmmError> {
        Ok(())
    }

    fn machine(&self, spec: &VmSpec) -> String {
        command::machine(spec, self.info.accelerator)
    }

    async fn spawn(
        &self,
        place: Place,
        spec: &VmSpec,
        origin: &Origin,
    ) -> Result<Box<dyn MicroVm>, VmmError> {
        let (program, accelerator) = (&self.program, self.info.accelerator);
        // Not before: the doctor needs none.
        let jail = self.jail.get_or_try_init(|| confine::jail(program, accelerator)).await?;
        let dir = VmDir::open(&place.dir)?;
        let mut fds = Image::open_all(spec)?;
        let memory = match origin {
            Origin::Boot => Memory::empty(spec.mem_mib).map_err(VmmError::MakeMemory)?,
            Origin::Snapshot(files) => {
                let [state, (memory, _)] = Image::open_snapshot(files)?;
                fds.push(state);
                Memory::Private(memory.into())
            }
        };
        fds.push((memory.fd().map_err(VmmError::MakeMemory)?, Image::Memory as RawFd));
        let restored = matches!(origin, Origin::Snapshot(_));
        // Listening before QEMU starts: one can connect at once, with no waiting for a path to appear.
        fds.push((dir.listen(QMP_SOCKET, None)?, QMP_FD));
        fds.push((dir.listen(AGENT_SOCKET, None)?, AGENT_FD));
        fds.push((place.tap, TAP_FD));
        let stream = dir.connect(QMP_SOCKET).await.map_err(|source| dir.connect_error(QMP_SOCKET, source))?;
        let child = Child::spawn(Command {
            program: confine::real(program)?,
            args: command::args(spec, self.info.accelerator, self.tsc_khz, restored),
            dir: place.dir,
            netns: place.netns,
            credentials: place.credentials,
            fds,
            jail: Some(Arc::clone(jail)),
            cgroup: place.cgroup,
            rlimits: confine::rlimits(spec)?,
            // Also where it must be root: it is given what it needs, open.
            capabilities: Capabilities::Among(&[]),
        })
        .await?;
        let failure = match timeout(READY_TIMEOUT, ready(stream, restored)).await {
            Ok(Ok(qmp)) => {
                let files_timeout = deadline::for_memory(u64::from(spec.mem_mib) << 20);
                return Ok(Box::new(QemuVm::new(child, dir, memory, files_timeout, qmp)));
            }
            Ok(Err(source)) => match child.dying().await {
                Some(status) => VmmError::Ended(Exit { status, console: printable(&[&child.output()]) }),
                None => VmmError::Qmp { command: "qmp_capabilities", source },
            },
            Err(_) => VmmError::NotReady(READY_TIMEOUT),
        };
        child.kill().await?;
        Err(failure)
    }

    async fn adopt(&self, survivor: Survivor, spec: &VmSpec) -> Result<Box<dyn MicroVm>, VmmError> {
        Ok(Box::new(adopt::adopt(survivor, spec, &self.info.version).await?))
    }
}

/// Waits for QEMU, and asks it to tell when it has loaded a state that it will be told to load.
async fn ready(stream: UnixStream, restored: bool) -> Result<Qmp, QmpError> {
    let qmp = Qmp::start(stream).await?;
    if restored {
        let capabilities = json!([{ "capability": "events", "state": true }]);
        qmp.execute("migrate-set-capabilities", json!({ "capabilities": capabilities })).await?;
    }
    Ok(qmp)
}
