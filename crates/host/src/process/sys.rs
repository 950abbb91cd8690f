//! From `clone` to `execve`: what happens in a child before it is the program. Owns only that; who may be
//! spawned how is for the parent module.
//!
//! The child shares the server's memory until it execs (`CLONE_VM`, as in `posix_spawn`): nothing is copied,
//! so spawning stays fast however large the server is. Unlike `posix_spawn`, it enters its namespace and
//! takes its credentials itself, so that no thread of the server ever runs with those of a VMM (a VMM could
//! kill such a thread, and the server with it). Taking credentials marks the shared memory as not dumpable, so
//! the VMM's user cannot trace the child meanwhile, and no core of the server is ever written.

use std::ffi::{CString, c_int, c_void};
use std::fmt;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

use libc::{SIG_BLOCK, SIG_IGN, SIG_SETMASK};
use rustix::io::Errno;
use rustix::process::{WaitId, WaitIdOptions, waitid};

use super::Credentials;

/// Enough for `run` in an unoptimised build (about 2 KiB are used) and for a system call wrapper or two.
const STACK_BYTES: usize = 64 * 1024;

/// The kernel's `sigset_t`: 64 signals.
const SIGSET_BYTES: usize = 8;

/// All that the child needs, made before there is one: it may not allocate.
pub(super) struct Child<'a> {
    /// Starts with the program.
    pub(super) argv: &'a [CString],
    pub(super) dir: &'a CString,
    pub(super) netns: Option<BorrowedFd<'a>>,
    pub(super) credentials: &'a Credentials,
    /// No source is the target of another.
    pub(super) fds: &'a [(OwnedFd, RawFd)],
    /// First and last of the ranges of numbers that are not targets.
    pub(super) unused: &'a [(RawFd, RawFd)],
}

/// How far a child came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum SpawnStep {
    /// Making the child process.
    Clone,
    /// A session of its own.
    Session,
    /// Entering the network namespace.
    NetNs,
    /// Handing over file descriptors.
    Fds,
    /// Entering the working directory.
    Dir,
    /// Giving up new privileges.
    NoNewPrivs,
    /// Taking on groups and ids.
    Credentials,
    /// Executing the program.
    Exec,
}

impl fmt::Display for SpawnStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Clone => "creating a process",
            Self::Session => "starting a session",
            Self::NetNs => "entering the network namespace",
            Self::Fds => "passing file descriptors",
            Self::Dir => "entering the working directory",
            Self::NoNewPrivs => "giving up new privileges",
            Self::Credentials => "changing user and groups",
            Self::Exec => "executing it",
        })
    }
}

/// Shared with the child, which writes `failure` before it ends without having become the program.
struct Shared<'a> {
    child: &'a Child<'a>,
    argv: Vec<*const libc::c_char>,
    failure: Option<(SpawnStep, Errno)>,
}

/// Starts the child and returns once it is the program, or has failed (it is reaped then).
pub(super) fn spawn(child: &Child<'_>) -> Result<(u32, OwnedFd), (SpawnStep, Errno)> {
    let argv = child.argv.iter().map(|arg| arg.as_ptr()).chain([ptr::null()]).collect();
    let mut shared = Shared { child, argv, failure: None };
    let mut stack = vec![0u128; STACK_BYTES / size_of::<u128>()];
    let mut pidfd: RawFd = -1;
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_PIDFD | libc::SIGCHLD;
    // SAFETY: `old` and `all` are plain data that the calls fill in. No signal handler of the server may run
    // in the child, on this memory, so all are blocked until it has reset them.
    // The child runs `run` on `stack`, which grows down from its 16-byte aligned end, with `shared` as the
    // only thing both touch; CLONE_VFORK keeps this thread from running until the child no longer uses
    // either. CLONE_PIDFD writes the descriptor to the fifth argument.
    let (pid, errno) = unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        let mut old: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&mut all);
        libc::pthread_sigmask(SIG_BLOCK, &all, &mut old);
        let top = stack.as_mut_ptr_range().end.cast::<c_void>();
        let arg = ptr::from_mut(&mut shared).cast::<c_void>();
        let pid = libc::clone(run, top, flags, arg, ptr::from_mut(&mut pidfd));
        let errno = last_errno();
        libc::pthread_sigmask(SIG_SETMASK, &old, ptr::null_mut());
        (pid, errno)
    };
    let Ok(pid) = u32::try_from(pid) else { return Err((SpawnStep::Clone, errno)) };
    // SAFETY: the kernel has just made this descriptor for us.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    match shared.failure {
        None => Ok((pid, pidfd)),
        Some(failure) => {
            if let Err(error) = waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED) {
                tracing::error!(pid, %error, "cannot reap a child that failed to start");
            }
            Err(failure)
        }
    }
}

