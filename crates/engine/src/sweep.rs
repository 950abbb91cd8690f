//! At start: removes what a server that was killed left behind. A VMM is found by its working
//! directory, which the kernel keeps and nobody else's process has; so no pid is ever guessed.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Duration;

use manta_api::{Event, EventKind, SandboxId};
use manta_host::net::sweep_network;
use manta_host::process::processes_in;
use manta_host::{Cgroup, Cgroups};
use tracing::info;

use crate::caller::Caller;
use crate::dirs::remove_dir;
use crate::events::Events;

/// How long a killed VMM may take to be gone.
const KILL_LIMIT: Duration = Duration::from_secs(10);

/// Removes left-over VMMs, cgroups with all that is in them, network and directories, in this order.
pub(crate) fn sweep(
    sandboxes: &Path,
    cgroups: &Cgroups,
    events: &Events,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    for stray in processes_in(sandboxes)? {
        info!(pid = stray.pid(), "killing a microVM that a killed server left behind");
        // It may be in the tree of a server that was started elsewhere.
        let group = cgroups.of_process(stray.pid()).ok().flatten();
        stray.kill_and_wait(KILL_LIMIT)?;
        group.map_or(Ok(()), Cgroup::destroy)?;
    }
    for name in cgroups.sweep(&BTreeSet::new())? {
        info!(name, "removed a cgroup that a killed server left behind");
    }
    sweep_network(&[])?;
    for entry in fs::read_dir(sandboxes)? {
        let dir = entry?.path();
        info!(dir = %dir.display(), "removing a directory that a killed server left behind");
        remove_dir(&dir)?;
        // Each has the directory of its name, those that waited for the killed server too.
        let id =
            dir.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse::<SandboxId>().ok());
        if let Some(id) = id {
            let reason = Some("left_behind".to_owned());
            let who = Caller::Server.who();
            events.emit(Event { who, reason, ..Event::new(EventKind::Swept, Some(id)) });
        }
    }
    Ok(())
}
