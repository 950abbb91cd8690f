//! QEMU's command line. Pure.

use std::ffi::OsString;
use std::os::fd::RawFd;

use serde_json::{Value, json};

use crate::dir::Image;
use crate::disk_limits::{BURST_S, DiskLimits};
use crate::kernel_args;
use crate::vmm::{Accelerator, VmSpec, mac_text};

/// Descriptors QEMU inherits, beside the images'.
pub(super) const QMP_FD: RawFd = 3;
pub(super) const AGENT_FD: RawFd = 4;
pub(super) const TAP_FD: RawFd = 5;

/// Name of the agent's port, as the guest sees it; `manta_agent_proto::PORT_NAME`.
const AGENT_PORT: &str = "manta.agent";

/// What is kept of the guest's console, bytes.
pub(super) const CONSOLE_SIZE: usize = 64 * 1024;
/// QEMU's name of the console's buffer.
pub(super) const CONSOLE: &str = "console";

/// Cache of translated code, MiB. Larger ones cost memory per VM and bring a shell no speed.
const TRANSLATIONS_MIB: u32 = 64;

/// All that TCG can do, except for saying that `rep movsb` and `rep stosb` are fast: they move one byte at a time
/// here. Told so, Linux and the C library clear a page 20 times, and copy one 3 times as fast in other ways.
const TCG_CPU: &str = "max,-erms,-fsrm,-la57";

/// `restored` waits to be told to load its state, and never writes to its memory's file.
pub(super) fn args(
    spec: &VmSpec,
    accelerator: Accelerator,
    tsc_khz: Option<u64>,
    restored: bool,
) -> Vec<OsString> {
    let mut kernel_args = format!("{} reboot=t", kernel_args::COMMON);
    let (accel, cpu) = match accelerator {
        Accelerator::Kvm => ("kvm".to_owned(), "host"),
        Accelerator::Tcg => {
            // TCG's TSC ticks like the host's. A guest left to measure it against the emulated timer of a busy
            // host fails at times, and then hangs.
            // One that checks it against that timer later falls back to jiffies, a clock of 4 ms steps.
            if let Some(khz) = tsc_khz {
                kernel_args.push_str(&format!(" tsc_early_khz={khz} tsc=reliable"));
            }
            (format!("tcg,thread=multi,tb-size={TRANSLATIONS_MIB}"), TCG_CPU)
        }
    };
    let mut args: Vec<String> = Vec::new();
    let mut option = |name: &str, value: String| args.extend([name.to_owned(), value]);

    // Timers, interrupt controller and ACPI as a PC has them: without, Linux does not find its time. The two
    // migration settings make states of this VM loadable without a description of their own.
    // Under TCG the guest is told the frequency of its TSC, and needs no timer to find it by. An interval timer that
    // nobody uses wakes QEMU 37 times a second, for as long as the VM lives.
    let pit = if accelerator == Accelerator::Tcg { "off" } else { "on" };
    let machine =
        format!("microvm,x-option-roms=off,pit={pit},pic=on,rtc=on,isa-serial=on,acpi=on,suppress-vmdesc=on");
    option("-machine", format!("{machine},memory-backend=memory"));
    option("-global", "migration.send-configuration=off".to_owned());
    // Nobody has to learn where a restored guest is now.
    option("-global", "migration.announce-rounds=0".to_owned());
    let sharing = if restored { "share=off,readonly=on,rom=off" } else { "share=on" };
    let memory = format!("memory-backend-file,id=memory,size={}M", spec.mem_mib);
    option("-object", format!("{memory},mem-path={},{sharing}", Image::Memory.path()));
    option("-m", format!("{}M", spec.mem_mib));
    option("-smp", spec.vcpus.to_string());
    option("-accel", accel);
    option("-cpu", cpu.to_owned());
    // Loads the kernel directly, without SeaBIOS's search for something to boot.
    option("-bios", "qboot.rom".to_owned());
    option("-kernel", Image::Kernel.path());
    option("-initrd", Image::Initramfs.path());
    option("-append", kernel_args);

    for (name, image, read_only) in [("rootfs", Image::Rootfs, true), ("disk", Image::Disk, false)] {
        let mut node = block_node(name, image, read_only);
        if spec.disk_limits != DiskLimits::default() {
            let group = format!("{name}-limits");
            option("-object", throttle_group(&group, spec.disk_limits));
            node["node-name"] = json!(format!("{name}-unlimited"));
            node = json!({
                "driver": "throttle",
                "node-name": name,
                "read-only": read_only,
                "discard": "unmap",
                "throttle-group": group,
                "file": node,
            });
        }
        option("-blockdev", node.to_string());
        // An error of the host's disk is the guest's to see. QEMU's default stops the VM when the host is full.
        option("-device", format!("virtio-blk-device,drive={name},werror=report,rerror=report"));
    }
    option("-netdev", format!("tap,id=net,fd={TAP_FD}"));
    option("-device", format!("virtio-net-device,netdev=net,mac={}", mac_text(spec.mac)));
    option("-device", "virtio-rng-device".to_owned());

    option("-chardev", format!("socket,id=agent,fd={AGENT_FD},server=on,wait=off"));
    option("-device", "virtio-serial-device,max_ports=2".to_owned());
    option("-device", format!("virtserialport,chardev=agent,name={AGENT_PORT}"));
    // In memory and bounded: the guest can fill neither a disk nor a pipe with it, nor be blocked by it.
    option("-chardev", format!("ringbuf,id={CONSOLE},size={CONSOLE_SIZE}"));
    option("-serial", format!("chardev:{CONSOLE}"));
    option("-chardev", format!("socket,id=qmp,fd={QMP_FD},server=on,wait=off"));
    option("-mon", "chardev=qmp,mode=control".to_owned());

    // The guest's reboot or shutdown leaves QEMU paused, so that its console can still be read.
    option("-action", "reboot=shutdown,shutdown=pause".to_owned());
    option("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny".to_owned());
    if restored {
        option("-incoming", "defer".to_owned());
    }
    args.extend(["-nodefaults", "-no-user-config", "-nographic", "-S"].map(str::to_owned));
    args.into_iter().map(OsString::from).collect()
}