/// The child. It shares memory with its parent, so it calls only the kernel; and it calls it directly where
/// the C library would involve the server's other threads (changing ids).
extern "C" fn run(shared: *mut c_void) -> c_int {
    // SAFETY: `spawn` passes a pointer to its `Shared`, and does nothing while this runs.
    let shared = unsafe { &mut *shared.cast::<Shared<'_>>() };
    let Err(failure) = become_program(shared.child, &shared.argv);
    shared.failure = Some(failure);
    127
}

fn become_program(
    child: &Child<'_>,
    argv: &[*const libc::c_char],
) -> Result<std::convert::Infallible, (SpawnStep, Errno)> {
    let Credentials { uid, gid, groups } = child.credentials;
    // SAFETY: the kernel's `struct sigaction` is at most 32 bytes, and all zeros mean the default; SIGKILL and
    // SIGSTOP are refused, harmlessly. All pointers passed below are to data of the parent, which outlives
    // this; `argv` ends with a null pointer and so does the empty environment. Descriptors closed here are
    // this process's own copies: CLONE_FILES was not passed.
    unsafe {
        for signal in 1..=libc::SIGRTMAX() {
            let set = ptr::from_ref(&[0u64; 4]);
            libc::syscall(libc::SYS_rt_sigaction, signal, set, ptr::null_mut::<c_void>(), SIGSET_BYTES);
        }
        libc::signal(libc::SIGPIPE, SIG_IGN);
        check(SpawnStep::Session, libc::setsid())?;
        if let Some(netns) = child.netns {
            check(SpawnStep::NetNs, libc::setns(netns.as_raw_fd(), libc::CLONE_NEWNET))?;
        }
        for (fd, number) in child.fds {
            check(SpawnStep::Fds, libc::dup2(fd.as_raw_fd(), *number))?;
        }
        // Everything of ours closes on exec anyway; this holds even if a library forgot to ask for that.
        for (first, last) in child.unused {
            check(SpawnStep::Fds, libc::syscall(libc::SYS_close_range, *first, *last, 0) as c_int)?;
        }
        check(SpawnStep::Dir, libc::chdir(child.dir.as_ptr()))?;
        // While still root: the program may lie where the user may not search.
        let program = libc::open(argv[0], libc::O_PATH | libc::O_CLOEXEC);
        check(SpawnStep::NoNewPrivs, libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))?;
        let set = libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr());
        check(SpawnStep::Credentials, set as c_int)?;
        check(SpawnStep::Credentials, libc::syscall(libc::SYS_setresgid, *gid, *gid, *gid) as c_int)?;
        check(SpawnStep::Credentials, libc::syscall(libc::SYS_setresuid, *uid, *uid, *uid) as c_int)?;
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut none);
        libc::sigprocmask(SIG_SETMASK, &none, ptr::null_mut());
        let environment = [ptr::null::<libc::c_char>()];
        libc::execve(argv[0], argv.as_ptr(), environment.as_ptr());
        if last_errno() == Errno::ACCESS {
            let (argv, environment) = (argv.as_ptr(), environment.as_ptr());
            libc::syscall(libc::SYS_execveat, program, c"".as_ptr(), argv, environment, libc::AT_EMPTY_PATH);
        }
    }
    Err((SpawnStep::Exec, last_errno()))
}

fn check(step: SpawnStep, result: c_int) -> Result<(), (SpawnStep, Errno)> {
    if result < 0 { Err((step, last_errno())) } else { Ok(()) }
}

fn last_errno() -> Errno {
    // SAFETY: the C library's errno of this thread is always readable.
    Errno::from_raw_os_error(unsafe { *libc::__errno_location() })
}
