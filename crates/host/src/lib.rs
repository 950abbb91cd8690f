//! Kernel resources of the host as guards: each is created by one call, destroyed by another, and `Drop` is
//! the safety net between them. Synchronous, and the server's only place for system calls and child
//! processes. Knows no sandboxes, no HTTP, no virtual machines.
//!
//! Only files named `sys.rs` contain `unsafe`.

pub mod cgroup;
pub mod disk;
pub mod facts;
pub mod jail;
pub mod lock;
pub mod mounts;
pub mod net;
pub mod netns;
pub mod process;
pub mod random;
pub mod usage;

mod removal;
mod sys;

pub use cgroup::{Cgroup, CgroupEntry, CgroupError, CgroupLimits, Cgroups};
pub use jail::{Jail, JailContents, JailError};
pub use lock::{LockError, WorkDirLock};
pub use net::{GuestNet, HostNetwork, NetError, NetSlot, detect_egress, sweep_network};
pub use netns::{NetNs, NetNsError};
pub use process::{Credentials, Ended, Process, ProcessError, ProcessId, Spawn, Stray, processes_in};
pub use removal::remove_all;
