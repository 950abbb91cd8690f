//! The limits of a group as files: which of them the kernel offers here, and writing them. Pure but for that.

use std::fs;
use std::io;
use std::path::Path;

use super::place::{Controller, Hierarchy, Version};
use super::{CgroupError, CgroupLimits, error};

/// Of the time that processors give to a group, microseconds; the kernel's own default.
const CPU_PERIOD_US: u64 = 100_000;

/// One limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Control {
    Memory,
    Swap,
    Cpu,
    Processes,
}

impl Control {
    fn of(controller: Controller) -> &'static [Self] {
        match controller {
            // In this order: version 1 allows no sum of memory and swap below the limit of memory.
            Controller::Memory => &[Self::Memory, Self::Swap],
            Controller::Cpu => &[Self::Cpu],
            Controller::Pids => &[Self::Processes],
        }
    }

    /// For people: what it limits.
    pub(super) fn what(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Swap => "use of swap",
            Self::Cpu => "use of processors",
            Self::Processes => "number of processes",
        }
    }

    fn file(self, version: Version) -> &'static str {
        match (self, version) {
            (Self::Memory, Version::V1) => "memory.limit_in_bytes",
            (Self::Memory, Version::V2) => "memory.max",
            (Self::Swap, Version::V1) => "memory.memsw.limit_in_bytes",
            (Self::Swap, Version::V2) => "memory.swap.max",
            (Self::Cpu, Version::V1) => "cpu.cfs_quota_us",
            (Self::Cpu, Version::V2) => "cpu.max",
            (Self::Processes, _) => "pids.max",
        }
    }

    fn value(self, version: Version, limits: &CgroupLimits) -> String {
        let quota = u64::from(limits.cpu_percent) * CPU_PERIOD_US / 100;
        match (self, version) {
            (Self::Memory, _) | (Self::Swap, Version::V1) => limits.memory_bytes.to_string(),
            (Self::Swap, Version::V2) => "0".to_owned(),
            (Self::Cpu, Version::V1) => quota.to_string(),
            (Self::Cpu, Version::V2) => format!("{quota} {CPU_PERIOD_US}"),
            (Self::Processes, _) => limits.processes.to_string(),
        }
    }

    fn write(self, dir: &Path, version: Version, limits: &CgroupLimits) -> Result<(), CgroupError> {
        let path = dir.join(self.file(version));
        fs::write(&path, self.value(version, limits)).map_err(error("write", &path))
    }
}

/// The limits that a hierarchy has.
#[derive(Debug)]
pub(super) struct Controls {
    version: Version,
    here: Vec<Control>,
}

impl Controls {
    /// Tries each of these limits on a group; gives those that the kernel refused, too: version 1 takes no more than
    /// groups above have.
    pub(super) fn try_on(
        dir: &Path,
        hierarchy: &Hierarchy,
        limits: &CgroupLimits,
    ) -> (Self, Vec<(Control, CgroupError)>) {
        let version = hierarchy.version;
        let (mut here, mut refused) = (Vec::new(), Vec::new());
        for control in hierarchy.controllers.iter().flat_map(|controller| Control::of(*controller)) {
            match control.write(dir, version, limits) {
                Ok(()) => here.push(*control),
                // Nothing is lost by that.
                Err(_) if *control == Control::Swap && no_swap() => {}
                Err(error) => refused.push((*control, error)),
            }
        }
        (Self { version, here }, refused)
    }

    /// Writes all of them.
    pub(super) fn apply(&self, dir: &Path, limits: &CgroupLimits) -> Result<(), CgroupError> {
        self.here.iter().try_for_each(|control| control.write(dir, self.version, limits))
    }
}

/// Whether the host has none: then a kernel may lack the limit, too.
fn no_swap() -> bool {
    let swaps: io::Result<String> = fs::read_to_string("/proc/swaps");
    swaps.is_ok_and(|swaps| swaps.lines().count() <= 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_written_as_each_version_takes_them() {
        let limits = CgroupLimits { memory_bytes: 1 << 30, cpu_percent: 150, processes: 70 };
        let all = [Control::Memory, Control::Swap, Control::Cpu, Control::Processes];
        let written = |version| {
            all.map(|control| format!("{}={}", control.file(version), control.value(version, &limits)))
        };
        assert_eq!(
            written(Version::V2),
            ["memory.max=1073741824", "memory.swap.max=0", "cpu.max=150000 100000", "pids.max=70"]
        );
        assert_eq!(
            written(Version::V1),
            [
                "memory.limit_in_bytes=1073741824",
                "memory.memsw.limit_in_bytes=1073741824",
                "cpu.cfs_quota_us=150000",
                "pids.max=70"
            ]
        );
    }
}
