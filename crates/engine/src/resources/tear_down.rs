//! Giving back what a sandbox used, past all errors. What cannot be removed at once, as when the host is out of
//! descriptors, is tried again for as long as the server runs; its entry in the journal stays until then.

use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::time::Duration;

use manta_api::SandboxId;
use manta_host::{Cgroup, Cgroups, remove_all};
use tokio::task::spawn_blocking;
use tracing::{debug, error, warn};

use super::Resources;
use super::entry::patiently;
use crate::error::chain;
use crate::failpoint::{Failpoint, reached};
use crate::journal::Record;
use crate::shared::Shared;
use crate::timing::{Clock, Timings};

/// Between attempts to remove what is left.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

impl Resources {
    /// Gives everything back; carries on past errors, which are logged. `keep_dir` leaves the
    /// directory for whoever looks into a failure. When this is done the VMM is dead and its files are gone, unless
    /// the host does not let them go yet; the slot goes behind, no longer known by anybody. Tells where the time went.
    pub(crate) async fn tear_down(&mut self, id: &SandboxId, shared: &Shared, mut keep_dir: bool) -> Timings {
        let clock = Clock::start();
        (self.session, self.disk) = (None, None);
        if let Some(vm) = self.vm.take() {
            let console = if keep_dir { vm.console().await } else { String::new() };
            if keep_dir && let Some(dir) = &self.dir {
                // A new file: whatever has that name already is the VMM's doing.
                let log = File::create_new(dir.join("console.log"));
                let _ = log.and_then(|mut log| log.write_all(console.as_bytes()));
            }
            if let Err(error) = vm.kill().await {
                error!(sandbox_id = %id, error = chain(&error), "the VMM could not be killed");
                self.abandon_slot(shared);
                keep_dir = true;
                // Its entry stays, for the next server to try.
                drop(self.record.take());
            }
            // Waits for a VMM that is still there.
            drop(spawn_blocking(move || drop(vm)));
        }
        clock.passed("kill");
        reached(Failpoint::DestroyKilled);
        let mut left = false;
        if let Some(dir) = self.dir.take() {
            let group = self.cgroup.take();
            let put_away = spawn_blocking(move || put_away(&dir, group, keep_dir)).await;
            if let Err(error) = put_away.unwrap_or_else(|panicked| Err(panicked.to_string())) {
                error!(sandbox_id = %id, error, "what a sandbox used could not be removed; it is tried again");
                left = true;
            }
        }
        clock.passed("files");
        reached(Failpoint::DestroyFiles);
        // The slot needs no entry: what is no sandbox's is removed at the next start.
        if let Some(slot) = self.slot.take() {
            shared.tasks.spawn(shared.slots.release(slot));
        }
        if let Some(record) = self.record.take() {
            if left {
                let dir = (!keep_dir).then(|| shared.sandbox_dir(id));
                shared.tasks.spawn(remove_later(id.clone(), dir, record, shared.clone()));
            } else {
                patiently(record.forget()).await;
                reached(Failpoint::DestroyForgotten);
            }
        }
        clock.timings()
    }

    /// A VMM that cannot be killed may still use the slot: cut it off, and never give it to another.
    pub(super) fn abandon_slot(&mut self, shared: &Shared) {
        if let Some(slot) = self.slot.take() {
            drop(shared.slots.abandon(slot));
        }
    }
}

/// Blocking.
fn put_away(dir: &Path, group: Option<Cgroup>, keep_dir: bool) -> Result<(), String> {
    let emptied = group.map_or(Ok(()), Cgroup::destroy).map_err(|error| chain(&error));
    let removed = if keep_dir {
        warn!(dir = %dir.display(), "a sandbox's directory is kept until the next start");
        Ok(())
    } else {
        remove_dir(dir)
    };
    // What is left is not its user's any more, who will be the next VMM's.
    if (keep_dir || removed.is_err())
        && let Err(error) = chown(dir, Some(0), Some(0))
    {
        error!(dir = %dir.display(), %error, "what is left of a sandbox still belongs to its VMM's user");
    }
    emptied.and(removed)
}

/// Removes the cgroup called `name` with what is in it, and the directory; what is not there is fine. Blocking.
///
/// # Errors
/// What could not be removed, and why; it can be tried again.
pub(crate) fn remove(cgroups: &Cgroups, name: Option<&str>, dir: Option<&Path>) -> Result<(), String> {
    if let Some(group) = name.and_then(|name| cgroups.find(name).ok().flatten()) {
        group.destroy().map_err(|error| chain(&error))?;
    }
    dir.map_or(Ok(()), remove_dir)
}

fn remove_dir(dir: &Path) -> Result<(), String> {
    remove_all(dir).map_err(|error| format!("cannot remove {}: {error}", dir.display()))
}

/// Until nothing is left, or the server goes: then the next one finds the entry.
async fn remove_later(id: SandboxId, dir: Option<PathBuf>, record: Record, shared: Shared) {
    let mut pause = FIRST_PAUSE;
    loop {
        let is_last = tokio::select! {
            () = tokio::time::sleep(pause) => false,
            () = shared.stop.cancelled() => true,
        };
        let (limits, name, dir) = (shared.limits.clone(), id.to_string(), dir.clone());
        let removed = spawn_blocking(move || remove(limits.cgroups(), Some(&name), dir.as_deref())).await;
        match removed.unwrap_or_else(|panicked| Err(panicked.to_string())) {
            Ok(()) => break,
            Err(error) if is_last => {
                error!(sandbox_id = %id, error, "what a sandbox used stays until the next start");
                return;
            }
            Err(error) => debug!(sandbox_id = %id, error, "what a sandbox used still cannot be removed"),
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
    debug!(sandbox_id = %id, "nothing is left of the sandbox");
    patiently(record.forget()).await;
}
