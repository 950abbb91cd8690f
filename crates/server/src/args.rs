//! The server's settings: environment variables and flags, each validated once. A value that does
//! not parse stops the start. The table in the README is generated from here.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{ArgAction, Args, ValueEnum};
use manta_agent_proto::DEFAULT_VSOCK_PORT;
use manta_engine::LONGEST_LIFETIME;

use crate::limit_args::LimitArgs;

/// Settings of `manta server`.
#[derive(Debug, Clone, Args)]
pub struct ServerArgs {
    /// Address and port to listen on; none: no TCP, only the Unix socket
    #[arg(
        long,
        env = "MANTA_LISTEN_ADDR",
        value_name = "MANTA_LISTEN_ADDR",
        default_value = "127.0.0.1:8080"
    )]
    pub listen_addr: ListenAddr,
    /// Unix socket to listen on, too; for its owner alone, who needs no key
    #[arg(long, env = "MANTA_LISTEN_UNIX", value_name = "MANTA_LISTEN_UNIX")]
    pub listen_unix: Option<PathBuf>,
    /// Certificate chain, PEM: TCP is served over TLS; read again when the file changes, as is the key
    #[arg(long, env = "MANTA_TLS_CERT", value_name = "MANTA_TLS_CERT")]
    pub tls_cert: Option<PathBuf>,
    /// The certificate's private key, PEM, which others must not be able to read
    #[arg(long, env = "MANTA_TLS_KEY", value_name = "MANTA_TLS_KEY")]
    pub tls_key: Option<PathBuf>,
    /// Serve an address other than loopback although there is no API key: whoever reaches it can do everything
    #[arg(long, env = "MANTA_ALLOW_UNAUTHENTICATED", value_name = "MANTA_ALLOW_UNAUTHENTICATED", default_value = "0", value_parser = switch, action = ArgAction::Set)]
    pub allow_unauthenticated: bool,
    /// Connections served at once, by each listener; more wait to be accepted
    #[arg(long, env = "MANTA_MAX_CONNECTIONS", value_name = "MANTA_MAX_CONNECTIONS", default_value = "4096", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub max_connections: u32,
    /// For a TLS handshake, and for a request's headers to arrive; a connection on which no request comes for so long is closed
    #[arg(long, env = "MANTA_HEADER_TIMEOUT", value_name = "MANTA_HEADER_TIMEOUT", default_value = "30s", value_parser = duration)]
    pub header_timeout: Duration,
    /// For a request's body to arrive, and for an answer to be taken by the client
    #[arg(long, env = "MANTA_BODY_TIMEOUT", value_name = "MANTA_BODY_TIMEOUT", default_value = "60s", value_parser = duration)]
    pub body_timeout: Duration,
    /// What runs the microVMs; auto: Firecracker where KVM is usable and it is installed, else QEMU
    #[arg(long, env = "MANTA_VMM", value_name = "MANTA_VMM", default_value = "auto", value_parser = ["auto", "firecracker", "qemu"])]
    pub vmm: String,
    /// Firecracker program
    #[arg(
        long,
        env = "MANTA_FIRECRACKER_BIN",
        value_name = "MANTA_FIRECRACKER_BIN",
        default_value = "firecracker"
    )]
    pub firecracker_bin: PathBuf,
    /// Run Firecracker under its jailer; 0: it sees the host's file system, as far as its user may, and is root where
    /// only root may open /dev/kvm
    #[arg(long, env = "MANTA_JAILER", value_name = "MANTA_JAILER", default_value = "1", value_parser = switch, action = ArgAction::Set)]
    pub jailer: bool,
    /// Firecracker's jailer, of the same version; default: the program jailer beside Firecracker's, else in PATH
    #[arg(long, env = "MANTA_JAILER_BIN", value_name = "MANTA_JAILER_BIN")]
    pub jailer_bin: Option<PathBuf>,
    /// QEMU program, version 8.2 or later
    #[arg(long, env = "MANTA_QEMU_BIN", value_name = "MANTA_QEMU_BIN", default_value = "qemu-system-x86_64")]
    pub qemu_bin: PathBuf,
    /// Guest kernel, an uncompressed ELF image
    #[arg(
        long,
        env = "MANTA_KERNEL_PATH",
        value_name = "MANTA_KERNEL_PATH",
        default_value = "guest-artifacts/vmlinux"
    )]
    pub kernel_path: PathBuf,
    /// Guest root image, shared read-only by all sandboxes
    #[arg(
        long,
        env = "MANTA_ROOTFS_PATH",
        value_name = "MANTA_ROOTFS_PATH",
        default_value = "guest-artifacts/rootfs.ext4"
    )]
    pub rootfs_path: PathBuf,
    /// Guest agent, a static binary
    #[arg(
        long,
        env = "MANTA_AGENT_PATH",
        value_name = "MANTA_AGENT_PATH",
        default_value = "guest-artifacts/manta-agent"
    )]
    pub agent_path: PathBuf,
    /// Directory for everything the server writes
    #[arg(long, env = "MANTA_WORK_DIR", value_name = "MANTA_WORK_DIR", default_value = "/var/lib/manta")]
    pub work_dir: PathBuf,
    /// Interface through which sandboxes reach the internet; auto: that of the default route; none: no egress
    #[arg(long, env = "MANTA_HOST_IFACE", value_name = "MANTA_HOST_IFACE", default_value = "auto")]
    pub host_iface: String,
    /// Name servers that sandboxes use, comma-separated IPv4 addresses outside the denied ranges
    #[arg(
        long,
        env = "MANTA_DNS",
        value_name = "MANTA_DNS",
        default_value = "1.1.1.1,8.8.8.8",
        value_delimiter = ','
    )]
    pub dns: Vec<Ipv4Addr>,
    /// Network slots kept ready ahead of time
    #[arg(long, env = "MANTA_NETNS_POOL_SIZE", value_name = "MANTA_NETNS_POOL_SIZE", default_value = "64", value_parser = clap::value_parser!(u16).range(0..=4096))]
    pub netns_pool_size: u16,
    /// VMM processes started ahead of time, waiting to load the golden snapshot; default: one for each processor
    #[arg(long, env = "MANTA_VMM_POOL_SIZE", value_name = "MANTA_VMM_POOL_SIZE", value_parser = clap::value_parser!(u16).range(0..=1024))]
    pub vmm_pool_size: Option<u16>,
    /// Sandboxes kept waiting, restored and exercised, to be claimed; default: four for each processor, in no more than a quarter of the memory
    #[arg(long, env = "MANTA_WARM_POOL_SIZE", value_name = "MANTA_WARM_POOL_SIZE", value_parser = clap::value_parser!(u16).range(0..=4096))]
    pub warm_pool_size: Option<u16>,
    /// Sandboxes that waited for this long are replaced
    #[arg(long, env = "MANTA_WARM_MAX_AGE", value_name = "MANTA_WARM_MAX_AGE", default_value = "1h", value_parser = duration)]
    pub warm_max_age: Duration,
    /// MicroVMs started at once, while others wait for their turn; default: one for each processor
    #[arg(long, env = "MANTA_START_WIDTH", value_name = "MANTA_START_WIDTH", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub start_width: Option<u16>,
    /// Longest wait for such a turn; then 503
    #[arg(long, env = "MANTA_QUEUE_TIMEOUT", value_name = "MANTA_QUEUE_TIMEOUT", default_value = "30s", value_parser = duration)]
    pub queue_timeout: Duration,
    /// Most sandboxes at once; default: as many as fit into the machine's memory
    #[arg(long, env = "MANTA_MAX_SANDBOXES", value_name = "MANTA_MAX_SANDBOXES", value_parser = clap::value_parser!(u16).range(1..=16000))]
    pub max_sandboxes: Option<u16>,
    /// Most memory committed to sandboxes, MiB: to each its MANTA_MEM_MIB, and 48 for its VMM; more than the machine has overcommits; default: the machine's memory, less 1024
    #[arg(long, env = "MANTA_MAX_MEMORY_MIB", value_name = "MANTA_MAX_MEMORY_MIB", value_parser = clap::value_parser!(u64).range(1..=1 << 30))]
    pub max_memory_mib: Option<u64>,
    /// Disk space of the work directory that stays free, MiB: below it no sandbox and no snapshot is made, below twice as much none ahead of time
    #[arg(long, env = "MANTA_DISK_RESERVE_MIB", value_name = "MANTA_DISK_RESERVE_MIB", default_value = "256", value_parser = clap::value_parser!(u64).range(0..=1 << 30))]
    pub disk_reserve_mib: u64,
    /// Restore new sandboxes from a golden snapshot, made at the first start; 0: boot each
    #[arg(long, env = "MANTA_ENABLE_SNAPSHOTS", value_name = "MANTA_ENABLE_SNAPSHOTS", default_value = "1", value_parser = switch, action = ArgAction::Set)]
    pub enable_snapshots: bool,
    /// Most snapshots of sandboxes kept
    #[arg(long, env = "MANTA_MAX_SNAPSHOTS", value_name = "MANTA_MAX_SNAPSHOTS", default_value = "1000", value_parser = clap::value_parser!(u32).range(0..))]
    pub max_snapshots: u32,
    /// Most disk space for snapshots of sandboxes, MiB; default: what the file system has, less a reserve
    #[arg(long, env = "MANTA_MAX_SNAPSHOT_MIB", value_name = "MANTA_MAX_SNAPSHOT_MIB", value_parser = clap::value_parser!(u64).range(0..=1 << 40))]
    pub max_snapshot_mib: Option<u64>,
    /// How a sandbox's disk is cloned: auto (reflink where the file system can, else a sparse copy) or reflink-required
    #[arg(
        long,
        env = "MANTA_ROOTFS_CLONE_MODE",
        value_name = "MANTA_ROOTFS_CLONE_MODE",
        default_value = "auto"
    )]
    pub rootfs_clone_mode: RootfsCloneMode,
    /// Virtual processors of a sandbox
    #[arg(long, env = "MANTA_VCPUS", value_name = "MANTA_VCPUS", default_value = "1", value_parser = clap::value_parser!(u8).range(1..=32))]
    pub vcpus: u8,
    /// Memory of a sandbox, MiB
    #[arg(long, env = "MANTA_MEM_MIB", value_name = "MANTA_MEM_MIB", default_value = "256", value_parser = clap::value_parser!(u32).range(64..=262_144))]
    pub mem_mib: u32,
    /// Writable disk of a sandbox, MiB; takes room on the host only as it fills
    #[arg(long, env = "MANTA_DISK_MIB", value_name = "MANTA_DISK_MIB", default_value = "2048", value_parser = clap::value_parser!(u32).range(16..=1_048_576))]
    pub disk_mib: u32,
    #[command(flatten)]
    pub(crate) limits: LimitArgs,
    /// Limits on what a sandbox's VMM may use of memory, processors and processes, by cgroups: auto (as far as the host has them), required, or off
    #[arg(long, env = "MANTA_CGROUP", value_name = "MANTA_CGROUP", default_value = "auto")]
    pub cgroup: CgroupSetting,
    /// Most processors' time that a sandbox may take, such as 0.5; default: one processor for each of its own, and one for its VMM
    #[arg(long, env = "MANTA_CPU_MAX", value_name = "MANTA_CPU_MAX", value_parser = processors)]
    pub cpu_max: Option<f64>,
    /// Weight of all sandboxes together against the rest of the host when processors are short; 100 is that of any other service
    #[arg(long, env = "MANTA_CPU_WEIGHT", value_name = "MANTA_CPU_WEIGHT", default_value = "100", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub cpu_weight: u32,
    /// Lifetime of a sandbox whose creator gives no timeout_s; default: the longest allowed, or without a limit
    #[arg(long, env = "MANTA_SANDBOX_TIMEOUT", value_name = "MANTA_SANDBOX_TIMEOUT", value_parser = lifetime)]
    pub sandbox_timeout: Option<Duration>,
    /// Longest lifetime of a sandbox, from its creation or from when it is extended; default: no limit
    #[arg(long, env = "MANTA_SANDBOX_TIMEOUT_MAX", value_name = "MANTA_SANDBOX_TIMEOUT_MAX", value_parser = lifetime)]
    pub sandbox_timeout_max: Option<Duration>,
    /// vsock port of the guest agent
    #[arg(long, env = "MANTA_AGENT_PORT", value_name = "MANTA_AGENT_PORT", default_value_t = DEFAULT_VSOCK_PORT, value_parser = clap::value_parser!(u32).range(1..=65_535))]
    pub agent_port: u32,
    /// From the start of a microVM to its agent's first answer; a restored one has half of it, and another one the rest
    #[arg(long, env = "MANTA_AGENT_WAIT_TIMEOUT", value_name = "MANTA_AGENT_WAIT_TIMEOUT", default_value = "60s", value_parser = duration)]
    pub agent_wait_timeout: Duration,
    /// To connect again to the agent of a running guest, when the connection was lost
    #[arg(long, env = "MANTA_AGENT_DIAL_TIMEOUT", value_name = "MANTA_AGENT_DIAL_TIMEOUT", default_value = "5s", value_parser = duration)]
    pub agent_dial_timeout: Duration,
    /// For the agent to answer a request that takes it no time; also the grace after a command's time limit
    #[arg(long, env = "MANTA_AGENT_CALL_TIMEOUT", value_name = "MANTA_AGENT_CALL_TIMEOUT", default_value = "15s", value_parser = duration)]
    pub agent_call_timeout: Duration,
    /// Time limit of a command that brings none
    #[arg(long, env = "MANTA_EXEC_TIMEOUT", value_name = "MANTA_EXEC_TIMEOUT", default_value = "60s", value_parser = duration)]
    pub exec_timeout: Duration,
    /// Longest time limit a command may ask for
    #[arg(long, env = "MANTA_EXEC_TIMEOUT_MAX", value_name = "MANTA_EXEC_TIMEOUT_MAX", default_value = "1h", value_parser = duration)]
    pub exec_timeout_max: Duration,
    /// Bytes kept of a command's standard output, and of its standard error
    #[arg(long, env = "MANTA_OUTPUT_LIMIT", value_name = "MANTA_OUTPUT_LIMIT", default_value = "4194304", value_parser = clap::value_parser!(u64).range(1..=268_435_456))]
    pub output_limit: u64,
    /// How long a destroy lets running commands finish
    #[arg(long, env = "MANTA_DESTROY_DRAIN", value_name = "MANTA_DESTROY_DRAIN", default_value = "2s", value_parser = duration_or_zero)]
    pub destroy_drain: Duration,
    /// Keep the directory of a sandbox that failed to boot, with its console text, until the next start
    #[arg(long, env = "MANTA_DEBUG_KEEP_FAILED_SANDBOX", value_name = "MANTA_DEBUG_KEEP_FAILED_SANDBOX", default_value = "0", value_parser = switch, action = ArgAction::Set)]
    pub debug_keep_failed_sandbox: bool,
    /// Log lines as text or as JSON
    #[arg(long, env = "MANTA_LOG_FORMAT", value_name = "MANTA_LOG_FORMAT", default_value = "text")]
    pub log_format: LogFormat,
    /// What to log, as in tracing's EnvFilter: error, warn, info, debug, or per module
    #[arg(long, env = "MANTA_LOG", value_name = "MANTA_LOG", default_value = "info")]
    pub log: String,
}

