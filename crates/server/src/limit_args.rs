//! Settings of what one sandbox may use of what all share: network and disks. Part of [`crate::args`].

use clap::Args;
use manta_host::net::NetLimits;
use manta_vmm::DiskLimits;

/// In each of them 0 is no limit.
#[derive(Debug, Clone, Args)]
pub(crate) struct LimitArgs {
    /// Connections a sandbox may have open at once; a tenth of it may begin each second, and all of it at once; 0: any number
    #[arg(
        long,
        env = "MANTA_NET_MAX_CONNECTIONS",
        value_name = "MANTA_NET_MAX_CONNECTIONS",
        default_value = "1024"
    )]
    net_max_connections: u32,
    /// KiB per second that a sandbox may send, and may receive; five seconds' worth at once; 0: any number
    #[arg(
        long,
        env = "MANTA_NET_MAX_KIB_PER_S",
        value_name = "MANTA_NET_MAX_KIB_PER_S",
        default_value = "0"
    )]
    net_max_kib_per_s: u32,
    /// Packets per second that a sandbox may send, and may receive; five seconds' worth at once; 0: any number
    #[arg(
        long,
        env = "MANTA_NET_MAX_PACKETS_PER_S",
        value_name = "MANTA_NET_MAX_PACKETS_PER_S",
        default_value = "0"
    )]
    net_max_packets_per_s: u32,
    /// KiB per second that a sandbox may read and write on each of its two disks; five seconds' worth at once; 0: any number
    #[arg(
        long,
        env = "MANTA_DISK_MAX_KIB_PER_S",
        value_name = "MANTA_DISK_MAX_KIB_PER_S",
        default_value = "0"
    )]
    disk_max_kib_per_s: u32,
    /// Reads and writes per second that a sandbox may do on each of its two disks; five seconds' worth at once; 0: any number
    #[arg(
        long,
        env = "MANTA_DISK_MAX_OPS_PER_S",
        value_name = "MANTA_DISK_MAX_OPS_PER_S",
        default_value = "0"
    )]
    disk_max_ops_per_s: u32,
}

impl LimitArgs {
    /// As the network takes them.
    pub(crate) fn network(&self) -> NetLimits {
        NetLimits {
            connections: limit(self.net_max_connections),
            kib_per_s: limit(self.net_max_kib_per_s),
            packets_per_s: limit(self.net_max_packets_per_s),
        }
    }

    /// As they are, with their names.
    pub(crate) fn settings(&self) -> [(&'static str, String); 5] {
        [
            ("MANTA_NET_MAX_CONNECTIONS", self.net_max_connections),
            ("MANTA_NET_MAX_KIB_PER_S", self.net_max_kib_per_s),
            ("MANTA_NET_MAX_PACKETS_PER_S", self.net_max_packets_per_s),
            ("MANTA_DISK_MAX_KIB_PER_S", self.disk_max_kib_per_s),
            ("MANTA_DISK_MAX_OPS_PER_S", self.disk_max_ops_per_s),
        ]
        .map(|(name, value)| (name, value.to_string()))
    }

    /// As the disks take them.
    pub(crate) fn disks(&self) -> DiskLimits {
        DiskLimits { kib_per_s: limit(self.disk_max_kib_per_s), ops_per_s: limit(self.disk_max_ops_per_s) }
    }
}

fn limit(setting: u32) -> Option<u32> {
    (setting != 0).then_some(setting)
}
