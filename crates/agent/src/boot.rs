//! From the kernel's hand-over to a root that programs can live in.
//!
//! The initramfs holds this program and nothing to rely on. The machine has two disks: the shared
//! read-only root filesystem, and its own writable one. An overlay of the two becomes the root.

mod disks;
mod root;

use std::fs;
use std::path::PathBuf;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, setrlimit};
use rustix::system::{RebootCommand, reboot, sethostname};
use thiserror::Error;

use crate::kmsg::{Level, log};
use crate::names::{NOBODY, Names, NamesError};
use crate::net::{self, NetError};
use crate::sys::do_not_preempt;

/// Open files a process may have: what it starts with, and what it may ask for. The agent itself needs
/// three for every command.
const OPEN_FILES: Rlimit = Rlimit { current: Some(65_536), maximum: Some(524_288) };

/// Kernel settings that differ from the kernel's own, below `/proc/sys`.
const SYSCTLS: [(&str, &str); 1] = [
    ("net/ipv4/ping_group_range", "0 2147483647"), // ping for everyone, without raw sockets
];

/// Which step of the boot failed.
#[derive(Debug, Error)]
pub enum BootError {
    /// A directory cannot be made.
    #[error("cannot make directory {path}")]
    MakeDirectory {
        /// Which.
        path: PathBuf,
        /// Why.
        source: Errno,
    },
    /// A symbolic link cannot be made.
    #[error("cannot make link {path}")]
    MakeLink {
        /// Which.
        path: PathBuf,
        /// Why.
        source: Errno,
    },
    /// A filesystem cannot be mounted.
    #[error("cannot mount {source_name} on {target}")]
    Mount {
        /// Device or kind of filesystem.
        source_name: String,
        /// Where.
        target: String,
        /// Why.
        source: Errno,
    },
    /// The overlay cannot be made the root.
    #[error("cannot enter the root filesystem")]
    EnterRoot(#[source] Errno),
    /// The standard descriptors.
    #[error("cannot open /dev/null")]
    StandardStreams(#[source] Errno),
    /// The socket for device events.
    #[error("cannot wait for devices")]
    Events(#[from] Errno),
    /// The block devices cannot be listed.
    #[error("cannot list block devices")]
    ListDisks(#[source] std::io::Error),
    /// A disk is missing.
    #[error("the machine needs a read-only and a writable disk, but has {found}")]
    Disks {
        /// The disks that are there.
        found: String,
    },
    /// The kernel's boot id.
    #[error("cannot read the boot id")]
    BootId(#[source] std::io::Error),
    /// The files with the machine's names.
    #[error(transparent)]
    Names(NamesError),
    /// The limit on open files.
    #[error("cannot set the limit on open files")]
    OpenFiles(#[source] Errno),
    /// The scheduling policy.
    #[error("cannot set the scheduling policy")]
    Scheduling(#[source] Errno),
    /// The host name.
    #[error("cannot set the host name")]
    HostName(#[source] Errno),
    /// The loopback interface.
    #[error("cannot set the loopback interface up")]
    Loopback(#[source] NetError),
}

/// Boots. Afterwards this process is in the new root, with its standard descriptors on `/dev/null`. The
/// machine has the names of nobody.
///
/// # Errors
/// The step that failed; the guest is then of no use.
pub fn run() -> Result<Names, BootError> {
    root::mount_devices()?;
    silence_standard_streams()?;
    let disks = disks::find()?;
    root::enter(&disks)?;
    root::populate()?;
    let names = root::name()?;
    for (name, value) in SYSCTLS {
        if let Err(error) = fs::write(format!("/proc/sys/{name}"), value) {
            log(Level::Info, &format!("sysctl {name} is left as it is: {error}"));
        }
    }
    setrlimit(Resource::Nofile, OPEN_FILES).map_err(BootError::OpenFiles)?;
    // Else a command's start and its first output wake this process in the middle of it. Each time the guest changes
    // address spaces twice, at which TCG forgets all translated addresses.
    do_not_preempt().map_err(BootError::Scheduling)?;
    sethostname(NOBODY.as_bytes()).map_err(BootError::HostName)?;
    net::loopback_up().map_err(BootError::Loopback)?;
    Ok(names)
}

/// Says why on the console and resets the machine, at which the VMM ends.
pub fn give_up(why: &str) -> ! {
    log(Level::Critical, &format!("giving up: {why}"));
    let _ = reboot(RebootCommand::Restart);
    std::process::abort() // the end of PID 1 is a kernel panic, which resets the machine too
}

/// The kernel gives PID 1 its console, or nothing. Commands inherit standard input; nothing of ours
/// belongs on the others.
fn silence_standard_streams() -> Result<(), BootError> {
    let open = || rustix::fs::open("/dev/null", OFlags::RDWR, Mode::empty());
    let null = open().map_err(BootError::StandardStreams)?;
    rustix::stdio::dup2_stdin(&null)
        .and_then(|()| rustix::stdio::dup2_stdout(&null))
        .and_then(|()| rustix::stdio::dup2_stderr(&null))
        .map_err(BootError::StandardStreams)?;
    // Where nothing was open it has become one of the three itself, and must stay.
    if std::os::fd::AsRawFd::as_raw_fd(&null) <= 2 {
        std::mem::forget(null);
    }
    Ok(())
}
