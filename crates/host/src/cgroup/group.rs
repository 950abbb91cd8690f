//! One group as a guard: how a process is started in it, whether it ran out of memory, and its end. Does not make
//! the directories, nor know the limits.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags, open};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::place::Version;
use super::{CgroupError, error};
use crate::process::wait_readable;

/// For killed processes to end: as long as it takes the kernel, unless they are stuck in a device.
const KILL_TIMEOUT: Duration = Duration::from_secs(5);
/// For a group that its processes have left to be removable.
const BUSY_TIMEOUT: Duration = Duration::from_secs(1);
const BUSY_RETRY: Duration = Duration::from_millis(1);

/// A group. Dropping it kills what is in it and removes it; use [`Cgroup::destroy`].
#[derive(Debug)]
pub struct Cgroup {
    name: String,
    parts: Vec<Part>,
}

/// A directory of the group, in one hierarchy.
#[derive(Debug)]
struct Part {
    dir: PathBuf,
    version: Version,
    /// In the tree of an earlier server, which was elsewhere, and goes with its last group.
    elsewhere: bool,
}

/// The way into a group, for [`crate::process::Spawn`].
#[derive(Debug, Clone)]
pub struct CgroupEntry {
    /// A directory of version 2.
    dir: Option<Arc<OwnedFd>>,
    /// Files `tasks` of version 1.
    tasks: Arc<[OwnedFd]>,
}

impl CgroupEntry {
    pub(crate) fn dir(&self) -> Option<BorrowedFd<'_>> {
        self.dir.as_ref().map(|dir| dir.as_fd())
    }

    pub(crate) fn tasks(&self) -> &[OwnedFd] {
        &self.tasks
    }
}

impl Cgroup {
    pub(super) fn new(name: &str) -> Self {
        Self { name: name.to_owned(), parts: Vec::new() }
    }

    pub(super) fn push(&mut self, dir: PathBuf, version: Version, elsewhere: bool) {
        self.parts.push(Part { dir, version, elsewhere });
    }

    pub(super) fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// As given when it was made.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its directories, one in each hierarchy.
    pub fn dirs(&self) -> impl Iterator<Item = &Path> {
        self.parts.iter().map(|part| part.dir.as_path())
    }

    /// The way in. Two or more processes may take it.
    ///
    /// # Errors
    /// When the group is gone.
    pub fn entry(&self) -> Result<CgroupEntry, CgroupError> {
        let (mut dir, mut tasks) = (None, Vec::new());
        for part in &self.parts {
            let open = |path: &Path, flags: OFlags| {
                open(path, flags | OFlags::CLOEXEC, Mode::empty())
                    .map_err(|errno| error("open", path)(errno.into()))
            };
            match part.version {
                Version::V2 => dir = Some(Arc::new(open(&part.dir, OFlags::PATH | OFlags::DIRECTORY)?)),
                // Not `cgroup.procs`: to move a whole process the kernel waits until every processor has been
                // elsewhere, 1 to 13 ms; a thread that moves itself need not (`cgroup_procs_write_start`).
                Version::V1 => tasks.push(open(&part.dir.join("tasks"), OFlags::WRONLY)?),
            }
        }
        Ok(CgroupEntry { dir, tasks: tasks.into() })
    }

    /// How many processes of it the kernel has killed because it was over its limit of memory; 0 if there is none.
    #[must_use]
    pub fn oom_kills(&self) -> u64 {
        self.parts.iter().map(Part::oom_kills).sum()
    }

    /// The memory that what is in it may use together, bytes; none without a limit.
    #[must_use]
    pub fn memory_limit(&self) -> Option<u64> {
        self.parts.iter().find_map(Part::memory_limit)
    }

    /// Kills what is in it and removes it. Blocks for some seconds at most, and that only if something does not die.
    ///
    /// # Errors
    /// When something does not end, or a directory cannot be removed; it goes on with the others.
    pub fn destroy(mut self) -> Result<(), CgroupError> {
        self.clear()
    }

