//! What a spawned process is kept in, beside its credentials: a root, a cgroup, and limits of its own. Pure.

use crate::cgroup::CgroupEntry;
use crate::jail::Jail;

/// What a process is kept in. By default in nothing but what holds for every one that is spawned.
#[derive(Debug, Clone, Copy, Default)]
pub struct Confinement<'a> {
    /// The cgroup it is in from its first instruction on, else the caller's.
    pub cgroup: Option<&'a CgroupEntry>,
    /// The root it has, in namespaces of its own for mounts, processes, IPC and the host's name; else those of the
    /// caller. Its working directory is `/vm` there, and it is process 1, as which it cannot be ended but by SIGKILL, by
    /// a fault, or by itself.
    pub jail: Option<&'a Jail>,
    /// Limits on itself. For all that is not given here the caller's hold; no core is ever dumped.
    pub rlimits: Rlimits,
    /// What it may ever have of root's capabilities.
    pub capabilities: Capabilities,
}

/// Capabilities that a process, or what it becomes, can have.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Capabilities {
    /// All for root, none for others.
    #[default]
    OfUser,
    /// For root these (numbers of `linux/capability.h`), none for others.
    Among(&'static [u32]),
}

impl Capabilities {
    /// All that the bounding set of a process of this user keeps, unless it keeps everything.
    pub(super) fn bounding_set(self, uid: u32) -> Option<&'static [u32]> {
        match self {
            _ if uid != 0 => Some(&[]),
            Self::OfUser => None,
            Self::Among(kept) => Some(kept),
        }
    }
}

/// Limits of one process (`setrlimit(2)`), both the soft and the hard one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rlimits {
    /// Of its address space, bytes: memory, and what is only mapped or reserved.
    pub address_space: Option<u64>,
    /// Of a file it writes to, bytes.
    pub file_size: Option<u64>,
    /// Of locked memory, bytes.
    pub locked_memory: Option<u64>,
    /// Of descriptors.
    pub open_files: Option<u64>,
    /// Of processes and threads of its user, on the whole host.
    pub processes: Option<u64>,
}

impl Rlimits {
    /// Numbers of the limits, and the limits.
    pub(super) fn values(&self) -> Vec<(libc::__rlimit_resource_t, u64)> {
        [
            (libc::RLIMIT_CORE, Some(0)),
            (libc::RLIMIT_AS, self.address_space),
            (libc::RLIMIT_FSIZE, self.file_size),
            (libc::RLIMIT_MEMLOCK, self.locked_memory),
            (libc::RLIMIT_NOFILE, self.open_files),
            (libc::RLIMIT_NPROC, self.processes),
        ]
        .into_iter()
        .filter_map(|(resource, limit)| Some((resource, limit?)))
        .collect()
    }
}
