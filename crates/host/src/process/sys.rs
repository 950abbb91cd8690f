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
use crate::cgroup::CgroupEntry;
use crate::jail::{HOME, PROC};

/// Enough for `run` in an unoptimised build (about 2 KiB are used) and for a system call wrapper or two.
const STACK_BYTES: usize = 64 * 1024;

/// What a jailed child gets beside a mount namespace. Not of users: the kernel's rules for files are those of the
/// host's users.
const NAMESPACES: c_int = libc::CLONE_NEWPID | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS;

/// `linux/sched.h`; libc lacks it.
const CLONE_INTO_CGROUP: u64 = 1 << 33;

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
    pub(super) cgroup: Option<&'a CgroupEntry>,
    /// The mount namespace to have a copy of, and what to mount there.
    pub(super) jail: Option<(BorrowedFd<'a>, BorrowedFd<'a>)>,
    pub(super) rlimits: &'a [(libc::__rlimit_resource_t, u64)],
    /// The capabilities its bounding set is reduced to, if it is.
    pub(super) bounding_set: Option<&'static [u32]>,
}

/// How far a child came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum SpawnStep {
    /// Making the child process.
    Clone,
    /// A session of its own.
    Session,
    /// Entering the cgroup.
    Cgroup,
    /// Entering the network namespace.
    NetNs,
    /// Entering a root of its own.
    Jail,
    /// Handing over file descriptors.
    Fds,
    /// Entering the working directory.
    Dir,
    /// Setting limits.
    Limits,
    /// Giving up privileges.
    Privileges,
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
            Self::Cgroup => "entering the cgroup",
            Self::NetNs => "entering the network namespace",
            Self::Jail => "entering a root of its own",
            Self::Fds => "passing file descriptors",
            Self::Dir => "entering the working directory",
            Self::Limits => "setting limits",
            Self::Privileges => "giving up privileges",
            Self::Credentials => "changing user and groups",
            Self::Exec => "executing it",
        })
    }
}

/// `struct clone_args` of `linux/sched.h`, as of Linux 5.7.
#[repr(C)]
#[derive(Debug, Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
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
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_PIDFD;
    let cgroup = child.cgroup.and_then(CgroupEntry::dir);
    let jail = if child.jail.is_some() { NAMESPACES } else { 0 };
    let flags = (flags | jail) as u64 | cgroup.map_or(0, |_| CLONE_INTO_CGROUP);
    let args = CloneArgs {
        flags,
        pidfd: ptr::from_mut(&mut pidfd) as u64,
        exit_signal: libc::SIGCHLD as u64,
        stack: stack.as_mut_ptr() as u64,
        stack_size: size_of_val(stack.as_slice()) as u64,
        cgroup: cgroup.map_or(0, |dir| dir.as_raw_fd() as u64),
        ..CloneArgs::default()
    };
    // SAFETY: `old` and `all` are plain data that the calls fill in. No signal handler of the server may run
    // in the child, on this memory, so all are blocked until it has reset them.
    // The child runs `run` on `stack`, with `shared` as the only thing both touch; CLONE_VFORK keeps this thread
    // from running until the child no longer uses either. CLONE_PIDFD writes the descriptor to `pidfd`.
    let pid = unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        let mut old: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&mut all);
        libc::pthread_sigmask(SIG_BLOCK, &all, &mut old);
        let pid = clone3(&args, run, ptr::from_mut(&mut shared).cast::<c_void>());
        libc::pthread_sigmask(SIG_SETMASK, &old, ptr::null_mut());
        pid
    };
    let pid = match u32::try_from(pid) {
        Ok(pid) => pid,
        Err(_) => return Err((SpawnStep::Clone, Errno::from_raw_os_error(pid.unsigned_abs() as i32))),
    };
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

