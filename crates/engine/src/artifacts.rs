//! What every microVM is made from: the artifacts as given, and two files the server makes of its own.
//! VMMs get descriptors or links, not paths, so only the files' own permissions count. Links need the files on the
//! file system of the work directory, so clones of the artifacts are kept there. (A link to an artifact itself would
//! change it, as far as `ctime` tells, for who looks whether it has changed.)

use std::fs::{self, File, Metadata, Permissions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use manta_host::disk::{CloneMode, clone_file, ensure_empty_ext4};
use manta_host::net::GUEST;
use manta_vmm::VmSpec;
use tracing::info;

use crate::config::EngineConfig;
use crate::dirs::make_dir;
use crate::error::{StartError, chain};

/// A file as it was when the server started, whatever is put in its place later: snapshots depend on it.
#[derive(Debug, Clone)]
pub(crate) struct Pinned {
    /// As configured.
    pub(crate) path: PathBuf,
    pub(crate) file: Arc<File>,
    /// The same content in the work directory, if VMMs need it there.
    kept: Option<PathBuf>,
}

impl Pinned {
    fn open(path: &Path) -> Result<Self, StartError> {
        check(path)?;
        let file = File::open(path)
            .map_err(|error| StartError::Artifact { path: path.to_owned(), reason: error.to_string() })?;
        Ok(Self { path: path.to_owned(), file: Arc::new(file), kept: None })
    }

    /// By which this process opens it again.
    fn by_descriptor(&self) -> PathBuf {
        by_descriptor(&self.file)
    }

    /// What VMMs are given.
    fn for_vmms(&self) -> PathBuf {
        self.kept.clone().unwrap_or_else(|| self.by_descriptor())
    }

    /// Keeps a clone in `dir`, under a name that no other content has; blocks for as long as it takes to copy it,
    /// where it cannot be cloned and is not there from an earlier start. A block device stays where it is.
    fn keep(&mut self, dir: &Path, name: &str) -> Result<(), StartError> {
        let made = self.file.metadata().map_err(|error| error.to_string()).and_then(|found| {
            if found.is_file() { self.clone_once(dir, name, &found).map(Some) } else { Ok(None) }
        });
        let unusable = |reason| StartError::Artifact { path: self.path.clone(), reason };
        self.kept = made.map_err(unusable)?;
        Ok(())
    }

    fn clone_once(&self, dir: &Path, name: &str, found: &Metadata) -> Result<PathBuf, String> {
        let (mtime, mtime_ns) = (found.mtime(), found.mtime_nsec());
        let (ctime, ctime_ns) = (found.ctime(), found.ctime_nsec());
        let (dev, ino) = (found.dev(), found.ino());
        let kept = dir.join(format!("{name}-{dev:x}-{ino:x}-{mtime}.{mtime_ns}-{ctime}.{ctime_ns}"));
        if fs::symlink_metadata(&kept).is_ok_and(|kept| kept.is_file() && kept.len() == found.len()) {
            return Ok(kept);
        }
        info!(artifact = %self.path.display(), "cloning into the work directory, for microVMs");
        let unfinished = dir.join(format!("{name}.unfinished"));
        let clone = || -> Result<(), Box<dyn std::error::Error>> {
            remove_file(&unfinished)?;
            clone_file(&self.by_descriptor(), &unfinished, CloneMode::Auto)?;
            let clone = File::open(&unfinished)?;
            clone.set_permissions(Permissions::from_mode(0o444))?;
            // The content before the name: after a power cut there is a whole file or none.
            clone.sync_all()?;
            Ok(fs::rename(&unfinished, &kept)?)
        };
        clone().map_err(|error| format!("cannot clone it into {}: {}", dir.display(), chain(&*error)))?;
        Ok(kept)
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
        let (mut kernel, mut rootfs) = (Pinned::open(&config.kernel)?, Pinned::open(&config.rootfs)?);
        let agent = Pinned::open(&config.agent)?;
        let dir = config.work_dir.join("artifacts");
        make_dir(&dir)?;
        let initramfs = dir.join("initramfs.cpio");
        manta_vmm::write_initramfs(&agent.by_descriptor(), &initramfs)
            .map_err(|error| StartError::Artifact { path: config.agent.clone(), reason: chain(&error) })?;
        let empty_disk = dir.join(format!("empty-{}.ext4", config.disk_mib));
        ensure_empty_ext4(&empty_disk, u64::from(config.disk_mib))
            .map_err(StartError::host("make the empty disk that guests' disks are cloned from"))?;
        if config.vmm.needs_links() {
            kernel.keep(&dir, "kernel")?;
            rootfs.keep(&dir, "rootfs")?;
        }
        let kept = [&kernel, &rootfs].into_iter().filter_map(|pinned| pinned.kept.as_ref());
        remove_others(&dir, &[&initramfs, &empty_disk].into_iter().chain(kept).collect::<Vec<_>>());
        Ok(Self { kernel, rootfs, agent, initramfs, empty_disk })
    }

    /// The machine every sandbox is, with `disk` as its own.
    pub(crate) fn spec(&self, config: &EngineConfig, disk: PathBuf) -> VmSpec {
        VmSpec {
            kernel: self.kernel.for_vmms(),
            initramfs: self.initramfs.clone(),
            rootfs: self.rootfs.for_vmms(),
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

/// One that is not there is fine.
fn remove_file(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Best effort: what stays only takes room.
fn remove_others(dir: &Path, keep: &[&PathBuf]) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if !keep.contains(&&entry.path()) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clone_is_kept_until_the_artifact_changes() {
        let root = tempfile::tempdir().unwrap();
        let (image, dir) = (root.path().join("image"), root.path().join("kept"));
        fs::create_dir(&dir).unwrap();
        let keep = || {
            let mut pinned = Pinned::open(&image).unwrap();
            pinned.keep(&dir, "rootfs").unwrap();
            pinned.for_vmms()
        };
        fs::write(&image, "one").unwrap();
        let before = fs::metadata(&image).unwrap();
        let one = keep();
        let kept = fs::metadata(&one).unwrap();
        assert_eq!((fs::read(&one).unwrap(), kept.mode() & 0o777), (b"one".to_vec(), 0o444));
        assert_ne!(kept.ino(), before.ino());
        fs::hard_link(&one, root.path().join("of a VM")).unwrap();
        assert_eq!(fs::metadata(&image).unwrap().ctime_nsec(), before.ctime_nsec(), "links leave it alone");
        assert_eq!(
            (keep(), fs::metadata(&one).unwrap().ino()),
            (one.clone(), kept.ino()),
            "it is cloned once"
        );

        // Another image of the same name and length, as a build puts it in place; and a clone that was broken off.
        fs::write(root.path().join("new"), "two").unwrap();
        fs::rename(root.path().join("new"), &image).unwrap();
        fs::write(dir.join("rootfs.unfinished"), "t").unwrap();
        let two = keep();
        assert_eq!(fs::read(&two).unwrap(), b"two");
        remove_others(&dir, &[&two]);
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 1);
    }

    #[test]
    fn an_artifact_that_is_gone_is_kept_all_the_same() {
        let root = tempfile::tempdir().unwrap();
        let image = root.path().join("image");
        fs::write(&image, "one").unwrap();
        let mut pinned = Pinned::open(&image).unwrap();
        fs::remove_file(&image).unwrap();
        pinned.keep(root.path(), "rootfs").unwrap();
        assert_eq!(fs::read(pinned.for_vmms()).unwrap(), b"one");
    }
}
