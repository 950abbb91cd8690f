//! The lab's own system: a small Debian of this machine's release, its stock cloud kernel, and an initramfs
//! that finds the disks. Nothing of Manta is in it, so it is made once and kept in the cache directory.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::packages::{Source, codename, of_machine};
use crate::process::{run_into, run_quietly};
use crate::progress::{Step, skipped};
use crate::{hash, place};

/// What the server, the tests and a person in the shell use in there.
const PACKAGES: &str = "curl,e2fsprogs,iproute2,kmod,nftables,procps,strace,systemd,xfsprogs";
const KERNEL: &str = "linux-image-cloud-amd64";
/// In the order in which they load; the kernel's other modules load by name, from the root.
const INITRAMFS_MODULES: [&str; 6] =
    ["virtio_ring", "virtio", "virtio_pci_legacy_dev", "virtio_pci_modern_dev", "virtio_pci", "virtio_blk"];
const INITRAMFS_INIT: &str = include_str!("initramfs.sh");
/// Sparse; the packages and the kernel's modules take a quarter of it.
const ROOT_SIZE: &str = "2G";
/// To be raised when this file makes something else from the same inputs.
const RECIPE: &str = "1";

/// The lab's system, on disk.
#[derive(Debug)]
pub(super) struct Image {
    dir: PathBuf,
}

impl Image {
    /// The Linux kernel, as QEMU boots it.
    pub(super) fn kernel(&self) -> PathBuf {
        self.dir.join("vmlinuz")
    }

    /// The initramfs.
    pub(super) fn initramfs(&self) -> PathBuf {
        self.dir.join("initramfs")
    }

    /// The root file system, ext4; to be left unchanged.
    pub(super) fn root(&self) -> PathBuf {
        self.dir.join("root.ext4")
    }
}

/// Makes the image unless the cache has it.
pub(super) fn ensure() -> Result<Image> {
    const NAME: &str = "lab image";
    let suite = codename()?;
    let inputs = [RECIPE, &suite, PACKAGES, KERNEL, ROOT_SIZE, INITRAMFS_INIT];
    let hash = hash::of_inputs(inputs.into_iter().chain(INITRAMFS_MODULES));
    let labs = place::ensure_dir(place::cache()?.join("lab"))?;
    let dir = labs.join(&hash);
    let lock = File::create(labs.join(".lock")).context("cannot make the lock file")?;
    lock.lock().context("cannot wait for another xtask that makes the same")?;
    if dir.is_dir() {
        skipped(NAME, format_args!("{} is up to date", dir.display()));
        return Ok(Image { dir });
    }
    let step = Step::begin(NAME, format_args!("a Debian {suite} for the emulated host"));
    let work = tempfile::tempdir_in(&labs).context("cannot make a temporary directory")?;
    let (root, kernel, done) =
        (work.path().join("root"), work.path().join("kernel"), work.path().join("done"));
    fs::create_dir(&done)?;

    debian(&suite, "minbase", PACKAGES, &root)?;
    step.now("its kernel");
    debian(&suite, "extract", KERNEL, &kernel)?;
    // Debian 13's packages know no directories but those in /usr.
    let all =
        ["lib/modules", "usr/lib/modules"].map(|dir| kernel.join(dir)).into_iter().find(|dir| dir.is_dir());
    let all = all.with_context(|| format!("{KERNEL} brought no modules"))?;
    let release = only_entry(&all)?;
    let modules = root.join("lib/modules").join(&release);
    fs::create_dir_all(root.join("lib/modules"))?;
    fs::rename(all.join(&release), &modules).context("cannot move the kernel's modules")?;
    run_quietly(Command::new("depmod").arg("--basedir").arg(&root).arg(&release))?;
    fs::copy(kernel.join(format!("boot/vmlinuz-{release}")), done.join("vmlinuz")).context("no kernel")?;
    initramfs(&modules, &work.path().join("initramfs"), &done.join("initramfs"))?;

    step.now("its root file system");
    fs::create_dir_all(root.join("srv/manta"))?;
    run_quietly(
        Command::new("mke2fs")
            .args(["-q", "-t", "ext4", "-O", "^has_journal", "-d"])
            .args([&root, &done.join("root.ext4")])
            .arg(ROOT_SIZE),
    )?;
    remove_old(&labs, work.path());
    fs::rename(&done, &dir).context("cannot put the image into place")?;
    step.done(format_args!("{} is ready", dir.display()));
    Ok(Image { dir })
}

