//! Processes an earlier server left behind, found by the directory they work in. Does not decide which
//! directories those are. Strays are not our children: they are killed and awaited, and reaped by init.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
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

/// The processes, other than this one, whose working directory is `dir` or below it, also if that has been
/// deleted meanwhile, and which may gain no privileges: what [`super::Process::spawn`] starts, and no shell that
/// somebody looks around with.
///
/// # Errors
/// When `dir` does not resolve (none is fine: nothing works there) or `/proc` cannot be listed.
pub fn processes_in(dir: &Path) -> Result<Vec<Stray>, ProcessError> {
    let error = |source| ProcessError::Scan { dir: dir.to_owned(), source };
    let root = match dir.canonicalize() {
        Ok(root) => root,
        Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(error(source)),
    };
    let mut strays = Vec::new();
    for entry in fs::read_dir("/proc").map_err(error)? {
        let name = entry.map_err(error)?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else { continue };
        if pid == std::process::id() || !is_stray(pid, &root) {
            continue;
        }
        // The number may have passed to another process since it was looked at. From here on the descriptor
        // holds whichever has it now, so look again.
        let Some(raw) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { continue };
        let Ok(pidfd) = pidfd_open(raw, PidfdFlags::empty()) else { continue };
        if let Some(dir) = working_dir(pid).filter(|_| is_stray(pid, &root)) {
            strays.push(Stray { pid, pidfd, dir });
        }
    }
    Ok(strays)
}

fn is_stray(pid: u32, root: &Path) -> bool {
    working_dir(pid).is_some_and(|cwd| cwd.starts_with(root))
        && fs::read_to_string(format!("/proc/{pid}/status"))
            .is_ok_and(|status| status.lines().any(|line| line == "NoNewPrivs:\t1"))
}

/// `None` if the process has ended, is a kernel thread or a zombie.
fn working_dir(pid: u32) -> Option<PathBuf> {
    let target = fs::read_link(format!("/proc/{pid}/cwd")).ok()?.into_os_string().into_vec();
    let path = target.strip_suffix(b" (deleted)").unwrap_or(&target);
    Some(PathBuf::from(std::ffi::OsStr::from_bytes(path)))
}
