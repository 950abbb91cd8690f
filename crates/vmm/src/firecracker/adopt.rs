//! Takes over a Firecracker whose server was killed: by its API, which serves one connection after the other, and
//! finishes what it was asked for also when nobody waits for the answer. Its stdout has lost its reader and takes
//! nothing once it is full, which to Firecracker's log and serial port is a number in its metrics.

use std::sync::{Arc, Mutex};

use super::requests::{describe, resume};
use super::vm::FirecrackerVm;
use super::vsock::Vsock;
use super::{can_rest, can_track, saved};
use crate::child::Child;
use crate::console::excerpt;
use crate::dir::VmDir;
use crate::error::VmmError;
use crate::vmm::{Survivor, VmSpec};

pub(super) async fn adopt(
    survivor: Survivor,
    spec: &VmSpec,
    current: &str,
) -> Result<FirecrackerVm, VmmError> {
    let child = Child::adopt(survivor.process)?;
    let dir = match VmDir::open(&survivor.dir) {
        Ok(dir) => Arc::new(dir),
        Err(error) => {
            child.kill().await?;
            return Err(error);
        }
    };
    let mut vm = FirecrackerVm {
        child,
        dir,
        // Also of one that was booted: its agent has called.
        vsock: Vsock::of_restored(spec.vsock_port),
        owner: (survivor.credentials.uid, survivor.credentials.gid),
        start: Vec::new(),
        can_rest: false,
        memory_len: u64::from(spec.mem_mib) << 20,
        tracks_changes: false,
        // The dead server may have begun to save it: what has changed since is not known to the end.
        base: Mutex::new(None),
        other_version: None,
    };
    match let_run(&vm).await {
        Ok(version) => {
            vm.can_rest = can_rest(&version);
            vm.tracks_changes = survivor.restored && can_track(&version, spec.mem_mib);
            if version != current {
                vm.other_version = Some((version, current.to_owned()));
            }
            Ok(vm)
        }
        Err(error) => {
            vm.child.kill().await?;
            Err(error)
        }
    }
}

/// Lets the guest go on, if there is one; gives Firecracker's version.
async fn let_run(vm: &FirecrackerVm) -> Result<String, VmmError> {
    let answer = vm.alive(vm.send(&[describe(vm.memory_len)])).await?;
    let text = |name: &str| excerpt(answer[name].as_str().unwrap_or_default());
    // `InstanceInfo` of its API.
    let state = text("state");
    match state.as_str() {
        "Running" => {}
        "Paused" => drop(vm.alive(vm.send(&[resume(vm.memory_len)])).await?),
        "Not started" => return Err(VmmError::NeverRan(state)),
        _ => return Err(VmmError::NotAdoptable(state)),
    }
    saved::discard(&vm.dir);
    Ok(text("vmm_version"))
}
