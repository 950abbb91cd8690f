//! A VMM process for the event loop: started off it, or adopted, watched through its pidfd, killed and reaped. Does not
//! know which VMM it is.

use std::ffi::OsString;
use std::os::fd::{OwnedFd, RawFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use manta_host::process::{Capabilities, Confinement, Rlimits};
use manta_host::{CgroupEntry, Credentials, Jail, NetNs, Process, ProcessId, Spawn};
use tokio::io::unix::AsyncFd;
use tokio::time::timeout;

use crate::error::VmmError;
use crate::sys::watch_readable;

/// A VMM that broke off its sockets is ending: the kernel closes them among the last things.
const DYING: Duration = Duration::from_secs(1);
/// The kernel needs this long to end a process only if it is stuck in a device or a file system.
const KILL_TIMEOUT: Duration = Duration::from_secs(5);

/// What to start.
#[derive(Debug)]
pub(crate) struct Command {
    pub(crate) program: PathBuf,
    pub(crate) args: Vec<OsString>,
    pub(crate) dir: PathBuf,
    pub(crate) netns: Arc<NetNs>,
    pub(crate) credentials: Credentials,
    pub(crate) fds: Vec<(OwnedFd, RawFd)>,
    pub(crate) jail: Option<Arc<Jail>>,
    pub(crate) cgroup: Option<CgroupEntry>,
    pub(crate) rlimits: Rlimits,
    pub(crate) capabilities: Capabilities,
}

#[derive(Debug)]
pub(crate) struct Child {
    process: Process,
    pidfd: AsyncFd<OwnedFd>,
}

impl Child {
    pub(crate) async fn spawn(command: Command) -> Result<Self, VmmError> {
        let spawned = tokio::task::spawn_blocking(move || {
            Process::spawn(Spawn {
                program: &command.program,
                args: &command.args,
                dir: &command.dir,
                netns: Some(&command.netns),
                credentials: &command.credentials,
                fds: command.fds,
                confinement: Confinement {
                    jail: command.jail.as_deref(),
                    cgroup: command.cgroup.as_ref(),
                    rlimits: command.rlimits,
                    capabilities: command.capabilities,
                },
            })
        });
        let process = match spawned.await {
            Ok(process) => process.map_err(VmmError::Spawn)?,
            Err(broken) => return Err(VmmError::Pidfd(broken.into())),
        };
        Self::adopt(process)
    }

    /// Watches a process that another server has started.
    pub(crate) fn adopt(process: Process) -> Result<Self, VmmError> {
        let pidfd = process.pidfd().try_clone_to_owned().and_then(watch_readable).map_err(VmmError::Pidfd)?;
        Ok(Self { process, pidfd })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.pid()
    }

    pub(crate) fn id(&self) -> ProcessId {
        self.process.id()
    }

    /// What it printed so far.
    pub(crate) fn output(&self) -> String {
        self.process.output()
    }

    /// How long its threads called so have run or waited to be run; none if it is stopped, or that cannot be said.
    pub(crate) fn time_of_threads(&self, prefix: &str) -> Option<Duration> {
        self.process.time_of_threads(prefix).ok().flatten()
    }

    /// Whether it has ended, and then how.
    pub(crate) fn status(&self) -> Option<String> {
        match self.process.try_wait() {
            Ok(ended) => ended.map(|ended| ended.to_string()),
            Err(error) => Some(format!("ended, status lost ({error})")),
        }
    }

    /// Completes when it has ended; reaps it and says how it ended.
    pub(crate) async fn ended(&self) -> String {
        loop {
            let readable = self.pidfd.readable().await;
            if let Some(status) = self.status() {
                return status;
            }
            match readable {
                Ok(mut readable) => readable.clear_ready(),
                Err(error) => return format!("can no longer be watched ({error})"),
            }
        }
    }

    /// How it ended, if it is ending now: to be asked when it broke off a conversation.
    pub(crate) async fn dying(&self) -> Option<String> {
        timeout(DYING, self.ended()).await.ok()
    }

    pub(crate) async fn kill(&self) -> Result<(), VmmError> {
        self.process.kill().map_err(VmmError::Kill)?;
        match timeout(KILL_TIMEOUT, self.ended()).await {
            Ok(_) => Ok(()),
            Err(_) => Err(VmmError::Unkillable { pid: self.pid(), timeout: KILL_TIMEOUT }),
        }
    }
}
