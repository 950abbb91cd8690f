//! What every microVM is made from: the artifacts as given, and two files the server makes of its own.
//! VMMs get descriptors, not paths, so only the files' own permissions count.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use manta_host::disk::ensure_empty_ext4;
use manta_host::net::GUEST;
use manta_vmm::VmSpec;

use crate::config::EngineConfig;
use crate::dirs::make_dir;
use crate::error::{StartError, chain};

/// A file as it was when the server started, whatever is put in its place later: snapshots depend on it.
#[derive(Debug, Clone)]
pub(crate) struct Pinned {
    /// As configured.
    pub(crate) path: PathBuf,
    pub(crate) file: Arc<File>,
}

impl Pinned {
    fn open(path: &Path) -> Result<Self, StartError> {
        check(path)?;
        let file = File::open(path)
            .map_err(|error| StartError::Artifact { path: path.to_owned(), reason: error.to_string() })?;
        Ok(Self { path: path.to_owned(), file: Arc::new(file) })
    }

    /// By which this process opens it again.
    fn by_descriptor(&self) -> PathBuf {
        by_descriptor(&self.file)
    }
}

/// By which this process opens an open file again.
pub(crate) fn by_descriptor(file: &File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

/// Checked, ready to use.
#[derive(Debug, Clone)]
pub(crate) struct Artifacts {
    pub(crate) kernel: Pinned,
    pub(crate) initramfs: PathBuf,
    pub(crate) rootfs: Pinned,
    pub(crate) agent: Pinned,
    /// An empty file system; each guest's own disk is a clone of it.
    pub(crate) empty_disk: PathBuf,
}

impl Artifacts {
    /// Checks what is given, makes the rest below `config.work_dir`, and removes what an earlier start made there
    /// and this one does not use.
    pub(crate) fn prepare(config: &EngineConfig) -> Result<Self, StartError> {
        let (kernel, rootfs) = (Pinned::open(&config.kernel)?, Pinned::open(&config.rootfs)?);
        let agent = Pinned::open(&config.agent)?;
        let dir = config.work_dir.join("artifacts");
        make_dir(&dir)?;
        let initramfs = dir.join("initramfs.cpio");
        manta_vmm::write_initramfs(&agent.by_descriptor(), &initramfs)
            .map_err(|error| StartError::Artifact { path: config.agent.clone(), reason: chain(&error) })?;
        let empty_disk = dir.join(format!("empty-{}.ext4", config.disk_mib));
        ensure_empty_ext4(&empty_disk, u64::from(config.disk_mib))
            .map_err(StartError::host("make the empty disk that guests' disks are cloned from"))?;
        remove_others(&dir, &[&initramfs, &empty_disk]);
        Ok(Self { kernel, rootfs, agent, initramfs, empty_disk })
    }

    /// The machine every sandbox is, with `disk` as its own.
    pub(crate) fn spec(&self, config: &EngineConfig, disk: PathBuf) -> VmSpec {
        VmSpec {
            kernel: self.kernel.by_descriptor(),
            initramfs: self.initramfs.clone(),
            rootfs: self.rootfs.by_descriptor(),
            disk,
            vcpus: config.vcpus,
            mem_mib: config.mem_mib,
            mac: GUEST.mac,
            vsock_port: config.vsock_port,
            disk_limits: config.disk_limits,
        }
    }
}

fn check(path: &Path) -> Result<(), StartError> {
    let unusable = |reason: String| StartError::Artifact { path: path.to_owned(), reason };
    let found = fs::metadata(path).map_err(|error| {
        unusable(format!("{error}; build the guest artifacts with `manta image build`, or set the path"))
    })?;
    if found.is_dir() {
        return Err(unusable("it is a directory".to_owned()));
    }
    if found.mode() & 0o004 == 0 {
        return Err(unusable(
            "VMMs run as users of their own and may not read it; `chmod o+r` it".to_owned(),
        ));
    }
    Ok(())
}

/// Best effort: what stays only takes room.
fn remove_others(dir: &Path, keep: &[&PathBuf]) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if !keep.contains(&&entry.path()) {
            let _ = fs::remove_file(entry.path());
        }
    }
}