/// The machine these arguments make, with nothing of this host or of one VM.
pub(super) fn machine(spec: &VmSpec, accelerator: Accelerator) -> String {
    let spec = VmSpec { disk_limits: DiskLimits::default(), ..spec.clone() };
    let args = args(&spec, accelerator, None, false);
    args.iter().map(|arg| arg.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

fn block_node(name: &str, image: Image, read_only: bool) -> Value {
    let cache = json!({ "no-flush": true });
    json!({
        "driver": "raw",
        "node-name": name,
        "read-only": read_only,
        // Blocks the guest frees go back to the host.
        "discard": "unmap",
        "cache": cache,
        "file": {
            "driver": "file",
            "filename": image.path(),
            "read-only": read_only,
            "discard": "unmap",
            "cache": cache,
            // The rootfs is open in every VM, the disk in one by construction.
            "locking": "off",
            // A restore would throw the file out of the page cache that all VMs share, in the guest's time.
            "drop-cache": false,
        },
    })
}

/// What holds requests back. Without a highest rate QEMU would let a tenth of a second's worth through at once.
fn throttle_group(name: &str, limits: DiskLimits) -> String {
    let (bytes, requests) = (limits.bytes_per_s(), limits.requests_per_s());
    json!({
        "qom-type": "throttle-group",
        "id": name,
        "limits": {
            "bps-total": bytes,
            "bps-total-max": BURST_S * bytes,
            "iops-total": requests,
            "iops-total-max": BURST_S * requests,
        },
    })
    .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vmm::test_spec;

    fn lines(accelerator: Accelerator, restored: bool) -> String {
        let args = args(&test_spec(), accelerator, Some(2_450_000), restored);
        let args: Vec<&str> = args.iter().filter_map(|arg| arg.to_str()).collect();
        args.join("\n").replace("\n-", "\n\n-").replace('\n', " ").replace("  -", "\n-")
    }

    #[test]
    fn command_line_under_tcg() {
        insta::assert_snapshot!(lines(Accelerator::Tcg, false));
    }

    #[test]
    fn command_line_with_kvm() {
        insta::assert_snapshot!(lines(Accelerator::Kvm, false));
    }

    #[test]
    fn command_line_of_a_restore() {
        insta::assert_snapshot!(lines(Accelerator::Tcg, true));
    }

    #[test]
    fn limits_of_disks_are_set_but_no_part_of_the_machine() {
        let limited =
            VmSpec { disk_limits: DiskLimits { kib_per_s: Some(1024), ops_per_s: Some(100) }, ..test_spec() };
        let args = args(&limited, Accelerator::Tcg, None, true);
        let args: Vec<&str> = args.iter().filter_map(|arg| arg.to_str()).collect();
        let limits: Vec<&str> =
            args.into_iter().filter(|arg| arg.contains("throttle") || arg.contains("drive=")).collect();
        insta::assert_snapshot!(limits.join("\n"));
        assert_eq!(machine(&limited, Accelerator::Tcg), machine(&test_spec(), Accelerator::Tcg));
    }

    #[test]
    fn the_description_of_a_machine_holds_no_measurement() {
        let machine = machine(&test_spec(), Accelerator::Tcg);
        assert!(machine.contains("-m 256M -smp 2"), "{machine}");
        assert!(!machine.contains("tsc"), "{machine}");
    }

    #[test]
    fn port_name_is_the_one_the_agent_looks_for() {
        assert_eq!(AGENT_PORT, manta_agent_proto::PORT_NAME);
    }
}