    fn clear(&mut self) -> Result<(), CgroupError> {
        let mut failure = None;
        for part in std::mem::take(&mut self.parts) {
            match part.kill_all().and_then(|()| remove(&part.dir)) {
                // Only when it is empty: the kernel refuses otherwise.
                Ok(()) if part.elsewhere => drop(part.dir.parent().map(fs::remove_dir)),
                Ok(()) => {}
                Err(error) => drop(failure.get_or_insert(error)),
            }
        }
        failure.map_or(Ok(()), Err)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        if !self.parts.is_empty() {
            let cleared = self.clear();
            tracing::warn!(name = self.name, ?cleared, "cgroup dropped: removed");
        }
    }
}

impl Part {
    fn oom_kills(&self) -> u64 {
        let file = match self.version {
            Version::V1 => "memory.oom_control",
            Version::V2 => "memory.events",
        };
        let text = fs::read_to_string(self.dir.join(file)).unwrap_or_default();
        let count = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
        count.and_then(|count| count.trim().parse().ok()).unwrap_or(0)
    }

    fn memory_limit(&self) -> Option<u64> {
        let file = match self.version {
            Version::V1 => "memory.limit_in_bytes",
            Version::V2 => "memory.max",
        };
        fs::read_to_string(self.dir.join(file)).ok()?.trim().parse().ok()
    }

    fn kill_all(&self) -> Result<(), CgroupError> {
        let deadline = Instant::now() + KILL_TIMEOUT;
        if self.pids()?.is_empty() {
            return Ok(());
        }
        // All at once where the kernel can (version 2, from 5.14 on), and so that none is born meanwhile.
        let _ = fs::write(self.dir.join("cgroup.kill"), "1");
        let _ = fs::write(self.dir.join("pids.max"), "0");
        loop {
            let pids = self.pids()?;
            if pids.is_empty() {
                return Ok(());
            }
            let held: Vec<(u32, OwnedFd)> = pids
                .into_iter()
                .filter_map(|pid| {
                    let raw = Pid::from_raw(i32::try_from(pid).ok()?)?;
                    Some((pid, pidfd_open(raw, PidfdFlags::empty()).ok()?))
                })
                .collect();
            // A number that is still listed belongs to who is held by now.
            let listed = self.pids()?;
            for (pid, pidfd) in held.into_iter().filter(|(pid, _)| listed.contains(pid)) {
                // One that has ended meanwhile is as good as killed.
                let _ = pidfd_send_signal(&pidfd, Signal::KILL);
                let left = deadline.saturating_duration_since(Instant::now());
                if !matches!(wait_readable(pid, pidfd.as_fd(), left), Ok(true)) {
                    return Err(CgroupError::Unkillable { path: self.dir.clone() });
                }
            }
            if Instant::now() > deadline {
                return Err(CgroupError::Unkillable { path: self.dir.clone() });
            }
        }
    }

    fn pids(&self) -> Result<Vec<u32>, CgroupError> {
        let path = self.dir.join("cgroup.procs");
        match fs::read_to_string(&path) {
            Ok(text) => Ok(text.lines().filter_map(|pid| pid.parse().ok()).collect()),
            Err(gone) if is_gone(&gone) => Ok(Vec::new()),
            Err(source) => Err(error("read", &path)(source)),
        }
    }
}

/// Removes the directory of an empty group; one that is gone is fine. What ended a moment ago may still count, and
/// with version 1 no event tells when it does not any more: tried again for a second.
pub(super) fn remove(dir: &Path) -> Result<(), CgroupError> {
    let deadline = Instant::now() + BUSY_TIMEOUT;
    loop {
        match fs::remove_dir(dir) {
            Err(busy) if busy.kind() == io::ErrorKind::ResourceBusy && Instant::now() < deadline => {
                thread::sleep(BUSY_RETRY);
            }
            Err(source) if !is_gone(&source) => return Err(error("remove", dir)(source)),
            _ => return Ok(()),
        }
    }
}

/// A file of a removed group that was open already, or none at all.
fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ENODEV)
}
