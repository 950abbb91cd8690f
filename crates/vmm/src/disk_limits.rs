//! What a guest may use of its disks. A setting of the moment, no property of the machine: both drivers set it when a
//! VM starts, whether it boots or is restored, and whatever a snapshot says.

/// Seconds' worth of a rate that may be used at once: a command that is shorter is not slowed down.
pub(crate) const BURST_S: u64 = 5;

/// What a guest may use of each of its disks, reads and writes together. Nothing is limited by default.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DiskLimits {
    /// KiB per second; five seconds' worth of it at once.
    pub kib_per_s: Option<u32>,
    /// Requests per second; five seconds' worth of it at once.
    pub ops_per_s: Option<u32>,
}

impl DiskLimits {
    /// Bytes per second; 0: any.
    pub(crate) fn bytes_per_s(self) -> u64 {
        u64::from(self.kib_per_s.unwrap_or(0)) * 1024
    }

    /// Requests per second; 0: any.
    pub(crate) fn requests_per_s(self) -> u64 {
        u64::from(self.ops_per_s.unwrap_or(0))
    }
}
