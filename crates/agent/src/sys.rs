//! The calls that need `unsafe`: starting a process, scheduling, the signal descriptor, vsock addresses, the random
//! device. The rest of the crate is safe code on rustix.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;

use rustix::io::Errno;
use rustix::net::addr::{SocketAddrArg, SocketAddrLen, SocketAddrOpaque};
use rustix::process::Pid;

/// vsock context id of the host (`VMADDR_CID_HOST` in `linux/vm_sockets.h`).
pub const CID_HOST: u32 = libc::VMADDR_CID_HOST;

/// Every context id: what a listener binds to.
pub const CID_ANY: u32 = libc::VMADDR_CID_ANY;

/// From `linux/random.h`: `_IOW('R', 3, int[2])` and `_IO('R', 7)`.
const RNDADDENTROPY: libc::Ioctl = 0x4008_5203;
const RNDRESEEDCRNG: libc::Ioctl = 0x5207;

/// What policies other than the real-time ones take.
static NO_PRIORITY: libc::sched_param = libc::sched_param { sched_priority: 0 };

/// A vsock address.
#[derive(Debug, Clone, Copy)]
pub struct VsockAddr {
    /// Context id: which machine.
    pub cid: u32,
    /// Port on it.
    pub port: u32,
}

// SAFETY: `f` gets a pointer to a whole, initialised `sockaddr_vm` that outlives the call, and its size.
unsafe impl SocketAddrArg for VsockAddr {
    unsafe fn with_sockaddr<R>(&self, f: impl FnOnce(*const SocketAddrOpaque, SocketAddrLen) -> R) -> R {
        // SAFETY: `sockaddr_vm` is plain integers; all zeroes is a value of it.
        let mut address: libc::sockaddr_vm = unsafe { std::mem::zeroed() };
        address.svm_family = libc::AF_VSOCK as libc::sa_family_t;
        address.svm_cid = self.cid;
        address.svm_port = self.port;
        f(ptr::from_ref(&address).cast(), size_of_val(&address) as SocketAddrLen)
    }
}

/// Blocks SIGCHLD and SIGPIPE in this thread and returns a non-blocking descriptor that reads SIGCHLD.
/// Call it before any other thread exists. SIGPIPE stays blocked so that a write to a closed pipe
/// is an error, not the end; children start with an empty mask ([`Spawner::spawn`]).
///
/// # Errors
/// The errno of `sigprocmask` or `signalfd`.
pub fn child_signals() -> Result<OwnedFd, Errno> {
    // SAFETY: the sets are local and initialised by sigemptyset before use; signalfd returns a new
    // descriptor that nothing else owns.
    unsafe {
        let (mut child, mut blocked) = (std::mem::zeroed(), std::mem::zeroed());
        libc::sigemptyset(&raw mut child);
        libc::sigaddset(&raw mut child, libc::SIGCHLD);
        libc::sigemptyset(&raw mut blocked);
        libc::sigaddset(&raw mut blocked, libc::SIGCHLD);
        libc::sigaddset(&raw mut blocked, libc::SIGPIPE);
        if libc::sigprocmask(libc::SIG_BLOCK, &raw const blocked, ptr::null_mut()) != 0 {
            return Err(errno());
        }
        let fd = libc::signalfd(-1, &raw const child, libc::SFD_NONBLOCK | libc::SFD_CLOEXEC);
        if fd < 0 { Err(errno()) } else { Ok(OwnedFd::from_raw_fd(fd)) }
    }
}

/// Lets running commands go on when something wakes this process, until they wait, end, or have had their turn
/// (`SCHED_BATCH`, `sched(7)`). Processes that a [`Spawner`] starts are scheduled as usual.
///
/// # Errors
/// The errno of `sched_setscheduler`.
pub fn do_not_preempt() -> Result<(), Errno> {
    // SAFETY: `NO_PRIORITY` is a whole `sched_param`, which the kernel only reads.
    match unsafe { libc::sched_setscheduler(0, libc::SCHED_BATCH, &raw const NO_PRIORITY) } {
        0 => Ok(()),
        _ => Err(errno()),
    }
}

