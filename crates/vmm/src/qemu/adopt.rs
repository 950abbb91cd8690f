//! Takes over a QEMU whose server was killed: over its sockets, which QEMU listens on again when a connection has
//! ended. What the dead server had begun is undone by letting the guest run: no command of QEMU's that is used
//! here goes on after its answer, but the loading of a state, and a VM caught in that is not adopted.

use std::io;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::timeout;

use super::QMP_SOCKET;
use super::memory::Memory;
use super::qmp::Qmp;
use super::vm::QemuVm;
use crate::child::Child;
use crate::console::excerpt;
use crate::deadline::{self, STEP, blocking};
use crate::dir::VmDir;
use crate::error::VmmError;
use crate::snapshot::STATE;
use crate::vmm::{Exit, MicroVm, Survivor, VmSpec};

/// For connecting again and asking. QEMU may have to finish first what the dead server had asked for.
const READY_TIMEOUT: Duration = Duration::from_secs(15);

/// What QEMU says of a VM (`RunState` of its `qapi/run-state.json`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Run {
    Running,
    /// Until it is told to go on.
    Paused,
    NeverRan,
    /// By its guest.
    Ended,
    Unfit,
}

impl Run {
    fn of(status: &str) -> Self {
        match status {
            "running" => Self::Running,
            "paused" | "save-vm" => Self::Paused,
            "prelaunch" | "inmigrate" => Self::NeverRan,
            "shutdown" | "guest-panicked" => Self::Ended,
            _ => Self::Unfit,
        }
    }
}

pub(super) async fn adopt(survivor: Survivor, spec: &VmSpec, current: &str) -> Result<QemuVm, VmmError> {
    let child = Child::adopt(survivor.process)?;
    let memory_len = u64::from(spec.mem_mib) << 20;
    let found = find(&child, &survivor.dir, memory_len, survivor.restored).await;
    let (dir, memory, qmp, status, running) = match found {
        Ok(found) => found,
        Err(error) => {
            let ended = |status| VmmError::Ended(Exit { status, console: String::new() });
            let error = child.dying().await.map_or(error, ended);
            child.kill().await?;
            return Err(error);
        }
    };
    let mut vm = QemuVm::new(child, dir, memory, deadline::for_memory(memory_len), qmp);
    if running != current {
        vm.other_version = Some((running, current.to_owned()));
    }
    match let_run(&vm, status).await {
        Ok(()) => Ok(vm),
        Err(error) => {
            vm.child.kill().await?;
            Err(error)
        }
    }
}

type Found = (VmDir, Memory, Qmp, String, String);

/// Connects again, and finds out what is known of a VM that one has spawned: at last its state and its version.
async fn find(child: &Child, dir: &Path, memory_len: u64, restored: bool) -> Result<Found, VmmError> {
    let dir = VmDir::open(dir)?;
    let stream = dir.connect(QMP_SOCKET).await.map_err(|source| dir.connect_error(QMP_SOCKET, source))?;
    let ask = async {
        let qmp = Qmp::start(stream).await?;
        let version = version(&qmp.execute("query-version", json!({})).await?);
        let status = qmp.execute("query-status", json!({})).await?;
        Ok((qmp, excerpt(status["status"].as_str().unwrap_or_default()), version))
    };
    let answer = timeout(READY_TIMEOUT, ask).await.map_err(|_| VmmError::NotReady(READY_TIMEOUT))?;
    let (qmp, status, version) =
        answer.map_err(|source| VmmError::Qmp { command: "query-status", source })?;
    let pid = child.pid();
    let memory = blocking(STEP, move || Memory::of_process(pid, memory_len, restored)).await;
    // Only now: the number may be another's as soon as it has ended.
    if let Some(status) = child.status() {
        return Err(VmmError::Ended(Exit { status, console: String::new() }));
    }
    Ok((dir, memory.map_err(|source| VmmError::Memory { pid, source })?, qmp, status, version))
}

/// Lets the guest go on, if there is one that can.
async fn let_run(vm: &QemuVm, status: String) -> Result<(), VmmError> {
    match Run::of(&status) {
        Run::Running => {}
        Run::Paused => vm.wake().await?,
        Run::NeverRan => return Err(VmmError::NeverRan(status)),
        Run::Ended => {
            let console = vm.console().await;
            let status = format!("ended by its guest while no server was there ({status})");
            return Err(VmmError::Ended(Exit { status, console }));
        }
        Run::Unfit => return Err(VmmError::NotAdoptable(status)),
    }
    // Of a snapshot that the dead server was taking.
    match vm.dir.remove(STATE) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(dir = %vm.dir.path().display(), %error, "cannot remove a state not used");
        }
        _ => {}
    }
    Ok(())
}

/// As QEMU prints it when it is asked for its version on the command line.
fn version(answer: &Value) -> String {
    let part = |name: &str| answer["qemu"][name].as_u64().unwrap_or(0);
    format!("{}.{}.{}", part("major"), part("minor"), part("micro"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_guest_that_has_run_and_can_go_on_is_let_run() {
        for (status, run) in [
            ("running", Run::Running),
            ("paused", Run::Paused),
            ("save-vm", Run::Paused),
            ("prelaunch", Run::NeverRan),
            ("inmigrate", Run::NeverRan),
            ("shutdown", Run::Ended),
            ("guest-panicked", Run::Ended),
            ("internal-error", Run::Unfit),
            ("io-error", Run::Unfit),
            ("", Run::Unfit),
        ] {
            assert_eq!(Run::of(status), run, "{status}");
        }
    }

    #[test]
    fn the_version_is_the_one_the_program_prints() {
        let answer = json!({ "qemu": { "major": 10, "minor": 0, "micro": 2 }, "package": "Debian 1:10.0.2" });
        assert_eq!(version(&answer), "10.0.2");
        assert_eq!(version(&json!({})), "0.0.0");
    }
}
