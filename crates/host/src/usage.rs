//! What this process uses of the machine, now, for metrics. Does not count its child processes.

use std::fs;
use std::io;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// What this process uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Processor time of all its threads since it began.
    pub cpu: Duration,
    /// Memory that is in RAM (`VmRSS`), bytes.
    pub resident_bytes: u64,
    /// Threads.
    pub threads: u64,
    /// Open file descriptors.
    pub descriptors: u64,
}

/// What this process uses now. Some 0.1 ms and more with many descriptors: they are counted.
///
/// # Errors
/// When procfs cannot be read, or is not as `proc_pid_status(5)` has it.
pub fn usage() -> io::Result<Usage> {
    let status = fs::read_to_string("/proc/self/status")?;
    let cpu = clock_gettime(ClockId::ProcessCPUTime);
    Ok(Usage {
        cpu: Duration::try_from(cpu).unwrap_or_default(),
        resident_bytes: field(&status, "VmRSS:")? * 1024,
        threads: field(&status, "Threads:")?,
        // One of them is the directory that is being read.
        descriptors: fs::read_dir("/proc/self/fd")?.count().saturating_sub(1) as u64,
    })
}

/// The first number behind a name.
fn field(status: &str, name: &str) -> io::Result<u64> {
    let value =
        status.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next()?.parse().ok());
    value
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("/proc/self/status has no {name}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_this_process_uses_is_seen_to_grow() {
        let before = usage().unwrap();
        assert!(before.threads >= 1 && before.descriptors >= 3, "{before:?}");
        let filled = vec![1u8; 32 << 20];
        let files: Vec<_> = (0..100).map(|_| fs::File::open("/proc/self/status").unwrap()).collect();
        while usage().unwrap().cpu <= before.cpu {}
        let after = usage().unwrap();
        // Other tests of this process come and go meanwhile.
        assert!(
            after.resident_bytes > before.resident_bytes + (filled.len() as u64) / 2,
            "{before:?} {after:?}"
        );
        assert!(after.descriptors > before.descriptors + files.len() as u64 / 2, "{before:?} {after:?}");
    }

    #[test]
    fn a_field_that_is_missing_or_no_number_is_an_error() {
        let status = "Name:\tmanta\nVmRSS:\t    1234 kB\nThreads:\tmany\n";
        assert_eq!(field(status, "VmRSS:").unwrap(), 1234);
        assert!(field(status, "Threads:").is_err());
        assert!(field(status, "VmPeak:").is_err());
    }
}