/// Adds random bytes to the kernel's and credits all of them (`RNDADDENTROPY`, `random(4)`). `random` is
/// `/dev/random`.
///
/// # Errors
/// The errno of `ioctl`.
pub fn add_entropy(random: impl AsFd, bytes: &[u8]) -> Result<(), Errno> {
    let length = c_int::try_from(bytes.len()).map_err(|_| Errno::INVAL)?;
    let bits = length.checked_mul(8).ok_or(Errno::INVAL)?;
    let info = [&bits.to_ne_bytes(), &length.to_ne_bytes(), bytes].concat();
    // SAFETY: `info` is a `rand_pool_info`: bits, bytes, and that many bytes, which the kernel only reads.
    match unsafe { libc::ioctl(random.as_fd().as_raw_fd(), RNDADDENTROPY, info.as_ptr()) } {
        0 => Ok(()),
        _ => Err(errno()),
    }
}

/// Has the kernel's generator start anew from all entropy it has (`RNDRESEEDCRNG`).
///
/// # Errors
/// The errno of `ioctl`.
pub fn reseed(random: impl AsFd) -> Result<(), Errno> {
    // SAFETY: takes no argument.
    match unsafe { libc::ioctl(random.as_fd().as_raw_fd(), RNDRESEEDCRNG) } {
        0 => Ok(()),
        _ => Err(errno()),
    }
}

/// What a child becomes. Descriptors must be above 2, as this process keeps 0 to 2 open.
#[derive(Debug)]
pub struct Image<'a> {
    /// Path of the program, relative to `cwd`.
    pub program: &'a CStr,
    /// Arguments, the program's own name first.
    pub argv: &'a [&'a CStr],
    /// Environment, `NAME=value`.
    pub envp: &'a [&'a CStr],
    /// Working directory.
    pub cwd: &'a CStr,
    /// Tried when `cwd` cannot be entered.
    pub fallback_cwd: Option<&'a CStr>,
    /// Standard input, output, error; inherited where none.
    pub stdio: [Option<BorrowedFd<'a>>; 3],
}

/// Where starting a child failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Making the process.
    Clone,
    /// Process group, scheduling or standard streams.
    SetUp,
    /// Entering the working directory.
    Directory,
    /// Executing the program.
    Exec,
}

/// Starts processes, with one stack for all of them: each has it only until its `execve`.
#[derive(Debug)]
pub struct Spawner {
    stack: Box<[u128]>,
}

/// Passed to the child and, with the failure, back.
struct Plan<'a> {
    image: &'a Image<'a>,
    argv: *const *const c_char,
    envp: *const *const c_char,
    failure: Option<(Step, Errno)>,
}

impl Default for Spawner {
    fn default() -> Self {
        // The child calls a dozen wrappers of system calls; 64 KiB is far more than they use.
        Self { stack: vec![0; 4096].into_boxed_slice() }
    }
}

impl Spawner {
    /// Starts a process in its own process group, with default scheduling and signal dispositions and no
    /// signal blocked, and waits until it has executed its program.
    ///
    /// This is `posix_spawn` as glibc does it (`CLONE_VM | CLONE_VFORK` on a stack of its own), less
    /// the 64 `sigaction` calls per child that it needs because it cannot know this process's
    /// dispositions, and with the failed step as its answer instead of a bare errno.
    ///
    /// # Errors
    /// The step that failed and why.
    pub fn spawn(&mut self, image: &Image<'_>) -> Result<Pid, (Step, Errno)> {
        let pointers = |strings: &[&CStr]| -> Vec<*const c_char> {
            strings.iter().map(|string| string.as_ptr()).chain([ptr::null()]).collect()
        };
        let (argv, envp) = (pointers(image.argv), pointers(image.envp));
        let mut plan = Plan { image, argv: argv.as_ptr(), envp: envp.as_ptr(), failure: None };
        let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
        // SAFETY: the stack belongs to the child alone (`&mut self`), grows down from its aligned
        // end, and is unused again when clone returns, as CLONE_VFORK suspends this thread until the
        // child has executed or exited. Until then `plan` and all it points to stay alive. The child
        // only makes system calls and writes to `plan`.
        let pid = unsafe {
            let top = self.stack.as_mut_ptr_range().end;
            libc::clone(child, top.cast(), flags, (&raw mut plan).cast())
        };
        let Some(pid) = (if pid < 0 { None } else { Pid::from_raw(pid) }) else {
            return Err((Step::Clone, errno()));
        };
        match plan.failure {
            None => Ok(pid),
            Some(failure) => {
                // It is a zombie already, and no caller knows it.
                let _ = rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty());
                Err(failure)
            }
        }
    }
}

