//! A host of one's own, a server on it, and a plain HTTP client.
//!
//! Environment: `MANTA_TEST_BIN` (the binary under test; default: the one Cargo built),
//! `MANTA_TEST_VMM` (default `qemu`), `MANTA_TEST_WORK_DIR` (parent of the servers' work
//! directories), `MANTA_TEST_TIME_SCALE` (stretches every deadline), and `MANTA_KERNEL_PATH`,
//! `MANTA_ROOTFS_PATH`, `MANTA_AGENT_PATH` (default: `guest-artifacts/` of the workspace).

mod census;
mod golden;
mod host;
mod http;
mod server;
mod snapshots;

use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

pub(crate) use census::{Census, census};
pub(crate) use host::{DENIED, HOST_ADDRESS, Host, INTERNET, SILENT};
pub(crate) use http::{Answer, answer, attempt, begin, send};
pub(crate) use server::{Server, artifacts, binary, new_dir};
pub(crate) use snapshots::{at_once, contents, edit_manifest, entries, spin, zeros};

/// A deadline, stretched where everything is slower.
pub(crate) fn scaled(seconds: u64) -> Duration {
    let scale =
        std::env::var("MANTA_TEST_TIME_SCALE").map_or(1, |text| text.parse().expect("a whole number"));
    Duration::from_secs(seconds * scale)
}

/// Whether sandboxes run on Firecracker here: in the emulated KVM host, where all takes some ten times as long.
pub(crate) fn on_firecracker() -> bool {
    std::env::var("MANTA_TEST_VMM").is_ok_and(|vmm| vmm == "firecracker")
}

/// Waits until `done`, checking often; fails with `what` when it takes too long.
pub(crate) fn eventually(what: &str, limit: Duration, mut done: impl FnMut() -> bool) {
    let end = std::time::Instant::now() + limit;
    while !done() {
        assert!(std::time::Instant::now() < end, "not within {limit:?}: {what}");
        std::thread::park_timeout(Duration::from_millis(20));
    }
}

/// Kills a process, a VMM.
pub(crate) fn kill(pid: u32) {
    signal(pid, Signal::KILL);
}

pub(crate) fn signal(pid: u32, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(pid).expect("a pid")).expect("a pid");
    kill_process(pid, signal).expect("signal the process");
}

/// A file with this content, where a server can be told to use it.
pub(crate) fn artifact(content: &[u8]) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    std::fs::write(file.path(), content).expect("write it");
    let readable = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    std::fs::set_permissions(file.path(), readable).expect("open it to VMMs");
    file
}
