//! Which VMM to use on this host.

use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;

use crate::error::VmmError;
use crate::firecracker::{JailerChoice, firecracker};
use crate::probe::{KvmProbe, KvmVerdict};
use crate::qemu::qemu;
use crate::vmm::{Accelerator, UnknownName, Vmm};

/// Which VMM the operator wishes for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum VmmChoice {
    /// The best that works here.
    #[default]
    Auto,
    /// Firecracker or nothing.
    Firecracker,
    /// QEMU or nothing.
    Qemu,
}

impl FromStr for VmmChoice {
    type Err = UnknownName;

    fn from_str(name: &str) -> Result<Self, UnknownName> {
        match name {
            "auto" => Ok(Self::Auto),
            "firecracker" => Ok(Self::Firecracker),
            "qemu" => Ok(Self::Qemu),
            _ => Err(UnknownName { given: name.to_owned(), expected: "auto, firecracker, qemu" }),
        }
    }
}

/// The VMM to use, and why.
#[derive(Debug)]
pub struct Choice {
    /// The VMM.
    pub vmm: Arc<dyn Vmm>,
    /// One sentence, for people.
    pub reason: String,
}

/// Chooses: Firecracker where KVM is usable and Firecracker there, else QEMU, with KVM where that is usable.
/// Blocks while the VMMs print their versions.
///
/// A wish for Firecracker is granted even when the probe found KVM too slow, since a probe can err; not when
/// there is none. A Firecracker that lacks its jailer is not passed over: who installed it wants it.
///
/// # Errors
/// When the VMM wished for, or any, cannot be used.
pub fn choose(
    wish: VmmChoice,
    firecracker_bin: &Path,
    jailer: &JailerChoice,
    qemu_bin: &Path,
    kvm: &KvmProbe,
) -> Result<Choice, VmmError> {
    let usable = kvm.verdict == KvmVerdict::Usable;
    let accelerator = if usable { Accelerator::Kvm } else { Accelerator::Tcg };
    let (vmm, why) = match wish {
        VmmChoice::Firecracker if kvm.verdict == KvmVerdict::Absent => {
            return Err(VmmError::NoKvm { reason: kvm.reason.clone() });
        }
        VmmChoice::Firecracker => (firecracker(firecracker_bin, jailer)?, "as configured".to_owned()),
        VmmChoice::Qemu => (qemu(qemu_bin, accelerator)?, "as configured".to_owned()),
        VmmChoice::Auto if usable => match firecracker(firecracker_bin, jailer) {
            Ok(vmm) => (vmm, "the best VMM with usable KVM".to_owned()),
            Err(error @ (VmmError::Jailer { .. } | VmmError::JailerVersion { .. })) => return Err(error),
            Err(error) => (qemu(qemu_bin, accelerator)?, error.to_string()),
        },
        VmmChoice::Auto => (qemu(qemu_bin, accelerator)?, "the VMM that needs no KVM".to_owned()),
    };
    let info = vmm.info();
    let reason = format!("{} {} on {}: {why}; {}", info.kind, info.version, info.accelerator, kvm.reason);
    Ok(Choice { vmm, reason })
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::vmm::VmmKind;

    /// What there is of Firecracker.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    enum Release {
        None,
        JailerBroken,
        Whole,
    }

    fn probe(verdict: KvmVerdict) -> KvmProbe {
        KvmProbe { verdict, reason: "probed".to_owned(), ..KvmProbe::default() }
    }

    /// Scripts that print a version; QEMU, and of Firecracker's release as much as is said.
    fn programs(dir: &Path, installed: Release) -> (PathBuf, PathBuf) {
        let program = |name: &str, prints: &str| {
            let path = dir.join(name);
            std::fs::write(&path, format!("#!/bin/sh\necho {prints}\n")).unwrap();
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
            std::fs::set_permissions(&path, mode).unwrap();
            path
        };
        let qemu = program("qemu", "QEMU emulator version 10.0.2");
        let firecracker = dir.join("firecracker");
        if installed != Release::None {
            program("firecracker", "Firecracker v1.12.1");
        }
        let jailer = match installed {
            Release::Whole => "Jailer v1.12.1",
            _ => "no version",
        };
        program("jailer", jailer);
        (firecracker, qemu)
    }

    #[test]
    fn the_choice_follows_wish_probe_and_programs() {
        use Accelerator::{Kvm, Tcg};
        use KvmVerdict::{Absent, Unusable, Usable};
        use Release::{JailerBroken, None as Nothing, Whole};
        use VmmKind::{Firecracker, Qemu};
        let expected = [
            (VmmChoice::Auto, Usable, Whole, Some((Firecracker, Kvm))),
            (VmmChoice::Auto, Usable, Nothing, Some((Qemu, Kvm))),
            (VmmChoice::Auto, Usable, JailerBroken, None),
            (VmmChoice::Auto, Unusable, JailerBroken, Some((Qemu, Tcg))),
            (VmmChoice::Auto, Absent, Whole, Some((Qemu, Tcg))),
            (VmmChoice::Firecracker, Usable, Whole, Some((Firecracker, Kvm))),
            (VmmChoice::Firecracker, Usable, Nothing, None),
            (VmmChoice::Firecracker, Usable, JailerBroken, None),
            (VmmChoice::Firecracker, Unusable, Whole, Some((Firecracker, Kvm))),
            (VmmChoice::Firecracker, Absent, Whole, None),
            (VmmChoice::Qemu, Usable, Whole, Some((Qemu, Kvm))),
            (VmmChoice::Qemu, Unusable, Whole, Some((Qemu, Tcg))),
            (VmmChoice::Qemu, Absent, Nothing, Some((Qemu, Tcg))),
        ];
        for (wish, verdict, installed, chosen) in expected {
            let dir = tempfile::tempdir().unwrap();
            let (firecracker, qemu) = programs(dir.path(), installed);
            let choice = choose(wish, &firecracker, &JailerChoice::Find, &qemu, &probe(verdict)).ok();
            let found = choice.as_ref().map(|choice| (choice.vmm.info().kind, choice.vmm.info().accelerator));
            assert_eq!(found, chosen, "{wish:?}, KVM {verdict:?}, installed: {installed:?}");
            assert!(choice.is_none_or(|choice| choice.reason.ends_with("probed")));
        }
    }

    #[test]
    fn a_missing_qemu_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let missing = dir.path().join("qemu");
        let error =
            choose(VmmChoice::Auto, &missing, &JailerChoice::Find, &missing, &probe(KvmVerdict::Absent));
        let error = error.unwrap_err();
        assert!(matches!(error, VmmError::NotFound { program } if program == missing));
    }
}
