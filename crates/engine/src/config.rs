//! What the engine needs to be told; validated by whoever reads it from the outside.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use manta_host::disk::CloneMode;
use manta_host::net::NetLimits;
use manta_vmm::{DiskLimits, Vmm};

/// What a VMM takes beside its guest's memory, MiB.
pub const VMM_OVERHEAD_MIB: u64 = 48;

/// Memory committed to a sandbox whose guest has so much, both MiB.
#[must_use]
pub fn sandbox_mib(mem_mib: u32) -> u64 {
    u64::from(mem_mib) + VMM_OVERHEAD_MIB
}

/// Whether VMMs get cgroups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CgroupMode {
    /// As far as the host has them; what is missing is told.
    Auto,
    /// The server does not start if a limit is missing.
    Required,
    /// Never.
    Off,
}

/// Settings of an [`crate::Engine`].
#[derive(Debug, Clone)]
pub struct EngineConfig {
    /// Runs the microVMs.
    pub vmm: Arc<dyn Vmm>,
    /// Uncompressed ELF kernel for all guests.
    pub kernel: PathBuf,
    /// Read-only root image shared by all guests; a file or a block device.
    pub rootfs: PathBuf,
    /// Static agent binary, PID 1 of every guest.
    pub agent: PathBuf,
    /// Everything the engine writes is below this directory.
    pub work_dir: PathBuf,
    /// Virtual processors of a guest.
    pub vcpus: u8,
    /// Memory of a guest, MiB.
    pub mem_mib: u32,
    /// Size of a guest's own disk, MiB; sparse on the host.
    pub disk_mib: u32,
    /// What a guest may use of each of its disks.
    pub disk_limits: DiskLimits,
    /// Whether VMMs get cgroups.
    pub cgroup_mode: CgroupMode,
    /// Time of processors that a VMM may take, in percent of one.
    pub cpu_max_percent: u32,
    /// Weight of all VMMs together against the rest of the host, 1 to 10,000; 100 is usual.
    pub cpu_weight: u32,
    /// How a guest's disk is cloned from the empty one or from a snapshot's.
    pub clone_mode: CloneMode,
    /// Interface through which guests reach the internet; none: they reach nothing.
    pub egress: Option<String>,
    /// What a guest may use of the network.
    pub net_limits: NetLimits,
    /// Name servers for guests.
    pub dns: Vec<Ipv4Addr>,
    /// Network slots kept ready.
    pub netns_pool_size: usize,
    /// Whether new sandboxes are restored from a golden snapshot; else each boots.
    pub golden_snapshot: bool,
    /// Most snapshots kept.
    pub max_snapshots: usize,
    /// Most bytes they may take on the disk, together.
    pub max_snapshot_bytes: u64,
    /// VMM processes kept waiting for the golden snapshot.
    pub vmm_pool_size: usize,
    /// Sandboxes kept waiting to be claimed.
    pub warm_pool_size: usize,
    /// None of them waits longer than this.
    pub warm_max_age: Duration,
    /// MicroVMs started at once.
    pub start_width: usize,
    /// Longest that a request waits for its turn to start one.
    pub queue_timeout: Duration,
    /// Most sandboxes at once.
    pub max_sandboxes: usize,
    /// Most memory committed to sandboxes, MiB: to each its guest's and [`VMM_OVERHEAD_MIB`].
    pub max_memory_mib: u64,
    /// Disk space of the work directory that stays free, bytes: no sandbox and no snapshot is made below it.
    pub disk_reserve_bytes: u64,
    /// Lifetime of a sandbox whose creator asks for none; none: without a limit.
    pub sandbox_timeout: Option<Duration>,
    /// Longest lifetime that may be asked for; none: [`crate::LONGEST_LIFETIME`].
    pub sandbox_timeout_max: Option<Duration>,
    /// vsock port of the agent.
    pub vsock_port: u32,
    /// From the start of the microVM to the agent's first answer.
    pub agent_wait_timeout: Duration,
    /// To connect again to the agent of a running guest, up to its hello.
    pub agent_dial_timeout: Duration,
    /// For the agent to answer a request that takes it no time; also the grace after an exec's own
    /// time limit.
    pub agent_call_timeout: Duration,
    /// Time limit of a command that brings none.
    pub exec_timeout: Duration,
    /// Longest time limit a command may ask for.
    pub exec_timeout_max: Duration,
    /// Bytes of standard output kept, and of standard error.
    pub output_limit: u64,
    /// How long a destroy lets running commands finish.
    pub destroy_drain: Duration,
    /// Keep the directory of a sandbox that could not be created, with its console text.
    pub keep_failed: bool,
}
