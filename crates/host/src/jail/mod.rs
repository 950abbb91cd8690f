//! What a confined process sees of the file system: a root of a few read-only files, its own directory, and of
//! `/proc` itself. Owns the mount namespace that each such process gets a copy of; [`crate::process`] puts it there.
//!
//! The root is made once, in a mount namespace with nothing else in it. To copy that one costs a spawn less than to
//! copy the host's, however many mounts that has, and what is mounted in the copy is seen nowhere else.

mod libraries;

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::thread;

use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind, mount_change, mount_remount, unmount,
};
use rustix::process::{chdir, pivot_root};

use crate::process::ProcessError;

/// Where the root is put together, in a namespace of its own: a directory that every host has, and from which
/// nothing goes into the root.
const SITE: &str = "/proc";
/// Where a process has a `/proc` of its own.
pub(crate) const PROC: &std::ffi::CStr = c"/proc";
/// Where a process's own directory is, in the root.
pub(crate) const HOME: &std::ffi::CStr = c"/vm";

/// What there is in the root, beside the process's own directory.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct JailContents {
    /// Programs, which may be run, each with the libraries that it is linked with.
    pub programs: Vec<PathBuf>,
    /// Directories and files, which may be read.
    pub data: Vec<PathBuf>,
    /// Devices, which may be used by whom they are open to.
    pub devices: Vec<PathBuf>,
}

/// A root for processes to be confined in.
#[derive(Debug)]
pub struct Jail {
    namespace: OwnedFd,
}

/// Why there is no such root.
#[derive(Debug, thiserror::Error)]
pub enum JailError {
    /// No thread could be started.
    #[error("cannot start a thread to enter a mount namespace")]
    Thread(#[source] io::Error),
    /// A system call about the namespace or the root as a whole.
    #[error("cannot {action}")]
    Root {
        /// What was to be done.
        action: &'static str,
        /// Why not.
        #[source]
        source: Errno,
    },
    /// Something that should be in the root cannot be put there.
    #[error("cannot put {path} into a root of its own")]
    Content {
        /// As it is called on the host.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A program is not one for the kernel itself, but a script, or none at all.
    #[error("{path} is not an ELF program: name the program itself, not a script that starts it")]
    NoProgram {
        /// The program.
        path: PathBuf,
    },
    /// The libraries of a program could not be found out.
    #[error("cannot list the libraries of {path}")]
    Libraries {
        /// The program.
        path: PathBuf,
        /// Why not.
        #[source]
        source: ProcessError,
    },
    /// A program lacks a library.
    #[error("{path} cannot run: the dynamic linker says {said:?}")]
    Linker {
        /// The program.
        path: PathBuf,
        /// Its output.
        said: String,
    },
}

impl Jail {
    /// Makes a root with these contents, under the paths that they have on the host, as they are now. Blocks for some
    /// 10 ms, while the dynamic linker is asked about the programs.
    ///
    /// # Errors
    /// When something of it is missing, or the kernel refuses (no `CAP_SYS_ADMIN`).
    pub fn make(contents: &JailContents) -> Result<Self, JailError> {
        let mut files = Vec::new();
        for program in &contents.programs {
            files.extend(libraries::of(program)?);
            files.push(program.clone());
        }
        files.sort();
        files.dedup();
        thread::scope(|scope| {
            let thread = thread::Builder::new().name("jail".to_owned());
            let built = thread.spawn_scoped(scope, || build(&files, contents)).map_err(JailError::Thread)?;
            built.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    pub(crate) fn namespace(&self) -> BorrowedFd<'_> {
        self.namespace.as_fd()
    }
}

/// On a thread that ends with it, in a namespace of its own.
fn build(files: &[PathBuf], contents: &JailContents) -> Result<Jail, JailError> {
    let root = |action| move |source| JailError::Root { action, source };
    crate::sys::unshare_mounts().map_err(root("make a mount namespace"))?;
    // Of this thread only, since that call: VMMs' users pass through what is made here.
    rustix::process::umask(Mode::from_raw_mode(0o022));
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", private).map_err(root("cut a mount namespace off the host's"))?;
    let path = "/proc/thread-self/ns/mnt";
    let namespace = open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .map_err(root("open the mount namespace"))?;

    let inert = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("tmpfs", SITE, "tmpfs", inert, c"mode=0755,size=1m,nr_inodes=4k")
        .map_err(root("mount an empty root"))?;
    let read_only = MountFlags::RDONLY | MountFlags::NOSUID;
    for file in files {
        bind(file, read_only | MountFlags::NODEV)?;
    }
    for data in &contents.data {
        bind(data, read_only | MountFlags::NODEV | MountFlags::NOEXEC)?;
    }
    for device in &contents.devices {
        bind(device, read_only | MountFlags::NOEXEC)?;
    }
    for dir in ["proc", "vm"] {
        make_dir(&Path::new(SITE).join(dir), Path::new(dir))?;
    }
    mount_remount(SITE, inert | MountFlags::RDONLY, c"").map_err(root("make a root read-only"))?;

    chdir(SITE).map_err(root("enter the new root"))?;
    // The old one is on top then, and goes.
    pivot_root(".", ".").map_err(root("change to the new root"))?;
    unmount(".", UnmountFlags::DETACH).map_err(root("leave the old root"))?;
    Ok(Jail { namespace })
}

/// Shows a file or directory of the host in the root, under the same path.
fn bind(path: &Path, flags: MountFlags) -> Result<(), JailError> {
    let content = |source| JailError::Content { path: path.to_owned(), source };
    let relative = path.strip_prefix("/").map_err(|_| content(io::ErrorKind::InvalidFilename.into()))?;
    let target = Path::new(SITE).join(relative);
    let is_dir = fs::metadata(path).map_err(content)?.is_dir();
    if let Some(parent) = target.parent() {
        make_dir(parent, path)?;
    }
    if is_dir {
        make_dir(&target, path)?;
    } else {
        fs::File::create(&target).map_err(content)?;
    }
    let bound =
        mount_bind(path, &target).and_then(|()| mount_remount(&target, MountFlags::BIND | flags, c""));
    bound.map_err(|errno| content(errno.into()))
}

fn make_dir(dir: &Path, path: &Path) -> Result<(), JailError> {
    fs::create_dir_all(dir).map_err(|source| JailError::Content { path: path.to_owned(), source })
}
