//! The Debian packages each purpose needs, and their installation.

mod backports;

use std::process::Command;

use anyhow::{Context, Result, bail};

pub(crate) use backports::{Source, codename, of_machine};

use crate::process::{answers, capture, run_quietly};
use crate::progress::{Step, skipped};

/// To run sandboxes: file systems for the writable disks. QEMU comes on top, see [`QEMU`].
const RUN: &[&str] = &["ca-certificates", "curl", "e2fsprogs"];
/// To build the guest artifacts: `manta_image::DEBIAN_PACKAGES` (a test keeps the two equal; depending on that
/// crate would make every `cargo xtask` wait for its dependencies).
const IMAGE: &[&str] = &[
    "bc",
    "bison",
    "e2fsprogs",
    "flex",
    "gcc",
    "libelf-dev",
    "linux-source-6.12",
    "make",
    "mmdebstrap",
    "xz-utils",
];
/// To fetch Firecracker.
const FIRECRACKER: &[&str] = &["python3-pip"];
/// To run the tests here: `nft` shows what the server did; `mkfs.xfs` makes a work directory with reflinks.
const TEST: &[&str] = &["git", "iproute2", "nftables", "procps", "xfsprogs"];
/// To build libFuzzer, which comes as C++.
const FUZZ: &[&str] = &["g++"];
/// To make the emulated KVM host.
const LAB: &[&str] = &["busybox-static", "cpio", "kmod", "mmdebstrap", "util-linux"];
/// The one package whose version matters: up to 7.2, TCG translates every program anew, and before 8.2 memory
/// cannot be mapped from a read-only file.
const QEMU: &str = "qemu-system-x86";
/// Major and minor version; what the driver in `manta-vmm` demands too.
const QEMU_MIN: (u32, u32) = (8, 2);

/// What packages are wanted for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// `cargo xtask up`
    Run,
    /// `cargo xtask lab`
    Lab,
    /// `cargo xtask fuzz`
    Fuzz,
    /// `cargo xtask test`
    Test,
}

impl Purpose {
    fn packages(self) -> Vec<&'static str> {
        let lists: &[&[&str]] = match self {
            Self::Run => &[RUN, IMAGE, FIRECRACKER],
            Self::Lab => &[RUN, IMAGE, FIRECRACKER, LAB],
            Self::Fuzz => &[FUZZ],
            Self::Test => &[RUN, IMAGE, FIRECRACKER, LAB, TEST, FUZZ],
        };
        let mut packages = lists.concat();
        packages.sort_unstable();
        packages.dedup();
        packages
    }
}

/// Installs what is missing.
pub(crate) fn ensure(purpose: Purpose) -> Result<()> {
    const NAME: &str = "packages";
    let wanted = purpose.packages();
    let missing = missing(&wanted)?;
    let qemu = installed_qemu();
    if missing.is_empty() && qemu.is_some_and(|version| version >= QEMU_MIN) {
        skipped(NAME, format_args!("all {} are installed", wanted.len() + 1));
        return Ok(());
    }
    let step = Step::begin(NAME, "reading the package lists");
    update()?;
    if !missing.is_empty() {
        step.now(format_args!("installing {}", missing.join(" ")));
        install(&missing, None)?;
    }
    if qemu.is_none_or(|version| version < QEMU_MIN) {
        let suite = if candidate_qemu()?.is_some_and(|version| version >= QEMU_MIN) {
            None
        } else {
            let suite = backports::ensure().context("Manta needs QEMU 8.2 or later")?;
            step.say(format_args!(
                "added {} and {} for {QEMU}, pinned so that nothing else comes from there",
                backports::SOURCES,
                backports::PREFERENCES
            ));
            update()?;
            Some(suite)
        };
        step.now(format_args!("installing {QEMU} {}", suite.as_deref().unwrap_or_default()));
        install(&[QEMU], suite.as_deref())?;
    }
    step.done(format_args!("{} installed", wanted.len() + 1));
    Ok(())
}

