//! The whole build: which artifacts are missing, making them, putting all three into place.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::process::geteuid;
use serde_json::Map;

use crate::cache::{Cache, Entry, Lock};
use crate::command::SYSTEM_PATH;
use crate::elf;
use crate::error::{ImageError, cannot};
use crate::hash::file_sha256;
use crate::interrupt::Interrupts;
use crate::kernel;
use crate::manifest::{Artifact, Manifest};
use crate::place;
use crate::progress::Progress;
use crate::rootfs;

const AGENT_FILE: &str = "manta-agent";
const MANIFEST_FILE: &str = "manifest.json";

/// What has to be installed on a Debian machine to build the artifacts.
pub const DEBIAN_PACKAGES: &[&str] = &[
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
/// The programs a build starts, and a header it compiles against, with the package of each.
const NEEDED: &[(&str, &str)] = &[
    ("/usr/include/libelf.h", "libelf-dev"),
    ("bc", "bc"),
    ("bison", "bison"),
    ("flex", "flex"),
    ("gcc", "gcc"),
    ("make", "make"),
    ("mke2fs", "e2fsprogs"),
    ("mmdebstrap", "mmdebstrap"),
    ("strip", "binutils"),
    ("xz", "xz-utils"),
];

/// What to build, and where.
#[derive(Debug, Clone)]
pub struct BuildOptions {
    /// Directory that the server takes the artifacts from; made if it is not there.
    pub out: PathBuf,
    /// The cache, which outlives checkouts; made if it is not there.
    pub cache: PathBuf,
    /// The agent's binary.
    pub agent: PathBuf,
    /// Build the rootfs even when its recipe has not changed: for Debian's updates.
    pub refresh: bool,
}

/// Where the artifacts are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Artifacts {
    /// The guest's kernel, an uncompressed ELF file.
    pub kernel: PathBuf,
    /// The guest's root file system, a read-only ext4 image.
    pub rootfs: PathBuf,
    /// The guest's agent, a static binary.
    pub agent: PathBuf,
    /// What they are made of, as JSON.
    pub manifest: PathBuf,
}

/// Makes what is missing or out of date. With nothing to do it takes milliseconds. From here on this process
/// does not die of SIGINT, SIGTERM and SIGHUP: they end the build, with [`ImageError::Interrupted`].
///
/// # Errors
/// See [`ImageError`]. Artifacts that were in place before are still there, whole.
pub fn build(options: &BuildOptions, progress: &Progress) -> Result<Artifacts, ImageError> {
    let interrupts = Interrupts::catch()?;
    let agent = read_agent(&options.agent)?;
    fs::create_dir_all(&options.out).map_err(cannot("make", &options.out))?;
    let cache = Cache::open(&options.cache)?;
    let site = Site { options, cache: &cache, interrupts: &interrupts, progress };
    // The rootfs first: it is made in a minute, so that what is wrong with the network shows early.
    let rootfs = site.rootfs()?;
    let kernel = site.kernel()?;

    let artifacts = Artifacts {
        kernel: options.out.join(kernel::FILE),
        rootfs: options.out.join(rootfs::FILE),
        agent: options.out.join(AGENT_FILE),
        manifest: options.out.join(MANIFEST_FILE),
    };
    place::put(&rootfs.file, &artifacts.rootfs, 0o644)?;
    interrupts.check()?;
    place::put(&kernel.file, &artifacts.kernel, 0o644)?;
    let agent = put_agent(&options.agent, &agent, &artifacts.agent)?;
    let described = [(rootfs::FILE, rootfs.artifact), (kernel::FILE, kernel.artifact), (AGENT_FILE, agent)];
    Manifest::new(described.map(|(name, artifact)| (name.to_owned(), artifact))).put(&artifacts.manifest)?;
    Ok(artifacts)
}

/// What the parts of a build share.
struct Site<'a> {
    options: &'a BuildOptions,
    cache: &'a Cache,
    interrupts: &'a Interrupts,
    progress: &'a Progress,
}

