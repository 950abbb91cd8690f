//! How a process ended, as far as the kernel tells. Nothing else.

use std::fmt;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use rustix::process::WaitIdStatus;

/// The end of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// It was this server's child, which is told how it ended.
    Status(ExitStatus),
    /// It was the child of another, and only that it ended is known.
    Unknown,
}

impl Ended {
    /// Whether it is known to have exited with 0.
    #[must_use]
    pub fn success(self) -> bool {
        matches!(self, Self::Status(status) if status.success())
    }

    /// The signal that is known to have ended it.
    #[must_use]
    pub fn signal(self) -> Option<i32> {
        match self {
            Self::Status(status) => status.signal(),
            Self::Unknown => None,
        }
    }
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status(status) => status.fmt(f),
            Self::Unknown => f.write_str("status unknown: it was started by an earlier server"),
        }
    }
}

impl From<&WaitIdStatus> for Ended {
    fn from(ended: &WaitIdStatus) -> Self {
        // The encoding of wait(2): the exit code in the second byte, or the signal in the first with 0x80 for a
        // core dump.
        let dumped = if ended.dumped() { 0x80 } else { 0 };
        let raw = match (ended.exit_status(), ended.terminating_signal()) {
            (Some(code), _) => (code & 0xff) << 8,
            (None, signal) => signal.unwrap_or(0) | dumped,
        };
        Self::Status(ExitStatus::from_raw(raw))
    }
}