/// `clone3(2)`, of which the C library has no function: `clone` cannot put a child into a cgroup, and one that
/// moves there itself waits for milliseconds. The child calls `run` with `arg` and ends with what that returns.
/// Gives the child's id, or the negative number of an error.
///
/// # Safety
/// As for `clone(2)`: `args` must name a stack of its own for the child; `CLONE_VM` and `CLONE_VFORK` must be among
/// the flags, and nothing else may use what `run` touches until it has ended or become a program.
unsafe fn clone3(args: &CloneArgs, run: extern "C" fn(*mut c_void) -> c_int, arg: *mut c_void) -> i64 {
    let result: i64;
    // SAFETY: the parent comes out at 2 with the registers it had, but those that a system call changes. The child
    // starts with the same ones and the end of its stack, which is aligned as a call needs it; it never comes back.
    unsafe {
        std::arch::asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, r12",
            "call r13",
            "mov edi, eax",
            "mov eax, {exit}",
            "syscall",
            "ud2",
            "2:",
            exit = const libc::SYS_exit,
            inlateout("rax") libc::SYS_clone3 => result,
            in("rdi") ptr::from_ref(args),
            in("rsi") size_of::<CloneArgs>(),
            in("r12") arg,
            in("r13") run,
            lateout("rcx") _,
            lateout("r11") _,
        );
    }
    result
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
        for tasks in child.cgroup.into_iter().flat_map(CgroupEntry::tasks) {
            // This thread, which is all of this process.
            let written = libc::write(tasks.as_raw_fd(), c"0".as_ptr().cast(), 1);
            check(SpawnStep::Cgroup, written as c_int)?;
        }
        if let Some(netns) = child.netns {
            check(SpawnStep::NetNs, libc::setns(netns.as_raw_fd(), libc::CLONE_NEWNET))?;
        }
        if let Some((namespace, dir)) = child.jail {
            enter_jail(namespace, dir)?;
        }
        for (fd, number) in child.fds {
            check(SpawnStep::Fds, libc::dup2(fd.as_raw_fd(), *number))?;
        }
        // Everything of ours closes on exec anyway; this holds even if a library forgot to ask for that.
        for (first, last) in child.unused {
            check(SpawnStep::Fds, libc::syscall(libc::SYS_close_range, *first, *last, 0) as c_int)?;
        }
        let dir = if child.jail.is_some() { HOME.as_ptr() } else { child.dir.as_ptr() };
        check(SpawnStep::Dir, libc::chdir(dir))?;
        // While still root: the program may lie where the user may not search.
        let program = libc::open(argv[0], libc::O_PATH | libc::O_CLOEXEC);
        libc::umask(0o077);
        for (resource, limit) in child.rlimits {
            let limit = libc::rlimit { rlim_cur: *limit, rlim_max: *limit };
            check(SpawnStep::Limits, libc::setrlimit(*resource, &limit))?;
        }
        if let Some(kept) = child.bounding_set {
            reduce_bounding_set(kept)?;
        }
        check(SpawnStep::Privileges, libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))?;
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

/// Makes the namespace's copy this process's own, and mounts its directory there.
fn enter_jail(namespace: BorrowedFd<'_>, dir: BorrowedFd<'_>) -> Result<(), (SpawnStep, Errno)> {
    const MOVE_MOUNT_F_EMPTY_PATH: c_int = 4;
    let (none, home) = (ptr::null::<libc::c_char>(), HOME.as_ptr());
    // SAFETY: takes numbers, and strings that are constants; null where the kernel reads nothing.
    unsafe {
        // Its root and working directory are the namespace's from here on, not the host's.
        check(SpawnStep::Jail, libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNS))?;
        check(SpawnStep::Jail, libc::unshare(libc::CLONE_NEWNS))?;
        let (from, flags) = (dir.as_raw_fd(), MOVE_MOUNT_F_EMPTY_PATH);
        let moved =
            libc::syscall(libc::SYS_move_mount, from, c"".as_ptr(), libc::AT_FDCWD, home, flags) as c_int;
        check(SpawnStep::Jail, moved)?;
        // A copy of a mount that the host shares with others would show what is mounted below that.
        check(SpawnStep::Jail, libc::mount(none, home, none, libc::MS_PRIVATE, ptr::null()))?;
        let inert = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
        let flags = libc::MS_REMOUNT | libc::MS_BIND | inert;
        check(SpawnStep::Jail, libc::mount(none, home, none, flags, ptr::null()))?;
        // In it is what is in this process's namespace: itself. Of Linux 5.8 and later.
        let (name, options) = (c"proc".as_ptr(), c"subset=pid".as_ptr().cast());
        check(SpawnStep::Jail, libc::mount(name, PROC.as_ptr(), name, inert | libc::MS_RDONLY, options))?;
        check(SpawnStep::Jail, libc::sethostname(c"vm".as_ptr(), 2))
    }
}

/// Takes from this process, and whatever it becomes, the means to ever have a capability that is not among `kept`.
fn reduce_bounding_set(kept: &[u32]) -> Result<(), (SpawnStep, Errno)> {
    for capability in (0..64).filter(|capability| !kept.contains(capability)) {
        // SAFETY: takes numbers only.
        if unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) } < 0 {
            // The first that this kernel does not know.
            return match last_errno() {
                Errno::INVAL if capability > 0 => Ok(()),
                errno => Err((SpawnStep::Privileges, errno)),
            };
        }
    }
    Ok(())
}

fn check(step: SpawnStep, result: c_int) -> Result<(), (SpawnStep, Errno)> {
    if result < 0 { Err((step, last_errno())) } else { Ok(()) }
}

fn last_errno() -> Errno {
    // SAFETY: the C library's errno of this thread is always readable.
    Errno::from_raw_os_error(unsafe { *libc::__errno_location() })
}