impl Site<'_> {
    fn rootfs(&self) -> Result<Entry, ImageError> {
        let recipe = rootfs::recipe();
        let make = |lock: &Lock| {
            let step = self.progress.step(rootfs::KIND, "starting");
            let entry = rootfs::build(&recipe, self.cache, lock, self.interrupts, &step)?;
            step.done(format_args!("{} MiB", entry.artifact.size_bytes >> 20));
            Ok(entry)
        };
        if self.options.refresh {
            make(&self.lock()?)
        } else {
            self.found_or_made(rootfs::KIND, &recipe, make)
        }
    }

    fn kernel(&self) -> Result<Entry, ImageError> {
        let recipe = kernel::Recipe::of_machine()?;
        self.found_or_made(kernel::KIND, recipe.hash(), |lock| {
            let step = self.progress.step(kernel::KIND, "starting");
            let entry = recipe.build(self.cache, lock, self.interrupts, &step)?;
            step.done(format_args!(
                "Linux {}, {} MiB",
                recipe.source_version(),
                entry.artifact.size_bytes >> 20
            ));
            Ok(entry)
        })
    }

    fn found_or_made(
        &self,
        kind: &str,
        recipe: &str,
        make: impl FnOnce(&Lock) -> Result<Entry, ImageError>,
    ) -> Result<Entry, ImageError> {
        if let Some(entry) = self.cache.find(kind, recipe) {
            self.progress.say(kind, format_args!("in the cache, {} MiB", entry.artifact.size_bytes >> 20));
            return Ok(entry);
        }
        let lock = self.lock()?;
        make(&lock)
    }

    /// Says what is missing before minutes of work rather than amid them.
    fn lock(&self) -> Result<Lock, ImageError> {
        if !geteuid().is_root() {
            return Err(ImageError::NotRoot);
        }
        require_packages()?;
        self.cache.lock()
    }
}

fn require_packages() -> Result<(), ImageError> {
    // Joined to a directory, an absolute path stays what it is.
    let found = |program: &str| std::env::split_paths(SYSTEM_PATH).any(|dir| dir.join(program).is_file());
    match NEEDED.iter().find(|(program, _)| !found(program)) {
        Some((program, package)) => {
            Err(ImageError::PackageMissing { wanted: (*program).to_owned(), package })
        }
        None => Ok(()),
    }
}

fn read_agent(path: &Path) -> Result<Vec<u8>, ImageError> {
    let agent = fs::read(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => ImageError::AgentMissing(path.to_owned()),
        _ => cannot("read", path)(error),
    })?;
    elf::check_static(&agent).map_err(|why| ImageError::AgentUnfit { path: path.to_owned(), why })?;
    Ok(agent)
}

fn put_agent(source: &Path, agent: &[u8], target: &Path) -> Result<Artifact, ImageError> {
    place::put(source, target, 0o755)?;
    let sha256 = file_sha256(target).map_err(cannot("read", target))?;
    Ok(Artifact { size_bytes: agent.len() as u64, sha256, recipe: None, details: Map::new() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_a_build_needs_is_in_a_listed_package() {
        for (wanted, package) in NEEDED {
            // gcc depends on binutils.
            assert!(DEBIAN_PACKAGES.contains(package) || *package == "binutils", "{wanted} of {package}");
        }
        assert!(DEBIAN_PACKAGES.contains(&kernel::SOURCE_PACKAGE));
    }

    #[test]
    fn an_agent_is_copied_again_only_when_it_is_another() {
        let dir = tempfile::tempdir().unwrap();
        let (source, target) = (dir.path().join("built"), dir.path().join("manta-agent"));
        fs::write(&source, "first").unwrap();
        let first = put_agent(&source, b"first", &target).unwrap();
        assert!(!place::put(&source, &target, 0o755).unwrap());
        fs::write(&source, "other").unwrap();
        let other = put_agent(&source, b"other", &target).unwrap();
        assert_ne!(first.sha256, other.sha256);
        assert_eq!(fs::read(&target).unwrap(), b"other");
    }

    #[test]
    fn an_agent_that_a_guest_cannot_run_is_refused() {
        let missing = read_agent(Path::new("/nonexistent/agent")).unwrap_err();
        assert!(matches!(missing, ImageError::AgentMissing(_)), "{missing}");
        let dynamic = read_agent(Path::new("/proc/self/exe")).unwrap_err();
        assert!(matches!(dynamic, ImageError::AgentUnfit { .. }), "{dynamic}");
    }
}
