//! Taking back what a killed server left of a sandbox that runs.

use std::sync::Arc;

use manta_host::process::{Credentials, Process, ProcessId};
use manta_vmm::{MicroVm, Survivor};
use tokio::task::spawn_blocking;
use tracing::warn;

use super::disk::find_disk;
use super::{Resources, by_descriptor};
use crate::error::chain;
use crate::guest;
use crate::journal::{Record, Row};
use crate::shared::Shared;

impl Resources {
    /// Those of a sandbox that is in the journal; nothing of it is held yet.
    pub(crate) fn left(row: Row, shared: &Shared) -> Self {
        let mut resources = Self::default();
        resources.record = Some(Record::found(&shared.journal, row));
        resources
    }

    /// Takes back all of it, up to a new session with its agent: the guest has the right time and fresh random numbers
    /// then, and is who it was. When this fails, or is dropped, its VMM may be dead: [`Self::give_up`] is next.
    pub(crate) async fn adopt(&mut self, shared: &Shared) -> Result<(), String> {
        let missing = || "its entry in the journal is incomplete".to_owned();
        let row = self.record.as_ref().ok_or_else(missing)?.row().clone();
        let (Some(vmm), Some(disk), Some(machine)) = (row.process, row.disk, row.machine.clone()) else {
            return Err(missing());
        };
        let dir = shared.sandbox_dir(&row.id);
        let found = spawn_blocking({
            let (slots, limits) = (shared.slots.clone(), shared.limits.clone());
            let (dir, id) = (dir.clone(), row.id.clone());
            move || {
                let held = ProcessId { pid: vmm.pid, start_ticks: vmm.start_ticks };
                let process = Process::adopt(&held).map_err(|error| chain(&error))?;
                let process = process.ok_or("its microVM ended before it was taken back")?;
                // First: its VMM can make this wait.
                let disk = find_disk(&dir, disk);
                let slot = slots.adopt(row.slot, &process)?;
                // A server without limits has made none.
                let group = limits.cgroups().find(id.as_str()).map_err(|error| chain(&error))?;
                Ok::<_, String>((disk, slot, process, group))
            }
        });
        let (disk, slot, process, group) = found.await.map_err(|panicked| panicked.to_string())??;
        if group.is_none() && !shared.limits.cgroups().dirs().is_empty() {
            warn!(sandbox_id = %row.id, "its VMM was started without a cgroup, and has none");
        }
        (self.slot, self.cgroup) = (Some(slot), group);
        let disk = Arc::new(disk?);
        let mut spec = shared.artifacts.spec(&shared.config, by_descriptor(&disk));
        (spec.vcpus, spec.mem_mib, spec.vsock_port) = (machine.vcpus, machine.mem_mib, row.vsock_port);
        self.disk = Some(disk);
        let groups = shared.confinement.credentials(row.slot).groups;
        let credentials = Credentials { uid: row.uid, gid: row.uid, groups };
        let survivor =
            Survivor { process, dir: dir.clone(), credentials, restored: row.snapshot_id.is_some() };
        let vm: Arc<dyn MicroVm> = match shared.config.vmm.adopt(survivor, &spec).await {
            Ok(vm) => Arc::from(vm),
            Err(error) => return Err(chain(&error)),
        };
        self.vm = Some(vm.clone());
        let session = guest::connect(&vm, None, &shared.config).await.map_err(|error| error.to_string())?;
        self.session = Some(session);
        self.dir = Some(dir);
        Ok(())
    }

    /// Ends the VMM, if it was taken back, and says what else is left of one that was not taken back as a whole: its
    /// entry, and its directory. Its network goes when its VMM is dead.
    pub(crate) async fn give_up(mut self, shared: &Shared) -> Option<Row> {
        (self.session, self.disk, self.dir) = (None, None, None);
        self.kill().await;
        if let Some(vm) = self.vm.take() {
            drop(spawn_blocking(move || drop(vm)).await);
        }
        if let Some(group) = self.cgroup.take() {
            // What cannot be removed now is when its files are.
            drop(spawn_blocking(move || group.destroy()).await);
        }
        if let Some(slot) = self.slot.take() {
            // It is used again as soon as its entry is gone.
            drop(shared.slots.abandon(slot).await);
        }
        self.record.take().map(Record::into_row)
    }
}
