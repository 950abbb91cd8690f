//! A VMM process: spawned into a namespace with its own credentials, or adopted from a server that was killed;
//! watched, and reaped if it is a child, through a pidfd. Owns the process until its end. Does not know what the
//! program is; processes of an earlier server that nobody adopts are [`Stray`]s.

mod confinement;
mod ended;
mod id;
mod stray;
mod sys;

use std::ffi::{CString, NulError, OsString};
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{CWD, Mode, OFlags, open};
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid,
};

use crate::netns::NetNs;
use id::Stat;

pub use confinement::{Capabilities, Confinement, Rlimits};
pub use ended::Ended;
pub use id::ProcessId;
pub use stray::{Stray, processes_in};
pub use sys::SpawnStep;

/// The most output that is kept of a process, in bytes; as much as the pipe holds by default (`pipe(7)`).
const OUTPUT_LIMIT: usize = 64 * 1024;
/// A host without memory is to end a VMM, and neither the server nor a bystander (`proc_pid_oom_score_adj(5)`). The
/// server's own is not inherited: a supervisor may have lowered it.
const OOM_SCORE_ADJ: &str = "500";
/// How long dropping a live process may wait for its end.
const DROP_TIMEOUT: Duration = Duration::from_secs(5);

/// Whom a process runs as. With `uid` 0 it stays root and keeps its capabilities.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credentials {
    /// Real, effective and saved user id.
    pub uid: u32,
    /// Real, effective and saved group id.
    pub gid: u32,
    /// All supplementary groups; those of the server are not inherited.
    pub groups: Vec<u32>,
}

/// What to spawn, and as what.
#[derive(Debug)]
pub struct Spawn<'a> {
    /// Absolute path of the program; no search path is used.
    pub program: &'a Path,
    /// Its arguments, without the program's name.
    pub args: &'a [OsString],
    /// Its working directory, which it shows under another path in a jail; entered before the credentials change: its parents need not be searchable.
    pub dir: &'a Path,
    /// Its network namespace, else the caller's.
    pub netns: Option<&'a NetNs>,
    /// Whom it runs as.
    pub credentials: &'a Credentials,
    /// File descriptors it inherits, each under the given number (3 or more, no number twice).
    pub fds: Vec<(OwnedFd, RawFd)>,
    /// What it is kept in.
    pub confinement: Confinement<'a>,
}

/// A process that was started here, or by a server that is dead. Dropping it while it runs kills it.
#[derive(Debug)]
pub struct Process {
    id: ProcessId,
    pidfd: OwnedFd,
    ended: Mutex<Option<Ended>>,
    output: Mutex<Output>,
}

#[derive(Debug)]
struct Output {
    /// None of an adopted process: the other end of its pipe died with who started it.
    pipe: Option<OwnedFd>,
    bytes: Vec<u8>,
}

