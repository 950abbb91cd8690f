//! From settings to a serving process, and its orderly end.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use manta_engine::{
    ArmedFailpoint, CgroupMode, Engine, EngineConfig, FAILPOINT_VARIABLE, ShutdownReport, StartError,
    VMM_OVERHEAD_MIB, sandbox_mib,
};
use manta_host::disk::CloneMode;
use manta_host::{facts, net};
use manta_vmm::{JailerChoice, VmmChoice, VmmError};
use metrics_exporter_prometheus::BuildError;
use sd_notify::NotifyState;
use thiserror::Error;
use tokio::signal::unix::{SignalKind, signal};
use tracing::{info, warn};

use crate::args::{CgroupSetting, RootfsCloneMode, ServerArgs};
use crate::health::Conditions;
use crate::http::UnixSocketError;
use crate::keys::KeyFileError;
use crate::listeners::{Listeners, in_clear};
use crate::metrics::Metrics;
use crate::routes::AppState;
use crate::telemetry;
use crate::tls::TlsError;

/// Memory left to the host if nothing else is set, MiB.
const HOST_RESERVE_MIB: u64 = 1024;
/// How long answers under way may take to be written once all sandboxes are gone.
const HTTP_GRACE: Duration = Duration::from_secs(5);

/// Why the server did not start, or did not end as it should.
#[derive(Debug, Error)]
pub enum ServerError {
    /// A setting that cannot be.
    #[error("{0}")]
    Setting(String),
    /// Only root may make network namespaces and taps.
    #[error("manta server needs root: it makes network namespaces, taps and nftables rules")]
    NotRoot,
    /// No VMM can be used.
    #[error("no usable VMM")]
    Vmm(#[source] VmmError),
    /// The engine.
    #[error("cannot start")]
    Engine(#[source] StartError),
    /// The listener.
    #[error("cannot listen on {address}; is another server running?")]
    Listen {
        /// Where.
        address: std::net::SocketAddr,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// The Unix socket.
    #[error("cannot listen on {path}")]
    ListenUnix {
        /// Where.
        path: PathBuf,
        /// Why not.
        #[source]
        source: UnixSocketError,
    },
    /// An address that others can reach, and nothing to tell them apart by.
    #[error(
        "{0} is not a loopback address, and there is no API key: whoever reaches it could do everything. Make a key \
         with `manta key create NAME` (and the server's MANTA_WORK_DIR), or listen on 127.0.0.1, or set \
         MANTA_ALLOW_UNAUTHENTICATED=1"
    )]
    Unauthenticated(std::net::SocketAddr),
    /// The certificate.
    #[error("cannot serve TLS")]
    Tls(#[source] TlsError),
    /// The API keys.
    #[error("cannot read the API keys")]
    Keys(#[source] KeyFileError),
    /// The recorder of metrics.
    #[error("cannot record metrics")]
    Metrics(#[source] BuildError),
    /// The runtime or the signals.
    #[error("cannot {0}")]
    System(&'static str, #[source] std::io::Error),
    /// It ended, and something was left.
    #[error("left behind: {0}")]
    Left(String),
}

/// Serves until SIGINT or SIGTERM, then removes everything it made.
///
/// # Errors
/// See [`ServerError`].
pub fn main(args: ServerArgs) -> Result<(), ServerError> {
    telemetry::init(&args.log, args.log_format).map_err(ServerError::Setting)?;
    arm_failpoint()?;
    if !is_root() {
        return Err(ServerError::NotRoot);
    }
    if let Err(error) = facts::raise_nofile() {
        warn!(%error, "the limit on open files stays as it is");
    }
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| ServerError::System("start the runtime", error))?
        .block_on(serve(args))
}

async fn serve(args: ServerArgs) -> Result<(), ServerError> {
    let mut terminate =
        signal(SignalKind::terminate()).map_err(|e| ServerError::System("watch SIGTERM", e))?;
    let mut interrupt =
        signal(SignalKind::interrupt()).map_err(|e| ServerError::System("watch SIGINT", e))?;
    // Bound before anything is made on the host, so that a taken port costs nothing.
    let listeners = Listeners::bind(&args).await?;

    // Before the engine begins to record.
    let metrics = Metrics::install().map_err(ServerError::Metrics)?;
    tokio::spawn(metrics.clone().keep_up());
    let (config, reason) = tokio::task::block_in_place(|| engine_config(&args))?;
    let conditions = Conditions::read(&args, config.vmm.info(), reason, config.egress.as_deref());
    let engine = tokio::task::block_in_place(|| Engine::start(config)).map_err(ServerError::Engine)?;
    let engine = Arc::new(engine);
    // Connections made meanwhile wait; a signal does not. Nobody waits for the golden snapshot who has sandboxes already.
    let getting_ready = async {
        if engine.recover().await {
            let engine = engine.clone();
            tokio::spawn(async move { engine.prepare().await });
        } else {
            engine.prepare().await;
        }
    };
    let ended_early = tokio::select! {
        // What a killed server left is looked at also when a signal has come already: to remove it.
        biased;
        () = getting_ready => false,
        _ = terminate.recv() => true,
        _ = interrupt.recv() => true,
    };
    if ended_early {
        return finished(engine.shut_down().await);
    }
    if let Some(what) = in_clear(&args) {
        warn!("degraded: {what}");
    }
    let state = AppState { engine: engine.clone(), conditions: Arc::new(conditions), metrics };

    let urls = listeners.urls();
    let serving = listeners.serve(state);
    // For whoever started us: with port 0 in the settings the address is only known here.
    let mut stdout = std::io::stdout();
    for url in urls {
        let _ = writeln!(stdout, "manta: listening on {url}").and_then(|()| stdout.flush());
    }
    tell_supervisor(NotifyState::Ready);

    tokio::select! {
        _ = terminate.recv() => info!("SIGTERM"),
        _ = interrupt.recv() => info!("SIGINT"),
    }
    tell_supervisor(NotifyState::Stopping);
    let report = engine.shut_down().await;
    serving.stop(HTTP_GRACE).await;
    finished(report)
}

/// Systemd, if it started us and wants to know (`sd_notify(3)`).
fn tell_supervisor(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        warn!(%error, "the supervisor cannot be told");
    }
}

/// For tests that kill the server at a step; see [`manta_engine::failpoints`].
fn arm_failpoint() -> Result<(), ServerError> {
    let Some(text) = std::env::var_os(FAILPOINT_VARIABLE) else { return Ok(()) };
    let armed: Result<ArmedFailpoint, String> = text.to_string_lossy().parse();
    let armed = armed.map_err(|error| ServerError::Setting(format!("{FAILPOINT_VARIABLE}: {error}")))?;
    warn!(step = ?text, "{FAILPOINT_VARIABLE} is set: the server will kill itself");
    armed.arm();
    Ok(())
}

fn finished(report: ShutdownReport) -> Result<(), ServerError> {
    if report.problems.is_empty() { Ok(()) } else { Err(ServerError::Left(report.problems.join("; "))) }
}

/// The jailer wished for.
pub(crate) fn jailer(args: &ServerArgs) -> JailerChoice {
    match &args.jailer_bin {
        _ if !args.jailer => JailerChoice::Off,
        Some(program) => JailerChoice::At(program.clone()),
        None => JailerChoice::Find,
    }
}

/// Settings as the engine takes them, and why this VMM was chosen. Blocking: probes KVM.
fn engine_config(args: &ServerArgs) -> Result<(EngineConfig, String), ServerError> {
    let wish: VmmChoice =
        args.vmm.parse().map_err(|error| ServerError::Setting(format!("MANTA_VMM: {error}")))?;
    let probe = manta_vmm::probe::probe_kvm();
    let choice = manta_vmm::choose(wish, &args.firecracker_bin, &jailer(args), &args.qemu_bin, &probe);
    let choice = choice.map_err(ServerError::Vmm)?;
    info!(vmm = %choice.vmm.info().kind, reason = choice.reason, "VMM chosen");
    let egress = egress(&args.host_iface)?;
    if args.exec_timeout > args.exec_timeout_max {
        return Err(ServerError::Setting(
            "MANTA_EXEC_TIMEOUT is longer than MANTA_EXEC_TIMEOUT_MAX".to_owned(),
        ));
    }
    if args.sandbox_timeout > args.sandbox_timeout_max && args.sandbox_timeout_max.is_some() {
        return Err(ServerError::Setting(
            "MANTA_SANDBOX_TIMEOUT is longer than MANTA_SANDBOX_TIMEOUT_MAX".to_owned(),
        ));
    }
    let config = EngineConfig {
        vmm: choice.vmm,
        kernel: absolute(&args.kernel_path)?,
        rootfs: absolute(&args.rootfs_path)?,
        agent: absolute(&args.agent_path)?,
        work_dir: absolute(&args.work_dir)?,
        vcpus: args.vcpus,
        mem_mib: args.mem_mib,
        disk_mib: args.disk_mib,
        disk_limits: args.limits.disks(),
        cgroup_mode: match args.cgroup {
            CgroupSetting::Auto => CgroupMode::Auto,
            CgroupSetting::Required => CgroupMode::Required,
            CgroupSetting::Off => CgroupMode::Off,
        },
        cpu_max_percent: cpu_max_percent(args),
        cpu_weight: args.cpu_weight,
        clone_mode: match args.rootfs_clone_mode {
            RootfsCloneMode::Auto => CloneMode::Auto,
            RootfsCloneMode::ReflinkRequired => CloneMode::ReflinkRequired,
        },
        egress,
        net_limits: args.limits.network(),
        dns: args.dns.clone(),
        netns_pool_size: usize::from(args.netns_pool_size),
        golden_snapshot: args.enable_snapshots,
        max_snapshots: usize::try_from(args.max_snapshots).unwrap_or(usize::MAX),
        max_snapshot_bytes: args.max_snapshot_mib.map_or(u64::MAX, |mib| mib << 20),
        vmm_pool_size: vmm_pool_size(args),
        warm_pool_size: warm_pool_size(args),
        warm_max_age: args.warm_max_age,
        start_width: start_width(args),
        queue_timeout: args.queue_timeout,
        max_sandboxes: args.max_sandboxes.map_or_else(|| fitting(args), usize::from),
        max_memory_mib: max_memory_mib(args),
        disk_reserve_bytes: args.disk_reserve_mib << 20,
        sandbox_timeout: args.sandbox_timeout,
        sandbox_timeout_max: args.sandbox_timeout_max,
        vsock_port: args.agent_port,
        agent_wait_timeout: args.agent_wait_timeout,
        agent_dial_timeout: args.agent_dial_timeout,
        agent_call_timeout: args.agent_call_timeout,
        exec_timeout: args.exec_timeout,
        exec_timeout_max: args.exec_timeout_max,
        output_limit: args.output_limit,
        destroy_drain: args.destroy_drain,
        keep_failed: args.debug_keep_failed_sandbox,
    };
    Ok((config, choice.reason))
}

/// How many sandboxes fit into the memory for them, beside the VMMs that wait; at least one.
fn fitting(args: &ServerArgs) -> usize {
    let waiting = vmm_pool_size(args) as u64 * VMM_OVERHEAD_MIB;
    let fit = max_memory_mib(args).saturating_sub(waiting) / sandbox_mib(args.mem_mib);
    usize::try_from(fit).unwrap_or(usize::MAX).clamp(1, 16_000)
}

/// Memory that may be committed to sandboxes: room for one at least.
pub(crate) fn max_memory_mib(args: &ServerArgs) -> u64 {
    let rest = || facts::mem_mib().saturating_sub(HOST_RESERVE_MIB);
    args.max_memory_mib.unwrap_or_else(rest).max(sandbox_mib(args.mem_mib))
}

/// VMMs to start ahead of time.
pub(crate) fn vmm_pool_size(args: &ServerArgs) -> usize {
    args.vmm_pool_size.map_or_else(facts::cpus, usize::from)
}

/// Sandboxes to keep waiting. None without a golden snapshot to make them of.
pub(crate) fn warm_pool_size(args: &ServerArgs) -> usize {
    if !args.enable_snapshots {
        return 0;
    }
    args.warm_pool_size.map_or_else(
        || {
            let fit = facts::mem_mib() / 4 / sandbox_mib(args.mem_mib);
            usize::try_from(fit).unwrap_or(usize::MAX).min(4 * facts::cpus())
        },
        usize::from,
    )
}

/// Time that a sandbox may take of processors, in percent of one.
fn cpu_max_percent(args: &ServerArgs) -> u32 {
    let cpus = args.cpu_max.unwrap_or(f64::from(args.vcpus) + 1.0);
    // In bounds: the settings are.
    (cpus * 100.0).round() as u32
}

/// MicroVMs that may start at once.
pub(crate) fn start_width(args: &ServerArgs) -> usize {
    args.start_width.map_or_else(facts::cpus, usize::from)
}

/// Whether this process may do what only root may.
pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn egress(setting: &str) -> Result<Option<String>, ServerError> {
    match setting {
        "auto" => Ok(net::detect_egress()),
        "none" => Ok(None),
        name if net::interface_exists(name) => Ok(Some(name.to_owned())),
        name => Err(ServerError::Setting(format!(
            "MANTA_HOST_IFACE: there is no interface {name:?}; name one, or use auto or none"
        ))),
    }
}

pub(crate) fn absolute(path: &Path) -> Result<PathBuf, ServerError> {
    std::path::absolute(path).map_err(|error| ServerError::System("find the current directory", error))
}
