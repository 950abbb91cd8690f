//! What Firecracker is told to make a VM (its API: `src/firecracker/swagger/firecracker.yaml` of Firecracker).
//! Pure.

use serde_json::{Value, json};

use crate::dir::Image;
use crate::kernel_args;
use crate::vmm::{VmSpec, mac_text};

/// vsock address of the guest; each VM has its own, separate, vsock.
const GUEST_CID: u32 = 3;

/// Tells the agent its vsock port; `manta_agent_proto::VSOCK_PORT_PARAM`.
const VSOCK_PORT_PARAM: &str = "manta.vsock_port";

/// A `PUT`.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) path: &'static str,
    pub(super) body: Value,
}

/// Describes the machine; in this order.
pub(super) fn configure(spec: &VmSpec, tap_name: &str, vsock_path: &str) -> Vec<Request> {
    // reboot=k resets through the keyboard controller, the only way that ends Firecracker.
    let kernel_args = format!("{} reboot=k {VSOCK_PORT_PARAM}={}", kernel_args::COMMON, spec.vsock_port);
    let drive = |id: &str, image: Image, read_only: bool| {
        json!({
            "drive_id": id,
            "path_on_host": image.path(),
            "is_root_device": false,
            "is_read_only": read_only,
            "cache_type": "Unsafe",
        })
    };
    let put = |path, body| Request { path, body };
    vec![
        put("/machine-config", json!({ "vcpu_count": spec.vcpus, "mem_size_mib": spec.mem_mib })),
        put(
            "/boot-source",
            json!({
                "kernel_image_path": Image::Kernel.path(),
                "initrd_path": Image::Initramfs.path(),
                "boot_args": kernel_args,
            }),
        ),
        put("/drives/rootfs", drive("rootfs", Image::Rootfs, true)),
        put("/drives/disk", drive("disk", Image::Disk, false)),
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
    Request { path: "/actions", body: json!({ "action_type": "InstanceStart" }) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vmm::test_spec;

    #[test]
    fn requests_that_boot_a_vm() {
        let mut requests = configure(&test_spec(), "tap0", "v.sock");
        requests.push(start());
        let lines = requests.iter().map(|request| format!("PUT {} {:#}", request.path, request.body));
        insta::assert_snapshot!(lines.collect::<Vec<_>>().join("\n"));
    }

    #[test]
    fn the_port_parameter_is_the_one_the_agent_looks_for() {
        assert_eq!(VSOCK_PORT_PARAM, manta_agent_proto::VSOCK_PORT_PARAM);
    }
}
