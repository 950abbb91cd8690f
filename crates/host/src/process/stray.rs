//! Processes an earlier server left behind, found by the directory they work in. Does not decide which
//! directories those are. Strays are not our children: they are killed and awaited, and reaped by init.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::{ProcessError, kill, wait_readable};

/// A process that works in a directory of ours.
#[derive(Debug)]
pub struct Stray {
    pid: u32,
    pidfd: OwnedFd,
    dir: PathBuf,
}

impl Stray {
    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// The directory it works in.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Kills it and waits until it has ended, at most `timeout`.
    ///
    /// # Errors
    /// When it cannot be signalled or does not end in time.
    pub fn kill_and_wait(self, timeout: Duration) -> Result<(), ProcessError> {
        kill(self.pid, self.pidfd.as_fd())?;
        if wait_readable(self.pid, self.pidfd.as_fd(), timeout)? {
            Ok(())
        } else {
            Err(ProcessError::Unkillable { pid: self.pid, timeout })
        }
    }
}

/// The processes, other than this one, which work in `dir` or in a directory in it, and which may gain no
/// privileges: what [`super::Process::spawn`] starts, and no shell that somebody looks around with. A directory is
/// known by its inode, since one in a mount namespace of its own gives it another path; by its path, if that leads
/// there from here, it is known also deeper below, or deleted.
///
/// # Errors
/// When `dir` does not resolve (none is fine: nothing works there) or `/proc` cannot be listed.
pub fn processes_in(dir: &Path) -> Result<Vec<Stray>, ProcessError> {
    let error = |source| ProcessError::Scan { dir: dir.to_owned(), source };
    let places = match Places::below(dir) {
        Ok(places) => places,
        Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(error(source)),
    };
    let mut strays = Vec::new();
    for entry in fs::read_dir("/proc").map_err(error)? {
        let name = entry.map_err(error)?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else { continue };
        if pid == std::process::id() || places.of_stray(pid).is_none() {
            continue;
        }
        // The number may have passed to another process since it was looked at. From here on the descriptor
        // holds whichever has it now, so look again.
        let Some(raw) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { continue };
        let Ok(pidfd) = pidfd_open(raw, PidfdFlags::empty()) else { continue };
        if let Some(dir) = places.of_stray(pid) {
            strays.push(Stray { pid, pidfd, dir });
        }
    }
    Ok(strays)
}

/// A directory and those in it.
struct Places {
    root: PathBuf,
    /// By device and inode.
    dirs: BTreeMap<(u64, u64), PathBuf>,
}

impl Places {
    fn below(dir: &Path) -> io::Result<Self> {
        let root = dir.canonicalize()?;
        let mut dirs = BTreeMap::new();
        for path in fs::read_dir(&root)?.flatten().map(|entry| entry.path()).chain([root.clone()]) {
            // What has gone meanwhile is nobody's to work in.
            if let Ok(found) = fs::symlink_metadata(&path)
                && found.is_dir()
            {
                dirs.insert((found.dev(), found.ino()), path);
            }
        }
        Ok(Self { root, dirs })
    }

    /// Where a process works, if that is one of these and it may gain no privileges.
    fn of_stray(&self, pid: u32) -> Option<PathBuf> {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        if !status.lines().any(|line| line == "NoNewPrivs:\t1") {
            return None;
        }
        let cwd = format!("/proc/{pid}/cwd");
        let found = fs::metadata(&cwd).ok()?;
        let known = self.dirs.get(&(found.dev(), found.ino())).cloned();
        known.or_else(|| path_of(&cwd).filter(|path| path.starts_with(&self.root)))
    }
}

/// `None` if the process has ended, is a kernel thread or a zombie.
fn path_of(cwd: &str) -> Option<PathBuf> {
    let target = fs::read_link(cwd).ok()?.into_os_string().into_vec();
    let path = target.strip_suffix(b" (deleted)").unwrap_or(&target);
    Some(PathBuf::from(std::ffi::OsStr::from_bytes(path)))
}
