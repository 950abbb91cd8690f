//! `GET /healthz`: whether the server works, and the conditions it works under.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The server's own account of itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Health {
    /// In one word.
    pub status: HealthStatus,
    /// What is degraded, and what to do about it; empty when all is well.
    pub degraded: Vec<String>,
    /// Manta's version.
    pub version: String,
    /// What runs the microVMs.
    pub vmm: VmmInfo,
    /// Sandboxes that exist.
    pub sandboxes: usize,
    /// How many may exist.
    pub max_sandboxes: usize,
    /// What waits for those who come; absent from older servers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pools: Option<Pools>,
    /// The machine, for whoever records a measurement.
    pub host: HostConditions,
    /// The settings in force, by the names of their environment variables.
    pub settings: BTreeMap<String, String>,
}

/// See [`Health`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum HealthStatus {
    /// Everything works.
    Ok,
    /// It serves, with something missing.
    Degraded,
}

/// What is made ahead of time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Pools {
    /// Whole sandboxes: restored, exercised, at rest. A create that claims one is a hit.
    pub warm: PoolInfo,
    /// VMM processes that wait to load the golden snapshot, for creates that find no warm sandbox.
    pub vmms: PoolInfo,
    /// Network slots.
    pub slots: PoolInfo,
}

/// One pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PoolInfo {
    /// What waits now.
    pub depth: usize,
    /// What should.
    pub target: usize,
    /// Claims that found something, since the server's start.
    pub hits: u64,
    /// Claims that did not.
    pub misses: u64,
    /// Median time to make one, of the last 64, milliseconds; absent before the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refill_ms_p50: Option<u64>,
}

/// Which VMM, and how it runs guests.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VmmInfo {
    /// `qemu` or `firecracker`.
    pub name: String,
    /// As the program reports it.
    pub version: String,
    /// `kvm` or `tcg`.
    pub accelerator: String,
    /// Why this one was chosen.
    pub reason: String,
}

/// The machine under the server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HostConditions {
    /// Processor model.
    pub cpu: String,
    /// Processors usable by the server.
    pub cpus: usize,
    /// Memory, MiB.
    pub mem_mib: u64,
    /// Kernel release.
    pub kernel: String,
    /// File system type of the work directory.
    pub filesystem: String,
    /// Block device of the work directory.
    pub storage: String,
}
