//! What the VMM of one sandbox may use of the host: how much that is, and the cgroup that holds it to it. The
//! groups themselves are `manta_host::cgroup`'s.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use manta_api::SandboxId;
use manta_host::{Cgroup, CgroupLimits, Cgroups};
use tracing::{debug, info};

use crate::config::{CgroupMode, EngineConfig};
use crate::error::{EngineError, StartError, chain};

/// Memory of a VMM beside its guest's, MiB: QEMU's cache of translated code is 64, its own data up to 60, and what
/// the kernel caches of the files it reads counts, too.
const VMM_MIB: u64 = 192;
/// And one part of so many of the guest's: page tables, and what the VMM knows of each page.
const GUEST_PARTS: u64 = 32;
/// Threads of a VMM beside those of its processors. QEMU starts up to 64 for its disks.
const VMM_THREADS: u32 = 128;

/// What VMMs may use, and their groups.
#[derive(Debug)]
pub(crate) struct Limits {
    each: CgroupLimits,
    cgroups: Cgroups,
}

impl Limits {
    /// Finds or makes the server's tree of groups. What an earlier server left in it stays.
    pub(crate) fn set_up(config: &EngineConfig) -> Result<Self, StartError> {
        let each = CgroupLimits {
            memory_bytes: (u64::from(config.mem_mib) * (GUEST_PARTS + 1) / GUEST_PARTS + VMM_MIB) << 20,
            cpu_percent: config.cpu_max_percent,
            processes: VMM_THREADS + u32::from(config.vcpus),
        };
        let cgroups = match config.cgroup_mode {
            CgroupMode::Off => Cgroups::off(&tree_name(&config.work_dir)?),
            CgroupMode::Auto | CgroupMode::Required => {
                Cgroups::set_up(&tree_name(&config.work_dir)?, config.cpu_weight, &each)
            }
        };
        let limits = Self { each, cgroups };
        let missing = limits.cgroups.missing();
        if config.cgroup_mode == CgroupMode::Required && !missing.is_empty() {
            let missing = missing.join("; ");
            return Err(StartError::host("limit VMMs as MANTA_CGROUP=required demands")(missing));
        }
        info!(?each, dirs = ?limits.cgroups.dirs(), "limits of a VMM");
        Ok(limits)
    }

    /// The group of a new sandbox's VMM.
    pub(crate) fn group(&self, id: &SandboxId) -> Result<Cgroup, EngineError> {
        self.cgroups
            .create(id.as_str(), &self.each)
            .map_err(|error| EngineError::Host { stage: "making the cgroup", reason: chain(&error) })
    }

    /// The tree.
    pub(crate) fn cgroups(&self) -> &Cgroups {
        &self.cgroups
    }

    /// Why a VMM is dead, if it was killed for using too much memory.
    pub(crate) fn cause_of_death(&self, group: &Cgroup) -> Option<String> {
        if group.oom_kills() == 0 {
            return None;
        }
        // The group's, which may have been made with other settings than today's.
        let limit = group.memory_limit().map_or("limit".to_owned(), |bytes| format!("{} MiB", bytes >> 20));
        Some(format!("the host's kernel killed the VMM, which used more than its {limit} of memory"))
    }
}

impl Drop for Limits {
    /// For a start that fails later. Does nothing to a tree that an earlier server left something in, or that is gone.
    fn drop(&mut self) {
        if let Err(error) = self.cgroups.tear_down() {
            debug!(error = chain(&error), "a tree of cgroups stays");
        }
    }
}

/// The same for every server of a work directory, and of no other directory of this host; also under another path,
/// and at the next start.
fn tree_name(work_dir: &Path) -> Result<String, StartError> {
    let found = fs::metadata(work_dir).map_err(|source| StartError::Path {
        action: "look at",
        path: work_dir.to_owned(),
        source,
    })?;
    Ok(format!("manta-{:x}-{:x}", found.dev(), found.ino()))
}