/// See [`ServerArgs::listen_addr`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListenAddr {
    /// TCP.
    Tcp(SocketAddr),
    /// No TCP.
    None,
}

impl FromStr for ListenAddr {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "none" => Ok(Self::None),
            address => address
                .parse()
                .map(Self::Tcp)
                .map_err(|_| "write it like 127.0.0.1:8080 or [::1]:8080, or none"),
        }
    }
}

/// See [`ServerArgs::rootfs_clone_mode`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum RootfsCloneMode {
    /// Reflink where possible.
    Auto,
    /// Refuse to start without reflink.
    ReflinkRequired,
}

/// See [`ServerArgs::cgroup`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum CgroupSetting {
    /// As far as can be.
    Auto,
    /// Refuse to start without.
    Required,
    /// None.
    Off,
}

/// See [`ServerArgs::log_format`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// A duration that is not 0.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let duration = duration_or_zero(text)?;
    if duration.is_zero() { Err("must be longer than 0".to_owned()) } else { Ok(duration) }
}

fn duration_or_zero(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|error| format!("{error}; write it like 500ms, 30s or 2m"))
}

fn lifetime(text: &str) -> Result<Duration, String> {
    let lifetime = duration_or_zero(text)?;
    let range = Duration::from_secs(1)..=LONGEST_LIFETIME;
    if range.contains(&lifetime) { Ok(lifetime) } else { Err("must be 1s to 365days".to_owned()) }
}

/// A number of processors, as many as a machine may have.
fn processors(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(number) if (0.01..=8192.0).contains(&number) => Ok(number),
        _ => Err("must be 0.01 to 8192".to_owned()),
    }
}

fn switch(text: &str) -> Result<bool, String> {
    match text {
        "1" | "true" | "yes" | "on" => Ok(true),
        "0" | "false" | "no" | "off" | "" => Ok(false),
        _ => Err("must be 0 or 1".to_owned()),
    }
}