/// What can go wrong with a process.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// A path or an argument contains a NUL byte.
    #[error("cannot pass {text:?} to a program")]
    Nul {
        /// The text.
        text: OsString,
        /// Where the NUL is.
        #[source]
        source: NulError,
    },
    /// A file descriptor was to be passed under a number below 3, or two under the same.
    #[error("cannot pass a file descriptor under the number {0}")]
    FdNumber(RawFd),
    /// Pipes, descriptors or `/dev/null` could not be had before the spawn.
    #[error("cannot prepare to spawn {program}")]
    Prepare {
        /// The program.
        program: PathBuf,
        /// Why.
        #[source]
        source: Errno,
    },
    /// The child could not be made, or failed in `step` on its way to the program.
    #[error("cannot spawn {program} ({step})")]
    Spawn {
        /// The program.
        program: PathBuf,
        /// What it was doing.
        step: SpawnStep,
        /// Why.
        #[source]
        source: Errno,
    },
    /// Signalling through the pidfd failed.
    #[error("cannot kill process {pid}")]
    Kill {
        /// The process.
        pid: u32,
        /// Why.
        #[source]
        source: Errno,
    },
    /// Waiting on the pidfd failed.
    #[error("cannot wait for process {pid}")]
    Wait {
        /// The process.
        pid: u32,
        /// Why.
        #[source]
        source: Errno,
    },
    /// A killed process did not end in time.
    #[error("process {pid} did not end within {timeout:?} of being killed")]
    Unkillable {
        /// The process.
        pid: u32,
        /// How long it was given.
        timeout: Duration,
    },
    /// `/proc` does not tell which process it is.
    #[error("cannot look at process {pid}")]
    Look {
        /// The process.
        pid: u32,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A directory could not be resolved, or `/proc` not be listed.
    #[error("cannot look for processes in {dir}")]
    Scan {
        /// The directory they would be working in.
        dir: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Held while a child has copies of all our descriptors: from its clone to its exec.
static SPAWNING: RwLock<()> = RwLock::new(());

/// While this is held no child is between clone and exec. For whoever closes a descriptor that nobody else may
/// have open, such as that of a tap, which can be attached only once.
pub(crate) fn no_spawning() -> RwLockReadGuard<'static, ()> {
    SPAWNING.read().unwrap_or_else(PoisonError::into_inner)
}

impl Process {
    /// Starts a program: in a session of its own, stdin from `/dev/null`, an empty environment, no new
    /// privileges, no signal blocked, every signal at its default except SIGPIPE, which is ignored. Nothing
    /// ties it to the server's death.
    ///
    /// Its stdout and stderr share one pipe that never blocks it and is read by [`Process::output`] only: a
    /// chatty guest fills it once and costs nothing more. It never breaks either: the process could read it, too.
    /// Else it would get SIGPIPE when it prints after this server's death, and Firecracker, which handles that
    /// signal by printing, then waits for its own lock on its log.
    ///
    /// # Errors
    /// When the arguments are unfit, or a step in the child fails: `Spawn` names the step, also for a program
    /// that does not exist.
    pub fn spawn(spawn: Spawn<'_>) -> Result<Self, ProcessError> {
        let program = spawn.program;
        let prepare = |source| ProcessError::Prepare { program: program.to_owned(), source };
        let (pipe, out) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).map_err(prepare)?;
        let both_ways = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let out =
            open(format!("/proc/self/fd/{}", out.as_raw_fd()), both_ways, Mode::empty()).map_err(prepare)?;
        let mut argv = vec![c_string(program.as_os_str())?];
        for arg in spawn.args {
            argv.push(c_string(arg)?);
        }
        let mut numbers: Vec<RawFd> = spawn.fds.iter().map(|(_, number)| *number).collect();
        numbers.sort_unstable();
        if let Some(bad) = numbers.iter().find(|number| **number < 3) {
            return Err(ProcessError::FdNumber(*bad));
        }
        if let Some(twice) = numbers.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(ProcessError::FdNumber(twice[0]));
        }
        // Above all numbers asked for, so that giving out one cannot overwrite another not given out yet.
        let free = numbers.last().map_or(3, |last| last + 1);
        let aside = |fd: BorrowedFd<'_>| rustix::io::fcntl_dupfd_cloexec(fd, free).map_err(prepare);
        let null = open("/dev/null", OFlags::RDONLY, Mode::empty()).map_err(prepare)?;
        let mut fds = vec![(aside(null.as_fd())?, 0), (aside(out.as_fd())?, 1), (aside(out.as_fd())?, 2)];
        for (fd, number) in &spawn.fds {
            fds.push((aside(fd.as_fd())?, *number));
        }
        let jail = spawn.confinement.jail.map(|jail| {
            let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
            Ok((jail.namespace(), open_tree(CWD, spawn.dir, flags).map_err(prepare)?))
        });
        let jail = jail.transpose()?;
        let child = sys::Child {
            argv: &argv,
            dir: &c_string(spawn.dir.as_os_str())?,
            netns: spawn.netns.map(NetNs::as_fd),
            credentials: spawn.credentials,
            fds: &fds,
            unused: &unused(&numbers),
            cgroup: spawn.confinement.cgroup,
            jail: jail.as_ref().map(|(namespace, dir)| (*namespace, dir.as_fd())),
            rlimits: &spawn.confinement.rlimits.values(),
            bounding_set: spawn.confinement.capabilities.bounding_set(spawn.credentials.uid),
        };
        let spawning = SPAWNING.write().unwrap_or_else(PoisonError::into_inner);
        let spawned = sys::spawn(&child);
        drop(spawning);
        let (pid, pidfd) = spawned.map_err(|(step, source)| ProcessError::Spawn {
            program: program.to_owned(),
            step,
            source,
        })?;
        // Nobody else can have the number before it is reaped.
        if let Err(error) = std::fs::write(format!("/proc/{pid}/oom_score_adj"), OOM_SCORE_ADJ) {
            tracing::warn!(pid, %error, "a host without memory may end others before this process");
        }
        match Stat::of(pid).and_then(|stat| stat.ok_or_else(|| io::ErrorKind::NotFound.into())) {
            Ok(stat) => Ok(Self::new(stat.id, pidfd, Some(pipe))),
            Err(source) => {
                // Its guard kills and reaps it.
                drop(Self::new(ProcessId { pid, start_ticks: 0 }, pidfd, Some(pipe)));
                Err(ProcessError::Look { pid, source })
            }
        }
    }

    /// Takes over a process that a server which is dead had started: `None` when it has ended, also if its number
    /// is another's by now. Its parent is somebody else, so of its end only that will be known; what it printed,
    /// and prints, is lost.
    ///
    /// # Errors
    /// When `/proc` cannot be read, or no file descriptor is left.
    pub fn adopt(id: &ProcessId) -> Result<Option<Self>, ProcessError> {
        let look = |source| ProcessError::Look { pid: id.pid, source };
        let Some(pid) = i32::try_from(id.pid).ok().and_then(Pid::from_raw) else { return Ok(None) };
        let pidfd = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(pidfd) => pidfd,
            // The second, for the number of a thread, which no process has.
            Err(Errno::SRCH | Errno::INVAL | Errno::NOENT) => return Ok(None),
            Err(source) => return Err(look(source.into())),
        };
        // From here on the descriptor stands for whoever had the number. It had it still when it was looked at if
        // it has not ended after that.
        match Stat::of(id.pid).map_err(look)? {
            Some(stat) if stat.id == *id && !stat.zombie => {}
            _ => return Ok(None),
        }
        if wait_readable(id.pid, pidfd.as_fd(), Duration::ZERO)? {
            return Ok(None);
        }
        Ok(Some(Self::new(*id, pidfd, None)))
    }

    fn new(id: ProcessId, pidfd: OwnedFd, pipe: Option<OwnedFd>) -> Self {
        let output = Mutex::new(Output { pipe, bytes: Vec::new() });
        Self { id, pidfd, ended: Mutex::new(None), output }
    }

    /// The process id; of use for messages and `/proc`, and only until the process is reaped.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.id.pid
    }

    /// By what a later server finds it; see [`Process::adopt`].
    #[must_use]
    pub fn id(&self) -> ProcessId {
        self.id
    }

    /// A descriptor that becomes readable when the process has ended.
    #[must_use]
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Sends SIGKILL. Fine when the process is dead already; its end is seen by waiting for it.
    ///
    /// # Errors
    /// When the kernel refuses the signal.
    pub fn kill(&self) -> Result<(), ProcessError> {
        kill(self.id.pid, self.pidfd())
    }

    /// How the process has ended, if it has, which reaps a child; it is remembered.
    ///
    /// # Errors
    /// When the kernel does not let it be waited for.
    pub fn try_wait(&self) -> Result<Option<Ended>, ProcessError> {
        let mut ended = lock(&self.ended);
        if ended.is_none() {
            let waited = waitid(WaitId::PidFd(self.pidfd()), WaitIdOptions::EXITED | WaitIdOptions::NOHANG);
            *ended = match waited {
                Ok(status) => status.as_ref().map(Ended::from),
                // Not, or no longer, a child.
                Err(Errno::CHILD) => {
                    let over = wait_readable(self.id.pid, self.pidfd(), Duration::ZERO)?;
                    over.then_some(Ended::Unknown)
                }
                Err(source) => return Err(ProcessError::Wait { pid: self.id.pid, source }),
            };
        }
        Ok(*ended)
    }

    /// Like [`Process::try_wait`], but waits up to `timeout` for the end.
    ///
    /// # Errors
    /// As for [`Process::try_wait`].
    pub fn wait_timeout(&self, timeout: Duration) -> Result<Option<Ended>, ProcessError> {
        if let Some(status) = self.try_wait()? {
            return Ok(Some(status));
        }
        wait_readable(self.id.pid, self.pidfd(), timeout)?;
        self.try_wait()
    }

    /// What the process has printed so far, stdout and stderr interleaved, at most 64 KiB, with anything that
    /// is not UTF-8 replaced. Does not wait.
    #[must_use]
    pub fn output(&self) -> String {
        let mut output = lock(&self.output);
        let Output { pipe, bytes } = &mut *output;
        let mut chunk = [0; 4096];
        let Some(pipe) = pipe else { return String::new() };
        while bytes.len() < OUTPUT_LIMIT {
            let room = chunk.len().min(OUTPUT_LIMIT - bytes.len());
            match rustix::io::read(&*pipe, &mut chunk[..room]) {
                Ok(0) => break,
                Ok(n) => bytes.extend_from_slice(&chunk[..n]),
                Err(Errno::INTR) => {}
                Err(_) => break,
            }
        }
        String::from_utf8_lossy(bytes).into_owned()
    }
}

