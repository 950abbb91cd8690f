//! What snapshots made now depend on: hashes of the guest's artifacts and facts about this machine. Keeps
//! hashes of large files, so that a restart does not read them again.

use std::fs::{self, File, Metadata};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use manta_host::facts;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tracing::{debug, warn};

use crate::artifacts::Artifacts;
use crate::config::EngineConfig;
use crate::snapshots::{Machine, hash_text, hash_to_end};

/// Below the work directory.
const HASHES_FILE: &str = "hashes.json";
/// A file that changed as recently as this may change again without its times changing: clocks of file
/// systems go in steps, of 10 ms at most.
const SETTLED_AFTER: Duration = Duration::from_secs(1);

/// An artifact that could not be hashed.
#[derive(Debug, Error)]
#[error("cannot hash {path}")]
pub(crate) struct FingerprintError {
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// The machine that every sandbox of these settings is. Blocking: seconds, when a root image is hashed for
/// the first time.
///
/// # Errors
/// When an artifact cannot be read.
pub(crate) fn machine(config: &EngineConfig, artifacts: &Artifacts) -> Result<Machine, FingerprintError> {
    let mut hashes = Hashes::read(&config.work_dir.join(HASHES_FILE));
    let vmm = config.vmm.info();
    // The machine is described without its disk, which differs from sandbox to sandbox.
    let spec = artifacts.spec(config, PathBuf::new());
    let machine = Machine {
        vmm: vmm.kind.to_string(),
        vmm_version: vmm.version.clone(),
        accelerator: vmm.accelerator.to_string(),
        devices: hash_text(&config.vmm.machine(&spec)),
        cpu: facts::cpu_model().unwrap_or_default(),
        cpu_flags: hash_text(&facts::cpu_flags().join(" ")),
        tsc_khz: facts::tsc_khz(),
        host_kernel: facts::kernel_release(),
        guest_kernel: hashes.of(&artifacts.kernel.path, &artifacts.kernel.file)?,
        rootfs: hashes.of(&artifacts.rootfs.path, &artifacts.rootfs.file)?,
        agent: hashes.of(&artifacts.agent.path, &artifacts.agent.file)?,
        dns: config.dns.clone(),
        agent_protocol: manta_agent_proto::PROTOCOL_VERSION,
        vcpus: config.vcpus,
        mem_mib: config.mem_mib,
        disk_mib: config.disk_mib,
    };
    hashes.write();
    Ok(machine)
}

/// Hashes of files, as known from earlier starts. A file is known by its path and by what changes with it.
#[derive(Debug)]
struct Hashes {
    /// Where they are kept.
    path: PathBuf,
    known: Vec<Known>,
    /// Those asked for this time, which are kept.
    used: Vec<Known>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Known {
    file: Identity,
    sha256: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Identity {
    path: PathBuf,
    dev: u64,
    ino: u64,
    bytes: u64,
    mtime_ns: i64,
    ctime_ns: i64,
}

impl Hashes {
    /// What cannot be read is forgotten.
    fn read(path: &Path) -> Self {
        let known = fs::read(path).ok().and_then(|text| serde_json::from_slice(&text).ok());
        Self { path: path.to_owned(), known: known.unwrap_or_default(), used: Vec::new() }
    }

    /// SHA-256 of a file or block device.
    fn of(&mut self, path: &Path, file: &File) -> Result<String, FingerprintError> {
        self.hash(path, file).map_err(|source| FingerprintError { path: path.to_owned(), source })
    }

    fn hash(&mut self, path: &Path, file: &File) -> io::Result<String> {
        let before = file.metadata()?;
        let identity = Identity::of(path, &before);
        let known = self.known.iter().find(|known| known.file == identity);
        // What is written to a block device does not show in its times.
        if let Some(known) = known.filter(|_| before.is_file()) {
            self.used.push(known.clone());
            return Ok(known.sha256.clone());
        }
        debug!(path = %path.display(), "hashing");
        let begun = SystemTime::now();
        let sha256 = hash_to_end(file)?;
        if Identity::of(path, &file.metadata()?) != identity {
            return Err(io::Error::other("it changed while it was read"));
        }
        if before.is_file() && identity.settled(begun) {
            self.used.push(Known { file: identity, sha256: sha256.clone() });
        }
        Ok(sha256)
    }

    /// Best effort: without it the next start takes longer.
    fn write(&self) {
        if self.used == self.known {
            return;
        }
        if let Err(error) = self.replace() {
            warn!(path = %self.path.display(), %error, "hashes of artifacts are not kept");
        }
    }

    fn replace(&self) -> io::Result<()> {
        let unfinished = self.path.with_extension("json.unfinished");
        match fs::remove_file(&unfinished) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = File::options().write(true).create_new(true).mode(0o600).open(&unfinished)?;
        file.write_all(&serde_json::to_vec_pretty(&self.used)?)?;
        file.sync_all()?;
        fs::rename(&unfinished, &self.path)
    }
}

impl Identity {
    fn of(path: &Path, found: &Metadata) -> Self {
        let ns = |s: i64, ns: i64| s.saturating_mul(1_000_000_000).saturating_add(ns);
        Self {
            path: path.to_owned(),
            dev: found.dev(),
            ino: found.ino(),
            bytes: found.len(),
            mtime_ns: ns(found.mtime(), found.mtime_nsec()),
            ctime_ns: ns(found.ctime(), found.ctime_nsec()),
        }
    }

    /// Whether any later change gets other times.
    fn settled(&self, now: SystemTime) -> bool {
        let changed = UNIX_EPOCH + Duration::from_nanos(u64::try_from(self.ctime_ns).unwrap_or_default());
        now.duration_since(changed).is_ok_and(|age| age >= SETTLED_AFTER)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file that was not touched for long, of this machine.
    fn settled_file() -> PathBuf {
        PathBuf::from("/etc/passwd")
    }

    fn hash_of(path: &Path) -> String {
        hash_to_end(File::open(path).unwrap()).unwrap()
    }

    #[test]
    fn a_settled_file_is_hashed_once() {
        let dir = tempfile::tempdir().unwrap();
        let kept = dir.path().join(HASHES_FILE);
        let mut first = Hashes::read(&kept);
        let file = settled_file();
        assert_eq!(first.of(&file, &File::open(&file).unwrap()).unwrap(), hash_of(&file));
        first.write();
        // Another hash in its place, by which it shows whether the file was read.
        let text = fs::read_to_string(&kept).unwrap();
        fs::write(&kept, text.replace(&hash_of(&file), "kept")).unwrap();
        assert_eq!(Hashes::read(&kept).of(&file, &File::open(&file).unwrap()).unwrap(), "kept");
    }

    #[test]
    fn every_part_of_a_files_identity_counts() {
        let dir = tempfile::tempdir().unwrap();
        let file = settled_file();
        let real = Identity::of(&file, &fs::metadata(&file).unwrap());
        let others = [
            Identity { path: "/etc/other".into(), ..real.clone() },
            Identity { dev: real.dev + 1, ..real.clone() },
            Identity { ino: real.ino + 1, ..real.clone() },
            Identity { bytes: real.bytes + 1, ..real.clone() },
            Identity { mtime_ns: real.mtime_ns + 1, ..real.clone() },
            Identity { ctime_ns: real.ctime_ns + 1, ..real.clone() },
        ];
        for other in others {
            let known = vec![Known { file: other, sha256: "stale".to_owned() }];
            let mut hashes = Hashes { path: dir.path().join(HASHES_FILE), known, used: Vec::new() };
            assert_eq!(hashes.of(&file, &File::open(&file).unwrap()).unwrap(), hash_of(&file));
            assert!(hashes.used.iter().all(|used| used.sha256 != "stale"));
        }
    }

    #[test]
    fn a_file_that_has_just_changed_is_hashed_each_time() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("artifact");
        fs::write(&file, "one").unwrap();
        let mut hashes = Hashes::read(&dir.path().join(HASHES_FILE));
        assert_eq!(hashes.of(&file, &File::open(&file).unwrap()).unwrap(), hash_text("one"));
        assert!(hashes.used.is_empty());
        let changed = Identity::of(&file, &fs::metadata(&file).unwrap());
        assert!(!changed.settled(SystemTime::now()));
        assert!(changed.settled(SystemTime::now() + 2 * SETTLED_AFTER));
    }

    #[test]
    fn a_file_of_garbage_is_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let kept = dir.path().join(HASHES_FILE);
        fs::write(&kept, "[{\"file\": 1}]").unwrap();
        let mut hashes = Hashes::read(&kept);
        assert_eq!(
            hashes.of(&settled_file(), &File::open(settled_file()).unwrap()).unwrap(),
            hash_of(&settled_file())
        );
        hashes.write();
        assert_eq!(Hashes::read(&kept).known, hashes.used);
    }
}