/// `mmdebstrap` from the machine's own mirrors.
fn debian(suite: &str, variant: &str, packages: &str, target: &Path) -> Result<()> {
    let mut mmdebstrap = Command::new("mmdebstrap");
    mmdebstrap.arg(format!("--variant={variant}")).arg(format!("--include={packages}"));
    mmdebstrap.arg("--format=directory");
    mmdebstrap.args(
        ["doc", "info", "locale", "man"].map(|dir| format!("--dpkgopt=path-exclude=/usr/share/{dir}/*")),
    );
    mmdebstrap.arg(suite).arg(target);
    if let Some(Source { uris, signed_by }) = of_machine(suite)? {
        let option = signed_by.map(|key| format!("[signed-by={key}] ")).unwrap_or_default();
        mmdebstrap.args(uris.split_whitespace().map(|uri| format!("deb {option}{uri} {suite} main")));
    }
    run_quietly(&mut mmdebstrap).with_context(|| format!("cannot make a Debian {suite}"))
}

/// A compressed cpio archive of busybox, the modules of the disks, and the script that mounts them.
fn initramfs(modules: &Path, dir: &Path, target: &Path) -> Result<()> {
    for name in ["bin", "lib", "proc", "sys", "dev", "root"] {
        fs::create_dir_all(dir.join(name))?;
    }
    fs::copy("/bin/busybox", dir.join("bin/busybox")).context("no /bin/busybox: package busybox-static")?;
    let init = dir.join("init");
    fs::write(&init, INITRAMFS_INIT)?;
    fs::set_permissions(&init, fs::Permissions::from_mode(0o755))?;
    let known = fs::read_to_string(modules.join("modules.dep")).context("no modules.dep")?;
    for (position, name) in INITRAMFS_MODULES.iter().enumerate() {
        // One that is not there is part of that kernel; Debian 13 compresses them.
        let plain = format!("/{name}.ko");
        let paths = known.lines().filter_map(|line| line.split(':').next());
        for path in paths.filter(|path| path.trim_end_matches(".xz").ends_with(&plain)) {
            let mut copy = Command::new(if path.ends_with(".xz") { "xzcat" } else { "cat" });
            let target = File::create(dir.join(format!("lib/{position}-{name}.ko")))?;
            run_into(copy.arg(modules.join(path)), target)?;
        }
    }
    let names = dir.with_extension("names");
    run_into(Command::new("find").args([".", "-print0"]).current_dir(dir), File::create(&names)?)?;
    let mut cpio = Command::new("cpio");
    cpio.args(["--create", "--format=newc", "--quiet", "--null"]).current_dir(dir).stdin(File::open(&names)?);
    run_into(&mut cpio, File::create(target)?)
}

fn only_entry(dir: &Path) -> Result<String> {
    let mut entries = fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))?;
    match (entries.next(), entries.next()) {
        (Some(Ok(entry)), None) => Ok(entry.file_name().to_string_lossy().into_owned()),
        _ => bail!("{} should have one entry", dir.display()),
    }
}

/// Images of earlier recipes; a failure leaves files behind that are only large.
fn remove_old(labs: &Path, work: &Path) {
    let entries = fs::read_dir(labs).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()));
    for path in entries.filter(|path| path != work) {
        let _ = fs::remove_dir_all(path);
    }
}
