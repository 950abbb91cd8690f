//! What is to become of what a killed server left. Looks at the journal, at the processes and at the directories;
//! touches nothing, so that a start that fails later has cost no sandbox.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use manta_api::SandboxId;
use manta_host::Cgroups;
use manta_host::process::{ProcessId, Stray, processes_in};
use tracing::{error, info};

use crate::ending::Ending;
use crate::journal::{Row, Step};
use crate::slots::INDICES;

/// Everything that was left.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    /// Sandboxes to take back.
    pub(crate) adopt: Vec<Row>,
    pub(crate) sweep: Vec<Remains>,
}

/// What is to be removed under one name. Any of it may be missing.
#[derive(Debug)]
pub(crate) struct Remains {
    /// None when its name is none of ours.
    pub(crate) id: Option<SandboxId>,
    pub(crate) row: Option<Row>,
    /// None when it belongs to a sandbox that is taken back.
    pub(crate) dir: Option<PathBuf>,
    pub(crate) strays: Vec<Stray>,
    /// What is told of it, if anybody may ask for it.
    pub(crate) ending: Option<Ending>,
}

/// What is to become of one sandbox.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Adopt,
    Sweep(Option<Ending>),
}

impl Plan {
    /// Looks at what there is. Blocking.
    ///
    /// # Errors
    /// When processes or directories cannot be listed.
    pub(crate) fn make(
        rows: Vec<Row>,
        sandboxes: &Path,
        boot_id: &str,
        now_unix_ms: u64,
    ) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        let mut plan = Self::default();
        let mut remains: BTreeMap<OsString, Remains> = BTreeMap::new();
        // With the number of its VMM.
        let mut kept = BTreeMap::new();
        for row in rows {
            let name = OsString::from(row.id.as_str());
            let process = row.process.map(|vmm| ProcessId { pid: vmm.pid, start_ticks: vmm.start_ticks });
            let is_alive = process.is_some_and(|process| process.is_alive());
            match judge(&row, boot_id, now_unix_ms, is_alive) {
                Verdict::Adopt => {
                    kept.insert(name, row.process.map(|vmm| vmm.pid));
                    plan.adopt.push(row);
                }
                Verdict::Sweep(ending) => {
                    let dir = Some(sandboxes.join(&name));
                    let id = Some(row.id.clone());
                    remains.insert(name, Remains { id, row: Some(row), dir, strays: Vec::new(), ending });
                }
            }
        }
        let unknown = |name: &OsString, dir: Option<PathBuf>| {
            // Of one that is taken back a process may be too many.
            let id = name.to_str().and_then(|name| name.parse().ok()).filter(|_| !kept.contains_key(name));
            Remains { id, row: None, dir, strays: Vec::new(), ending: None }
        };
        for entry in fs::read_dir(sandboxes)? {
            let name = entry?.file_name();
            if !kept.contains_key(&name) {
                let dir = Some(sandboxes.join(&name));
                remains.entry(name.clone()).or_insert_with(|| unknown(&name, dir));
            }
        }
        let root = sandboxes.canonicalize()?;
        for stray in processes_in(sandboxes)? {
            let below = stray.dir().strip_prefix(&root).unwrap_or(stray.dir());
            let name = below.iter().next().unwrap_or_default().to_owned();
            if kept.get(&name) != Some(&Some(stray.pid())) {
                remains.entry(name.clone()).or_insert_with(|| unknown(&name, None)).strays.push(stray);
            }
        }
        plan.sweep = remains.into_values().collect();
        Ok(plan)
    }

    /// Numbers of the slots of what is to be taken back.
    pub(crate) fn kept_slots(&self) -> BTreeSet<u16> {
        self.adopt.iter().map(|row| row.slot).collect()
    }

    /// Numbers of all slots that may still be somebody's.
    pub(crate) fn taken_slots(&self) -> BTreeSet<u16> {
        let swept = self.sweep.iter().filter_map(|remains| Some(remains.row.as_ref()?.slot));
        self.kept_slots().into_iter().chain(swept).collect()
    }

    /// Removes the cgroups of all that is not taken back, with what is in them. Blocking, as long as VMMs take to end.
    pub(crate) fn sweep_groups(&self, cgroups: &Cgroups) {
        let kept = self.adopt.iter().map(|row| row.id.to_string()).collect();
        match cgroups.sweep(&kept) {
            Ok(names) => {
                names.iter().for_each(|name| info!(name, "removed a cgroup that a killed server left"))
            }
            Err(error) => {
                error!(error = crate::error::chain(&error), "a cgroup that a killed server left stays")
            }
        }
    }

    /// A VMM other than `ours`, and how many sandboxes that are to be taken back run on it.
    pub(crate) fn other_vmm(&self, ours: &str) -> Option<(String, usize)> {
        let theirs = |row: &Row| Some(row.machine.as_ref()?.vmm.clone());
        let mut others = self.adopt.iter().filter_map(theirs).filter(|theirs| theirs != ours);
        let first = others.next()?;
        Some((first, 1 + others.count()))
    }
}

/// A sandbox is taken back if it was handed out, is wanted, and has a VMM of this boot of the host.
fn judge(row: &Row, boot_id: &str, now_unix_ms: u64, is_alive: bool) -> Verdict {
    let lost = |reason: &str| Verdict::Sweep(Some(Ending::Lost(reason.to_owned())));
    match row.step {
        Step::Making | Step::Waiting => Verdict::Sweep(row.ending.clone()),
        Step::Ending => Verdict::Sweep(Some(row.ending.clone().unwrap_or(Ending::Requested))),
        Step::Handed if row.expires_unix_ms.is_some_and(|end| end <= now_unix_ms) => {
            Verdict::Sweep(Some(Ending::Expired))
        }
        Step::Handed if row.boot_id != boot_id => lost("the host was restarted"),
        Step::Handed if !is_alive => lost("its microVM had ended when the next one came"),
        Step::Handed
            if row.slot >= INDICES || row.info.is_none() || row.disk.is_none() || row.machine.is_none() =>
        {
            lost("its entry in the journal is incomplete")
        }
        Step::Handed => Verdict::Adopt,
    }
}