/// Those of `wanted` that are not fully installed.
fn missing<'a>(wanted: &[&'a str]) -> Result<Vec<&'a str>> {
    if !answers("dpkg-query") {
        bail!(
            "this machine has no dpkg: set-up knows only Debian 12 and its relatives; install these by hand \
             and use the `cargo` and `manta` commands of CONTRIBUTING.md: {QEMU} (8.2 or later) {}",
            wanted.join(" ")
        );
    }
    // dpkg-query fails when it does not know one of the names, and lists the others all the same.
    let listed = Command::new("dpkg-query")
        .args(["--show", "--showformat=${db:Status-Status} ${Package}\n"])
        .args(wanted)
        .output()
        .context("dpkg-query")?;
    let listed = String::from_utf8_lossy(&listed.stdout);
    let installed: Vec<_> = listed.lines().filter_map(|line| line.strip_prefix("installed ")).collect();
    Ok(wanted.iter().copied().filter(|package| !installed.contains(package)).collect())
}

/// The version of the QEMU that is on this machine, wherever it came from.
fn installed_qemu() -> Option<(u32, u32)> {
    let output = Command::new("qemu-system-x86_64").arg("--version").output().ok()?;
    version_after(&String::from_utf8_lossy(&output.stdout), "version ")
}

/// The version of the QEMU that apt would install.
fn candidate_qemu() -> Result<Option<(u32, u32)>> {
    let policy = capture(Command::new("apt-cache").args(["policy", QEMU]).env("LC_ALL", "C"))?;
    Ok(version_after(&policy.replace(": 1:", ": "), "Candidate: "))
}

/// The first two numbers of the version that follows `mark`.
fn version_after(text: &str, mark: &str) -> Option<(u32, u32)> {
    let (_, rest) = text.split_once(mark)?;
    let mut numbers = rest.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

fn update() -> Result<()> {
    run_quietly(apt_get().arg("update")).context("check the network and /etc/apt/sources.list*")
}

fn install(packages: &[&str], suite: Option<&str>) -> Result<()> {
    let mut apt_get = apt_get();
    apt_get.args(["install", "--yes", "--no-install-recommends"]);
    if let Some(suite) = suite {
        apt_get.args(["--target-release", suite]);
    }
    run_quietly(apt_get.args(packages)).with_context(|| {
        format!("cannot install packages; try `apt-get install {}` by hand", packages.join(" "))
    })
}

fn apt_get() -> Command {
    let mut apt_get = Command::new("apt-get");
    apt_get.env("DEBIAN_FRONTEND", "noninteractive").args(["-o", "DPkg::Lock::Timeout=120"]);
    apt_get
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_from_qemu_and_from_apt() {
        let qemu = "QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2+deb13u1~bpo12+1)";
        assert_eq!(version_after(qemu, "version "), Some((10, 0)));
        assert_eq!(version_after("  Candidate: 8.2.2+ds-0ubuntu1.7", "Candidate: "), Some((8, 2)));
        assert_eq!(version_after("  Candidate: 7.2+dfsg-7", "Candidate: "), Some((7, 2)));
        assert_eq!(version_after("  Candidate: (none)", "Candidate: "), None);
    }

    #[test]
    fn qemu_will_do_from_8_2_on() {
        for (version, will_do) in [("7.2.19", false), ("8.1.5", false), ("8.2.2", true), ("10.0.2", true)] {
            let found = version_after(&format!("QEMU emulator version {version}"), "version ").unwrap();
            assert_eq!(found >= QEMU_MIN, will_do, "{version}");
        }
    }

    #[test]
    fn the_image_is_built_with_what_its_crate_asks_for() {
        assert_eq!(IMAGE, manta_image::DEBIAN_PACKAGES);
    }

    #[test]
    fn testing_needs_what_running_needs() {
        let test = Purpose::Test.packages();
        assert!(Purpose::Run.packages().iter().all(|package| test.contains(package)));
        assert!(Purpose::Lab.packages().iter().all(|package| test.contains(package)));
    }

    #[test]
    fn an_unknown_package_is_missing_and_dpkg_is_not() {
        assert_eq!(missing(&["dpkg", "no-such-package-as-this"]).unwrap(), ["no-such-package-as-this"]);
    }
}
