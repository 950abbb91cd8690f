//! Facts about this machine and this process, for `manta doctor`, for benchmark entries and for the guest's
//! command line. Changes nothing, but for the one limit it is asked to raise.

use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::OnceLock;

use rustix::fs::{Mode, OFlags};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::sys;

/// A resource limit of this process; `None` is unlimited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    /// What is enforced.
    pub soft: Option<u64>,
    /// What it can be raised to.
    pub hard: Option<u64>,
}

/// The processor's name, as `/proc/cpuinfo` has it.
#[must_use]
pub fn cpu_model() -> Option<String> {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = cpuinfo.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

/// What the processor can do, as `/proc/cpuinfo` names it, sorted; empty where that does not say.
#[must_use]
pub fn cpu_flags() -> Vec<String> {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = cpuinfo.lines().find_map(|line| line.strip_prefix("flags")?.split_once(':'));
    let mut flags: Vec<_> =
        line.map_or("", |(_, flags)| flags).split_whitespace().map(str::to_owned).collect();
    flags.sort_unstable();
    flags
}

/// A name for the time since the machine was started, which no other boot has.
#[must_use]
pub fn boot_id() -> Option<String> {
    Some(fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?.trim().to_owned())
}

/// The number of processors this process may use.
#[must_use]
pub fn cpus() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// The memory of the machine in MiB.
#[must_use]
pub fn mem_mib() -> u64 {
    let info = rustix::system::sysinfo();
    info.totalram as u64 * u64::from(info.mem_unit) / (1024 * 1024)
}

/// The memory that could be had without swapping (`MemAvailable` of `proc_meminfo(5)`), MiB.
#[must_use]
pub fn mem_available_mib() -> Option<u64> {
    let meminfo = fs::read_to_string("/proc/meminfo").ok()?;
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kib / 1024)
}

/// The release of the running kernel, such as `6.12.48+deb13-amd64`.
#[must_use]
pub fn kernel_release() -> String {
    rustix::system::uname().release().to_string_lossy().into_owned()
}

/// The frequency of the time stamp counter in kHz, measured once, over 20 ms, against the clock that nobody
/// adjusts (`CLOCK_MONOTONIC_RAW`). `None` on processors without one.
#[must_use]
pub fn tsc_khz() -> Option<u64> {
    static KHZ: OnceLock<Option<u64>> = OnceLock::new();
    *KHZ.get_or_init(sys::measure_tsc_khz)
}

/// How many files this process may have open (`RLIMIT_NOFILE`).
#[must_use]
pub fn open_files() -> Limit {
    limit(Resource::Nofile)
}

/// How many files this process has open; before Linux 6.2, which tells by the size of `/proc/self/fd`, it is as many at
/// least: all below the number that the next one gets. A microsecond or two.
///
/// # Errors
/// When none can be opened.
pub fn open_files_at_least() -> io::Result<u64> {
    match fs::metadata("/proc/self/fd")?.len() {
        0 => {
            let next = rustix::fs::open("/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
            Ok(u64::try_from(next.as_raw_fd()).unwrap_or(0))
        }
        count => Ok(count),
    }
}

/// How many processes this user may have (`RLIMIT_NPROC`).
#[must_use]
pub fn processes() -> Limit {
    limit(Resource::Nproc)
}

/// Raises the number of files this process may have open as far as it is allowed to, and tells the outcome.
///
/// # Errors
/// When the kernel refuses.
pub fn raise_nofile() -> io::Result<Limit> {
    let now = getrlimit(Resource::Nofile);
    if now.current != now.maximum {
        setrlimit(Resource::Nofile, Rlimit { current: now.maximum, maximum: now.maximum })?;
    }
    Ok(open_files())
}

fn limit(resource: Resource) -> Limit {
    let limit = getrlimit(resource);
    Limit { soft: limit.current, hard: limit.maximum }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_is_described() {
        assert!(cpu_model().is_some_and(|model| !model.is_empty()));
        assert!(cpus() >= 1);
        let flags = cpu_flags();
        assert!(flags.is_sorted() && flags.iter().any(|flag| flag == "fpu"), "{flags:?}");
        assert!(mem_mib() > 256);
        assert!(mem_available_mib().is_some_and(|free| (1..=mem_mib()).contains(&free)));
        assert!(kernel_release().starts_with(|first: char| first.is_ascii_digit()));
    }

    #[test]
    fn two_measurements_of_the_tsc_agree() {
        let (first, second) = (sys::measure_tsc_khz().unwrap(), sys::measure_tsc_khz().unwrap());
        assert!((100_000..10_000_000).contains(&first), "{first} kHz");
        assert!(first.abs_diff(second) * 1000 < first, "{first} and {second} kHz");
    }

    #[test]
    fn open_files_are_counted() {
        let held: Vec<_> = (0..500).map(|_| std::fs::File::open("/").unwrap()).collect();
        // Other tests of this process open and close files meanwhile.
        let counted = open_files_at_least().unwrap();
        assert!((400..1000).contains(&counted), "{counted} with {}", held.len());
    }

    #[test]
    fn the_limit_on_open_files_is_raised_to_what_is_allowed() {
        let raised = raise_nofile().unwrap();
        assert_eq!(raised.soft, raised.hard);
    }
}