impl Process {
    /// How long the threads whose names begin with `prefix` have run on a processor, or waited for one, so far; none if
    /// there are none, or if the process was stopped by a signal (`proc_pid_stat(5)`, and `/proc/PID/schedstat` in the
    /// kernel's `sched-stats.rst`).
    ///
    /// # Errors
    /// When that cannot be read, as when it has ended.
    pub fn time_of_threads(&self, prefix: &str) -> io::Result<Option<Duration>> {
        let proc = PathBuf::from(format!("/proc/{}", self.id.pid));
        let stat = fs::read_to_string(proc.join("stat"))?;
        let state = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
        if state.starts_with(['T', 't']) {
            return Ok(None);
        }
        let mut time = None;
        for thread in fs::read_dir(proc.join("task"))? {
            let thread = thread?.path();
            if fs::read_to_string(thread.join("comm"))?.starts_with(prefix) {
                let schedstat = fs::read_to_string(thread.join("schedstat"))?;
                let mut ns = schedstat.split(' ').map_while(|ns| ns.parse().ok());
                let (Some(ran), Some(waited)) = (ns.next(), ns.next()) else {
                    return Err(io::ErrorKind::InvalidData.into());
                };
                *time.get_or_insert(Duration::ZERO) +=
                    Duration::from_nanos(ran) + Duration::from_nanos(waited);
            }
        }
        Ok(time)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if matches!(self.try_wait(), Ok(Some(_))) {
            return;
        }
        let ended = self.kill().and_then(|()| self.wait_timeout(DROP_TIMEOUT));
        tracing::warn!(pid = self.id.pid, ?ended, "process dropped while it ran: killed");
    }
}

