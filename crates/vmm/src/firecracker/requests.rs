//! What Firecracker is told to make, save and restore a VM (its API:
//! `src/firecracker/swagger/firecracker.yaml` of Firecracker). Pure.

use std::fmt;
use std::time::Duration;

use hyper::Method;
use serde_json::{Value, json};

use super::files;
use crate::deadline;
use crate::disk_limits::{BURST_S, DiskLimits};
use crate::kernel_args;
use crate::vmm::{VmSpec, mac_text};

/// vsock address of the guest; each VM has its own, separate, vsock.
const GUEST_CID: u32 = 3;

/// Tells the agent its vsock port; `manta_agent_proto::VSOCK_PORT_PARAM`.
const VSOCK_PORT_PARAM: &str = "manta.vsock_port";

/// For an answer. InstanceStart includes loading the kernel; milliseconds unless the host is overloaded.
const TIMEOUT: Duration = Duration::from_secs(10);

/// A request and how long its answer may take.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) method: Method,
    pub(super) path: &'static str,
    pub(super) body: Value,
    pub(super) timeout: Duration,
}

/// Method and path, for messages.
impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.method, self.path)
    }
}

/// What a snapshot says of the memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pages {
    /// All of it.
    All,
    /// Those written to since the VM was loaded or last saved, each put in its place among the others.
    Changed,
}

/// Describes the machine; in this order.
pub(super) fn configure(spec: &VmSpec, tap_name: &str, vsock_path: &str) -> Vec<Request> {
    // reboot=k resets through the keyboard controller, the only way that ends Firecracker.
    let kernel_args = format!("{} reboot=k {VSOCK_PORT_PARAM}={}", kernel_args::COMMON, spec.vsock_port);
    let drive = |id: &str, path: &str, read_only: bool| {
        json!({
            "drive_id": id,
            "path_on_host": path,
            "is_root_device": false,
            "is_read_only": read_only,
            "cache_type": "Unsafe",
        })
    };
    vec![
        put("/machine-config", json!({ "vcpu_count": spec.vcpus, "mem_size_mib": spec.mem_mib })),
        put(
            "/boot-source",
            json!({
                "kernel_image_path": files::KERNEL,
                "initrd_path": files::INITRAMFS,
                "boot_args": kernel_args,
            }),
        ),
        put("/drives/rootfs", drive("rootfs", files::ROOTFS, true)),
        put("/drives/disk", drive("disk", files::DISK, false)),
        put(
            "/network-interfaces/net",
            json!({ "iface_id": "net", "host_dev_name": tap_name, "guest_mac": mac_text(spec.mac) }),
        ),
        put("/vsock", json!({ "guest_cid": GUEST_CID, "uds_path": vsock_path })),
        put("/entropy", json!({})),
    ]
}

/// Lets it run.
pub(super) fn start() -> Request {
    put("/actions", json!({ "action_type": "InstanceStart" }))
}

/// Gives these limits to its disks, in place of any that a snapshot brought along.
pub(super) fn limit_disks(limits: DiskLimits) -> Vec<Request> {
    // A bucket of no size is no limit.
    let bucket = |per_s: u64| json!({ "size": BURST_S * per_s, "refill_time": BURST_S * 1000 });
    let limiter =
        json!({ "bandwidth": bucket(limits.bytes_per_s()), "ops": bucket(limits.requests_per_s()) });
    let limit = |path, drive| Request {
        method: Method::PATCH,
        ..put(path, json!({ "drive_id": drive, "rate_limiter": limiter }))
    };
    vec![limit("/drives/rootfs", "rootfs"), limit("/drives/disk", "disk")]
}

/// Makes the VM, of `memory_len` bytes, from a snapshot and lets it run. `track_changes`: [`Pages::Changed`]
/// can be asked for later.
pub(super) fn load(memory_len: u64, track_changes: bool) -> Request {
    // enable_diff_snapshots is track_dirty_pages from 1.13 on, but still understood.
    let body = json!({
        "snapshot_path": files::STATE,
        "mem_backend": { "backend_type": "File", "backend_path": files::MEMORY },
        "enable_diff_snapshots": track_changes,
        "resume_vm": true,
    });
    Request { timeout: deadline::for_memory(memory_len), ..put("/snapshot/load", body) }
}

/// What it is, and how far its VM is. Answered after what was asked before, such as to save that much memory.
pub(super) fn describe(memory_len: u64) -> Request {
    Request { method: Method::GET, timeout: deadline::for_memory(memory_len), ..put("/", Value::Null) }
}

/// Stops the processors.
pub(super) fn pause() -> Request {
    vm_state("Paused")
}

/// Lets them go on; on a VM that was not paused, nothing.
pub(super) fn resume(memory_len: u64) -> Request {
    // It may have to wait for a snapshot that was given up.
    Request { timeout: deadline::for_memory(memory_len), ..vm_state("Resumed") }
}

/// Saves a paused VM to files in Firecracker's directory, and waits until they are on the medium.
pub(super) fn create(memory_len: u64, pages: Pages, state: &str, memory: &str) -> Request {
    let kind = match pages {
        Pages::All => "Full",
        Pages::Changed => "Diff",
    };
    let body = json!({ "snapshot_type": kind, "snapshot_path": state, "mem_file_path": memory });
    Request { timeout: deadline::for_memory(memory_len), ..put("/snapshot/create", body) }
}

fn vm_state(state: &str) -> Request {
    Request { method: Method::PATCH, ..put("/vm", json!({ "state": state })) }
}

fn put(path: &'static str, body: Value) -> Request {
    Request { method: Method::PUT, path, body, timeout: TIMEOUT }
}

/// All of them, as a text.
pub(super) fn text(requests: &[Request]) -> String {
    requests.iter().map(|request| format!("{request} {:#}\n", request.body)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vmm::test_spec;

    #[test]
    fn requests_that_boot_a_vm() {
        let mut requests = configure(&test_spec(), "tap0", "v.sock");
        requests.push(start());
        insta::assert_snapshot!(text(&requests));
    }

    #[test]
    fn requests_that_restore_a_vm() {
        insta::assert_snapshot!(text(&[load(256 << 20, true)]));
    }

    #[test]
    fn requests_that_limit_disks() {
        let limits = DiskLimits { kib_per_s: Some(1024), ops_per_s: None };
        insta::assert_snapshot!(text(&limit_disks(limits)));
    }

    #[test]
    fn requests_that_save_a_vm() {
        let create = |pages| create(256 << 20, pages, "state", "memory");
        let requests = [pause(), create(Pages::All), create(Pages::Changed), resume(256 << 20)];
        insta::assert_snapshot!(text(&requests));
    }

    #[test]
    fn the_port_parameter_is_the_one_the_agent_looks_for() {
        assert_eq!(VSOCK_PORT_PARAM, manta_agent_proto::VSOCK_PORT_PARAM);
    }
}
