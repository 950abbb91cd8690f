//! Whether the host has room for something nobody has asked for yet. Those who ask may use what is left here.

use rustix::fs::statvfs;

use crate::shared::Shared;

/// Memory left free, MiB, or one sixteenth of it if that is more.
const MEMORY_MIB: u64 = 512;
/// Disk left free, in multiples of what those who ask leave.
const DISK_RESERVES: u64 = 2;
/// Descriptors left free; a sandbox takes about a dozen.
const DESCRIPTORS: u64 = 256;

/// That one more sandbox may wait. Blocking, a millisecond.
///
/// # Errors
/// What there is too little of.
pub(super) fn check(shared: &Shared) -> Result<(), String> {
    let memory = manta_host::facts::mem_available_mib().ok_or("the host does not tell its free memory")?;
    let reserve = MEMORY_MIB.max(manta_host::facts::mem_mib() / 16);
    let needed = u64::from(shared.config.mem_mib);
    if memory < reserve + needed {
        return Err(format!("{memory} MiB of memory are free, of which {reserve} stay free"));
    }
    let disk = statvfs(&shared.config.work_dir).map_err(|error| format!("free disk space: {error}"))?;
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    let reserve = shared.config.disk_reserve_bytes.saturating_mul(DISK_RESERVES);
    if free < reserve {
        return Err(format!("{} MiB of disk are free, of which {} stay free", free >> 20, reserve >> 20));
    }
    let limit = manta_host::facts::open_files().soft.unwrap_or(u64::MAX);
    let open = std::fs::read_dir("/proc/self/fd").map_err(|error| format!("open descriptors: {error}"))?;
    let open = open.count() as u64;
    if open + DESCRIPTORS > limit {
        return Err(format!("{open} of {limit} descriptors are open, and {DESCRIPTORS} stay free"));
    }
    Ok(())
}
