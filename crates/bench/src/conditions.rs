//! The conditions a measurement was taken under: this side's from `/proc` and `/sys`, the server's
//! from its `GET /healthz`.

use std::fs;
use std::time::SystemTime;

use manta_api::{Health, Pools};
use serde::Serialize;

use crate::args::CommonArgs;

/// What has to be known to compare two results.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Conditions {
    /// When the first warm-up began, RFC 3339, UTC.
    pub started: String,
    /// The same, seconds since 1970.
    pub started_unix_s: u64,
    /// `--endpoint`
    pub endpoint: String,
    /// `--warmup`
    pub warmup: u32,
    /// `--cmd`, or `--sanity-cmd`.
    pub cmd: String,
    /// `--timeout`, nanoseconds.
    pub timeout_ns: u64,
    /// The machine that measured; the server's own when both are one.
    pub client: Client,
    /// The server's account of itself and its machine, before the first warm-up.
    pub server: Health,
    /// Its pools, between the last warm-up and the first launch; absent if it does not say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pools_before: Option<Pools>,
    /// The same after the last iteration.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pools_after: Option<Pools>,
}

/// The measuring machine. What cannot be read is absent.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Client {
    /// Version of `manta`.
    pub version: String,
    /// Processor model.
    pub cpu: Option<String>,
    /// Processors usable by this process.
    pub cpus: Option<usize>,
    /// Frequency governor of the first processor.
    pub cpu_governor: Option<String>,
    /// Memory, MiB.
    pub mem_mib: Option<u64>,
    /// Kernel release.
    pub kernel: Option<String>,
    /// Before the first warm-up.
    pub load_average_start: Option<LoadAverage>,
    /// After the last iteration.
    pub load_average_end: Option<LoadAverage>,
}

/// Processes running or waiting for disk, averaged over one, five and fifteen minutes.
pub type LoadAverage = [f64; 3];

impl Conditions {
    /// As they are now; `load_average_end` and the pools are still to come.
    pub(crate) fn now(args: &CommonArgs, cmd: &str, server: Health) -> Self {
        let started = SystemTime::now();
        Self {
            started: humantime::format_rfc3339_seconds(started).to_string(),
            started_unix_s: started.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs(),
            endpoint: args.endpoint.clone(),
            warmup: args.warmup,
            cmd: cmd.to_owned(),
            timeout_ns: u64::try_from(args.timeout.as_nanos()).unwrap_or(u64::MAX),
            client: Client {
                version: env!("CARGO_PKG_VERSION").to_owned(),
                cpu: read("/proc/cpuinfo").and_then(|text| field(&text, "model name")),
                cpus: std::thread::available_parallelism().ok().map(usize::from),
                cpu_governor: read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
                mem_mib: read("/proc/meminfo").and_then(|text| mem_mib(&text)),
                kernel: read("/proc/sys/kernel/osrelease"),
                load_average_start: load_average(),
                load_average_end: None,
            },
            server,
            pools_before: None,
            pools_after: None,
        }
    }
}

pub(crate) fn load_average() -> Option<LoadAverage> {
    parse_load_average(&read("/proc/loadavg")?)
}

fn read(path: &str) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

fn field(text: &str, name: &str) -> Option<String> {
    text.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == name).then(|| value.trim().to_owned())
    })
}

fn mem_mib(meminfo: &str) -> Option<u64> {
    let kib: u64 = field(meminfo, "MemTotal")?.strip_suffix(" kB")?.parse().ok()?;
    Some(kib / 1024)
}

fn parse_load_average(text: &str) -> Option<LoadAverage> {
    let mut fields = text.split_whitespace().map(|field| field.parse().ok());
    Some([fields.next()??, fields.next()??, fields.next()??])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proc_files_are_understood() {
        let cpuinfo = "processor\t: 0\nmodel name\t: AMD EPYC 7B13: x\nmodel name\t: other\n";
        assert_eq!(field(cpuinfo, "model name").as_deref(), Some("AMD EPYC 7B13: x"));
        assert_eq!(field(cpuinfo, "model"), None);
        assert_eq!(mem_mib("MemTotal:       24615832 kB\nMemFree: 1 kB\n"), Some(24038));
        assert_eq!(mem_mib("MemTotal: lots\n"), None);
        assert_eq!(parse_load_average("0.01 1.5 12.00 1/234 567\n"), Some([0.01, 1.5, 12.0]));
        assert_eq!(parse_load_average("0.01 1.5"), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_machine_says_what_it_is() {
        assert!(read("/proc/sys/kernel/osrelease").is_some_and(|release| release.contains('.')));
        assert!(read("/proc/meminfo").and_then(|text| mem_mib(&text)).is_some_and(|mib| mib > 0));
        assert!(load_average().is_some());
    }
}
