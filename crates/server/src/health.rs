//! `GET /healthz`: whether all is well, and the conditions under which measurements were made.

use std::collections::BTreeMap;

use axum::extract::State;
use manta_api::{Health, HealthStatus, HostConditions, PoolInfo, Pools, VmmInfo};
use manta_engine::PoolStatus;
use manta_host::facts;
use manta_host::mounts::filesystem_of;

use crate::args::ServerArgs;
use crate::listeners::in_clear;
use crate::routes::AppState;
use crate::run::{max_memory_mib, start_width, vmm_pool_size, warm_pool_size};

/// What does not change while the server runs.
#[derive(Debug)]
pub(crate) struct Conditions {
    vmm: VmmInfo,
    host: HostConditions,
    settings: BTreeMap<String, String>,
    /// What the listeners lack.
    degraded: Vec<String>,
}

impl Conditions {
    /// Reads them from the machine.
    pub(crate) fn read(
        args: &ServerArgs,
        vmm: &manta_vmm::VmmInfo,
        reason: String,
        iface: Option<&str>,
    ) -> Self {
        let filesystem = filesystem_of(&args.work_dir).ok();
        Self {
            vmm: VmmInfo {
                name: vmm.kind.to_string(),
                version: vmm.version.clone(),
                accelerator: vmm.accelerator.to_string(),
                reason,
            },
            host: HostConditions {
                cpu: facts::cpu_model().unwrap_or_else(unknown),
                cpus: facts::cpus(),
                mem_mib: facts::mem_mib(),
                kernel: facts::kernel_release(),
                filesystem: filesystem.as_ref().map_or_else(unknown, |found| found.kind.clone()),
                storage: filesystem.map_or_else(unknown, |found| found.device),
            },
            settings: settings(args, iface),
            degraded: in_clear(args).into_iter().collect(),
        }
    }
}

/// The settings that bear on measurements.
fn settings(args: &ServerArgs, iface: Option<&str>) -> BTreeMap<String, String> {
    let clone_mode = match args.rootfs_clone_mode {
        crate::args::RootfsCloneMode::Auto => "auto",
        crate::args::RootfsCloneMode::ReflinkRequired => "reflink-required",
    };
    [
        ("MANTA_VCPUS", args.vcpus.to_string()),
        ("MANTA_MEM_MIB", args.mem_mib.to_string()),
        ("MANTA_DISK_MIB", args.disk_mib.to_string()),
        ("MANTA_NETNS_POOL_SIZE", args.netns_pool_size.to_string()),
        ("MANTA_VMM_POOL_SIZE", vmm_pool_size(args).to_string()),
        ("MANTA_WARM_POOL_SIZE", warm_pool_size(args).to_string()),
        ("MANTA_WARM_MAX_AGE", format!("{:?}", args.warm_max_age)),
        ("MANTA_START_WIDTH", start_width(args).to_string()),
        ("MANTA_MAX_MEMORY_MIB", max_memory_mib(args).to_string()),
        ("MANTA_ENABLE_SNAPSHOTS", u8::from(args.enable_snapshots).to_string()),
        ("MANTA_ROOTFS_CLONE_MODE", clone_mode.to_owned()),
        ("MANTA_HOST_IFACE", iface.unwrap_or("none").to_owned()),
    ]
    .into_iter()
    .chain(args.limits.settings())
    .map(|(name, value)| (name.to_owned(), value))
    .collect()
}

/// Whether the server works, and the conditions it works under. Always 200 while it serves.
#[utoipa::path(get, path = "/healthz", responses((status = 200, body = Health)))]
pub(crate) async fn healthz(State(state): State<AppState>) -> axum::Json<Health> {
    let mut degraded = state.engine.degraded();
    degraded.extend(state.conditions.degraded.iter().cloned());
    axum::Json(Health {
        status: if degraded.is_empty() { HealthStatus::Ok } else { HealthStatus::Degraded },
        degraded,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        vmm: state.conditions.vmm.clone(),
        sandboxes: state.engine.list().len(),
        max_sandboxes: state.engine.config().max_sandboxes,
        pools: Some(pools(state.engine.pools())),
        host: state.conditions.host.clone(),
        settings: state.conditions.settings.clone(),
    })
}

fn pools(pools: manta_engine::Pools) -> Pools {
    let info = |status: PoolStatus| PoolInfo {
        depth: status.depth,
        target: status.target,
        hits: status.hits,
        misses: status.misses,
        refill_ms_p50: status.refill_p50.map(|took| u64::try_from(took.as_millis()).unwrap_or(u64::MAX)),
    };
    Pools { warm: info(pools.warm), vmms: info(pools.vmms), slots: info(pools.slots) }
}

fn unknown() -> String {
    "unknown".to_owned()
}
