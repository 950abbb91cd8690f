//! What can go wrong while an artifact is made, each with what to do about it where that is known.

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;

use manta_host::disk::DiskError;

/// Why the guest artifacts were not made. What had been in their place before is still there.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// Neither the arguments nor the environment say where the cache is.
    #[error("no cache directory: set MANTA_CACHE_DIR, or HOME, to an absolute path")]
    NoCacheDir,
    /// A file operation failed.
    #[error("cannot {action} {}", path.display())]
    File {
        /// What was to be done with the file, as a verb.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Namespaces to build in, and a tree whose files belong to several users, take root.
    #[error("building the guest artifacts needs root: run it in a root shell, as in `sudo -i`")]
    NotRoot,
    /// A program or file of a Debian package is not on this machine.
    #[error("{wanted} is missing: `apt-get install {package}`")]
    PackageMissing {
        /// The program or file.
        wanted: String,
        /// The package that has it.
        package: &'static str,
    },
    /// The build would fill the disk.
    #[error(
        "a build needs {needed_mib} MiB free in {}, which has {free_mib}: make room, or set MANTA_CACHE_DIR",
        dir.display()
    )]
    DiskSpace {
        /// The cache directory.
        dir: PathBuf,
        /// Free space, in MiB.
        free_mib: u64,
        /// Space wanted, in MiB.
        needed_mib: u64,
    },
    /// Another build holds the cache's lock.
    #[error("another build is using {}: wait for its end, or give this one a cache of its own", .0.display())]
    CacheBusy(PathBuf),
    /// A program could not be started or waited for.
    #[error("cannot run {program}")]
    Run {
        /// The program.
        program: String,
        /// What the system said.
        source: io::Error,
    },
    /// A program failed.
    #[error("{program} failed ({status}); all it said is in {}, the end of it:\n{tail}", log.display())]
    Failed {
        /// The program.
        program: String,
        /// How it ended.
        status: ExitStatus,
        /// Its whole output.
        log: PathBuf,
        /// The last lines of it.
        tail: String,
    },
    /// A program that should have been busy said nothing for too long, and was ended.
    #[error(
        "{program} printed nothing for {minutes} minutes and was ended; what it said before is in {}",
        log.display()
    )]
    Silent {
        /// The program.
        program: String,
        /// How long it had been silent.
        minutes: u64,
        /// Its whole output.
        log: PathBuf,
    },
    /// A signal asked this process to stop.
    #[error("interrupted; nothing half-made was left behind")]
    Interrupted,
    /// Kconfig did not accept lines of guest/kernel.config.
    #[error(
        "the kernel's configuration lacks what guest/kernel.config asks for (an option that does not exist in \
         this version, or that depends on one that is off): {}",
        .0.join(" ")
    )]
    KernelOptions(Vec<String>),
    /// There is no agent to copy.
    #[error("there is no agent at {}: `cargo build --release -p manta-agent`, or name it with --agent", .0.display())]
    AgentMissing(PathBuf),
    /// The agent would not run in a guest.
    #[error("{} cannot be the guest's agent: {why}", path.display())]
    AgentUnfit {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A finished artifact could not be copied out of the cache.
    #[error("cannot write {}", path.display())]
    Copy {
        /// The copy.
        path: PathBuf,
        /// Why.
        source: DiskError,
    },
    /// A manifest could not be read or written.
    #[error("cannot read or write {} as JSON", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
}

/// For `map_err` on a file operation.
pub(crate) fn cannot(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ImageError {
    move |source| ImageError::File { action, path: path.to_owned(), source }
}