fn kill(pid: u32, pidfd: BorrowedFd<'_>) -> Result<(), ProcessError> {
    match pidfd_send_signal(pidfd, Signal::KILL) {
        Ok(()) | Err(Errno::SRCH) => Ok(()),
        Err(source) => Err(ProcessError::Kill { pid, source }),
    }
}

/// Waits for the end of a process, at most `timeout`; tells whether it has ended.
pub(crate) fn wait_readable(
    pid: u32,
    pidfd: BorrowedFd<'_>,
    timeout: Duration,
) -> Result<bool, ProcessError> {
    let deadline = Instant::now() + timeout;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        // A Duration too long for the kernel is as good as none.
        let left = Timespec::try_from(left).ok();
        match poll(&mut [PollFd::from_borrowed_fd(pidfd, PollFlags::IN)], left.as_ref()) {
            Ok(ready) => return Ok(ready > 0),
            Err(Errno::INTR) => {}
            Err(source) => return Err(ProcessError::Wait { pid, source }),
        }
    }
}

/// The ranges of numbers from 3 on that are not among `numbers`, which are ascending.
fn unused(numbers: &[RawFd]) -> Vec<(RawFd, RawFd)> {
    let starts = std::iter::once(3).chain(numbers.iter().map(|number| number + 1));
    let ends = numbers.iter().map(|number| number - 1).chain([RawFd::MAX]);
    starts.zip(ends).filter(|(first, last)| first <= last).collect()
}

fn c_string(text: &std::ffi::OsStr) -> Result<CString, ProcessError> {
    CString::new(text.as_bytes()).map_err(|source| ProcessError::Nul { text: text.to_owned(), source })
}

/// A panic elsewhere cannot leave these values half-changed.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::Confinement;

    #[test]
    fn what_it_prints_when_nobody_is_left_to_read_it_is_no_error() {
        let dir = tempfile::tempdir().unwrap();
        let (go, tell) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        let process = Process::spawn(Spawn {
            program: Path::new("/bin/sh"),
            args: &["-c", "read line <&3; echo anything"].map(std::ffi::OsString::from),
            dir: dir.path(),
            netns: None,
            credentials: &Credentials { uid: 0, gid: 0, groups: Vec::new() },
            fds: vec![(go, 3)],
            confinement: Confinement::default(),
        });
        let process = process.unwrap();
        // As when the server dies.
        lock(&process.output).pipe = None;
        drop(tell);
        let ended = process.wait_timeout(Duration::from_secs(10)).unwrap().expect("an end in time");
        assert!(ended.success(), "{ended}");
    }
}
