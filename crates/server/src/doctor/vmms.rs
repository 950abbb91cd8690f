//! KVM and the programs that run microVMs.

use manta_vmm::{Accelerator, KvmProbe, KvmVerdict, VmmChoice, choose};

use super::{Finding, chain};
use crate::args::ServerArgs;

/// The VMM the server would choose, and how that came.
pub(super) fn check(args: &ServerArgs, kvm: &KvmProbe) -> (Option<String>, Vec<Finding>) {
    let mut findings = vec![match kvm.verdict {
        KvmVerdict::Usable => Finding::ok("kvm", &kvm.reason),
        KvmVerdict::Unusable | KvmVerdict::Absent => Finding::warning(
            "kvm",
            &kvm.reason,
            "sandboxes run in software emulation; for speed use a machine with hardware virtualization \
             (bare metal, or nested virtualization switched on)",
        ),
    }];
    let usable = kvm.verdict == KvmVerdict::Usable;
    findings.push(match manta_vmm::firecracker(&args.firecracker_bin) {
        Ok(vmm) => Finding::ok("firecracker", &vmm.info().version),
        Err(error) if usable => Finding::warning(
            "firecracker",
            chain(&error),
            "install Firecracker from its releases and put it into PATH, or set MANTA_FIRECRACKER_BIN; without it \
             sandboxes run on QEMU",
        ),
        Err(error) => Finding::ok("firecracker", format!("{} (needs usable KVM anyway)", chain(&error))),
    });
    let accelerator = if usable { Accelerator::Kvm } else { Accelerator::Tcg };
    findings.push(match manta_vmm::qemu(&args.qemu_bin, accelerator) {
        Ok(vmm) => Finding::ok("qemu", &vmm.info().version),
        Err(error) => Finding::warning(
            "qemu",
            chain(&error),
            "install qemu-system-x86, version 8.2 or later (Debian 12: from bookworm-backports; `cargo xtask up` \
             does it), or set MANTA_QEMU_BIN",
        ),
    });
    let choice = args.vmm.parse::<VmmChoice>().map_err(|error| error.to_string()).and_then(|wish| {
        choose(wish, &args.firecracker_bin, &args.qemu_bin, kvm).map_err(|error| chain(&error))
    });
    match choice {
        Ok(choice) => {
            let name = choice.vmm.info().kind.to_string();
            findings.push(Finding::ok("vmm", format!("{name}: {}", choice.reason)));
            (Some(name), findings)
        }
        Err(error) => {
            let advice = format!("MANTA_VMM={} cannot be met; see the lines above", args.vmm);
            findings.push(Finding::error("vmm", error, advice));
            (None, findings)
        }
    }
}
