//! What one sandbox may use of the network: settings and how they translate to token buckets. Does not enforce
//! anything; `slot_rules` does.

/// How many seconds' worth of a rate may be used at once: a command that is shorter is not slowed down.
const BURST_S: u64 = 5;
/// The smallest burst of bytes: a guest hands over segments of up to 64 KiB, which would never pass otherwise.
const MIN_BURST_BYTES: u64 = 256 * 1024;
/// As many new connections as may be open at once may be made within this time.
const TURNOVER_S: u32 = 10;

/// What one sandbox may use of the network. Nothing is limited by default.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NetLimits {
    /// Most open connections: TCP connections that are not closed on both sides, and pairs of addresses and ports (or
    /// of ICMP ids) that had a packet lately. In ten seconds as many new ones may be made. What exceeds either is
    /// dropped in the sandbox's namespace, so the host's table of connections has no entry for it.
    pub connections: Option<u32>,
    /// Bytes each way, KiB/s; five seconds' worth of it at once. What exceeds it is dropped.
    pub kib_per_s: Option<u32>,
    /// Packets each way, per second, as a guest hands them over: up to 64 KiB. Five seconds' worth of it at once.
    pub packets_per_s: Option<u32>,
}

/// A bucket of tokens: how fast it fills, and how many it holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Bucket {
    pub(super) per_s: u64,
    pub(super) burst: u32,
}

impl NetLimits {
    /// Of bytes, each way.
    pub(super) fn bytes(self) -> Option<Bucket> {
        let per_s = u64::from(self.kib_per_s?) * 1024;
        // nftables adds a second's worth by itself.
        Some(Bucket { per_s, burst: saturated(((BURST_S - 1) * per_s).max(MIN_BURST_BYTES)) })
    }

    /// Of packets, each way.
    pub(super) fn packets(self) -> Option<Bucket> {
        let per_s = u64::from(self.packets_per_s?);
        Some(Bucket { per_s, burst: saturated(BURST_S * per_s) })
    }

    /// Of new connections.
    pub(super) fn new_connections(self) -> Option<Bucket> {
        let most = self.connections?;
        Some(Bucket { per_s: u64::from((most / TURNOVER_S).max(1)), burst: most })
    }
}

fn saturated(tokens: u64) -> u32 {
    u32::try_from(tokens).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn five_seconds_worth_may_be_used_at_once() {
        let limits = NetLimits { kib_per_s: Some(1000), packets_per_s: Some(10), connections: None };
        assert_eq!(limits.bytes(), Some(Bucket { per_s: 1_024_000, burst: 4_096_000 }));
        assert_eq!(limits.packets(), Some(Bucket { per_s: 10, burst: 50 }));
        assert_eq!(limits.new_connections(), None);
    }

    #[test]
    fn the_smallest_and_largest_limits_let_something_through() {
        let smallest = NetLimits { kib_per_s: Some(1), packets_per_s: Some(1), connections: Some(1) };
        assert_eq!(smallest.bytes(), Some(Bucket { per_s: 1024, burst: 256 * 1024 }));
        assert_eq!(smallest.new_connections(), Some(Bucket { per_s: 1, burst: 1 }));
        let largest = NetLimits { kib_per_s: Some(u32::MAX), ..smallest };
        assert_eq!(largest.bytes().map(|bucket| bucket.burst), Some(u32::MAX));
    }
}