extern "C" fn child(plan: *mut c_void) -> c_int {
    // SAFETY: `spawn` passes its plan, which outlives this process image.
    let plan = unsafe { &mut *plan.cast::<Plan<'_>>() };
    let failed = become_image(plan);
    plan.failure = Some(failed);
    // SAFETY: ends this process without running anything of the parent's, whose memory it shares.
    unsafe { libc::_exit(127) }
}

/// Returns only on failure.
fn become_image(plan: &Plan<'_>) -> (Step, Errno) {
    let image = plan.image;
    // SAFETY: system calls on descriptors and NUL-terminated strings that `Image` borrows; the
    // argument arrays end in null. No allocation and no lock, as the parent's memory is shared.
    unsafe {
        // Reset on fork is for real-time policies: the one of this process would be inherited.
        if libc::setpgid(0, 0) != 0
            || libc::sched_setscheduler(0, libc::SCHED_OTHER, &raw const NO_PRIORITY) != 0
        {
            return (Step::SetUp, errno());
        }
        for (fd, standard) in image.stdio.iter().zip(0..) {
            if let Some(fd) = fd
                && libc::dup2(fd.as_raw_fd(), standard) < 0
            {
                return (Step::SetUp, errno());
            }
        }
        if libc::chdir(image.cwd.as_ptr()) != 0 {
            let failure = (Step::Directory, errno());
            if image.fallback_cwd.is_none_or(|directory| libc::chdir(directory.as_ptr()) != 0) {
                return failure;
            }
        }
        // This process ignores and handles no signal, so an empty mask is all there is to restore.
        let mut none = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, ptr::null_mut());
        libc::execve(image.program.as_ptr(), plan.argv, plan.envp);
    }
    (Step::Exec, errno())
}

fn errno() -> Errno {
    std::io::Error::last_os_error().raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Read;

    use rustix::process::{WaitOptions, waitpid};

    use super::*;

    /// The policy of a process: field 41 of `/proc/PID/stat` (`proc_pid_stat(5)`).
    const POLICY: &CStr = c"cut -d ' ' -f 41 /proc/self/stat";

    #[test]
    fn children_are_scheduled_as_usual() {
        do_not_preempt().unwrap(); // this thread alone
        let own = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
        let policy = |policy: libc::c_int| policy.to_string();
        // Counted from the end of the name, which may contain spaces.
        let after_name = own.rsplit_once(") ").unwrap().1;
        assert_eq!(after_name.split(' ').nth(41 - 3), Some(&*policy(libc::SCHED_BATCH)));

        let (output, stdout) = rustix::pipe::pipe().unwrap();
        let image = Image {
            program: c"/bin/sh",
            argv: &[c"/bin/sh", c"-c", POLICY],
            envp: &[],
            cwd: c"/",
            fallback_cwd: None,
            stdio: [None, Some(stdout.as_fd()), None],
        };
        let pid = Spawner::default().spawn(&image).unwrap();
        drop(stdout);
        let mut said = String::new();
        File::from(output).read_to_string(&mut said).unwrap();
        waitpid(Some(pid), WaitOptions::empty()).unwrap();
        assert_eq!(said.trim(), policy(libc::SCHED_OTHER));
    }
}
