//! What a server and its VMMs take of the machine, from `/proc`.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context, Result};
use serde_json::{Value, json};

/// What one process holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Held {
    pub(super) rss_kib: u64,
    pub(super) fds: usize,
    pub(super) threads: u64,
}

impl Held {
    pub(super) fn by(pid: i32) -> Result<Self> {
        let path = format!("/proc/{pid}/status");
        let status = fs::read_to_string(&path).context(path)?;
        let number = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            line.and_then(|value| value.split_whitespace().next()?.parse().ok())
                .with_context(|| name.to_owned())
        };
        Ok(Self {
            rss_kib: number("VmRSS")?,
            fds: fs::read_dir(format!("/proc/{pid}/fd"))?.count(),
            threads: number("Threads")?,
        })
    }

    pub(super) fn json(self) -> Value {
        json!({"rss_kib": self.rss_kib, "fds": self.fds, "threads": self.threads})
    }
}

/// Processor time of a process and all below it, ended ones included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Family {
    /// Processes below it.
    pub(super) children: usize,
    ticks: u64,
}

/// The fields of `/proc/PID/stat` that matter here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stat {
    parent: i32,
    /// Its own, in user and kernel mode.
    own_ticks: u64,
    /// Of its children that were waited for.
    reaped_ticks: u64,
}

impl Family {
    /// # Errors
    /// If there is no such process.
    pub(super) fn of(pid: i32) -> Result<Self> {
        let ids = fs::read_dir("/proc")?.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        let stat = |id: i32| Some((id, Stat::parse(&fs::read_to_string(format!("/proc/{id}/stat")).ok()?)?));
        Self::among(&ids.filter_map(stat).collect(), pid).with_context(|| format!("no process {pid}"))
    }

    fn among(all: &BTreeMap<i32, Stat>, pid: i32) -> Option<Self> {
        let root = all.get(&pid)?;
        let mut family = Self { children: 0, ticks: root.own_ticks + root.reaped_ticks };
        let mut parents = vec![pid];
        while let Some(parent) = parents.pop() {
            for (child, stat) in all.iter().filter(|(_, stat)| stat.parent == parent) {
                family.children += 1;
                family.ticks += stat.own_ticks + stat.reaped_ticks;
                parents.push(*child);
            }
        }
        Some(family)
    }

    /// Seconds of processor time since `earlier`.
    pub(super) fn cpu_s_since(self, earlier: Self) -> f64 {
        self.ticks.saturating_sub(earlier.ticks) as f64 / rustix::param::clock_ticks_per_second() as f64
    }
}

impl Stat {
    fn parse(text: &str) -> Option<Self> {
        // The name, in parentheses, may have spaces and parentheses of its own.
        let fields: Vec<_> = text.rsplit_once(')')?.1.split_whitespace().collect();
        let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
        Some(Self {
            parent: fields.get(1)?.parse().ok()?,
            own_ticks: number(14)? + number(15)?,
            reaped_ticks: number(16)? + number(17)?,
        })
    }
}

/// Memory that new processes can have, MiB.
pub(super) fn available_mib() -> Result<u64> {
    let meminfo = fs::read_to_string("/proc/meminfo").context("/proc/meminfo")?;
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|value| value.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    Ok(kib.context("MemAvailable")? / 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stat_line_is_read_whatever_the_process_is_called() {
        let line = "42 (a) b) (c) S 7 42 42 0 -1 4194560 9 0 0 0 11 13 17 19 20 0 1 0 5 6 7";
        let stat = Stat { parent: 7, own_ticks: 24, reaped_ticks: 36 };
        assert_eq!(Stat::parse(line), Some(stat));
        assert_eq!(Stat::parse("42 (a"), None);
        assert_eq!(Stat::parse("42 (a) S 7"), None);
    }

    #[test]
    fn a_family_is_all_below_and_nobody_else() {
        let stat = |parent, own_ticks, reaped_ticks| Stat { parent, own_ticks, reaped_ticks };
        let all = BTreeMap::from([
            (1, stat(0, 1000, 1000)),
            (5, stat(1, 1, 10)),
            (3, stat(5, 2, 0)),
            (9, stat(3, 4, 0)),
            (8, stat(1, 1000, 0)),
        ]);
        assert_eq!(Family::among(&all, 5), Some(Family { children: 2, ticks: 17 }));
        assert_eq!(Family::among(&all, 2), None);
    }

    #[test]
    fn this_process_holds_something() {
        let held = Held::by(std::process::id().try_into().unwrap()).unwrap();
        assert!(held.rss_kib > 0 && held.fds > 2 && held.threads > 0, "{held:?}");
        assert!(available_mib().unwrap() > 0);
    }
}
