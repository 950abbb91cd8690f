//! KVM and the programs that run microVMs.

use std::path::Path;

use manta_vmm::{Accelerator, KvmProbe, KvmVerdict, Vmm, VmmChoice, VmmError, choose};

use super::{Finding, chain, existing};
use crate::args::ServerArgs;
use crate::run::jailer;

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
    let jailer = jailer(args);
    findings.push(match manta_vmm::firecracker(&args.firecracker_bin, &jailer) {
        Ok(vmm) => firecracker(&*vmm, &args.work_dir, usable),
        Err(error @ (VmmError::Jailer { .. } | VmmError::JailerVersion { .. })) if usable => Finding::error(
            "firecracker",
            chain(&error),
            "install firecracker and jailer of one release side by side; MANTA_JAILER_BIN names a jailer elsewhere, \
             MANTA_JAILER=0 does without",
        ),
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
        choose(wish, &args.firecracker_bin, &jailer, &args.qemu_bin, kvm).map_err(|error| chain(&error))
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

/// Of a Firecracker that can be run; `usable`: and would be.
fn firecracker(vmm: &dyn Vmm, work_dir: &Path, usable: bool) -> Finding {
    let version = &vmm.info().version;
    let Some(jailer) = &vmm.info().jailer else {
        let found = format!("{version}, without its jailer");
        return if usable {
            Finding::warning(
                "firecracker",
                found,
                "unset MANTA_JAILER, so that a microVM sees nothing of the host",
            )
        } else {
            Finding::ok("firecracker", found)
        };
    };
    match existing(work_dir).map_or(Ok(()), |dir| vmm.check_dir(dir)) {
        Err(error) if usable => {
            Finding::error("firecracker", chain(&error), "no microVM can be started like this")
        }
        _ => Finding::ok("firecracker", format!("{version}, under its jailer {}", jailer.display())),
    }
}
