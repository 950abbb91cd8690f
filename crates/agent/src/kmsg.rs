//! Words for the guest's console, by way of the kernel log: the only place to say something before
//! there is a host, and where the host looks when a boot failed. Never used on the exec path.

use std::path::Path;

use rustix::fs::{Mode, OFlags};

/// How loud. A console with `quiet` on the kernel's command line shows only [`Level::Critical`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// The guest ends because of it (`KERN_CRIT`).
    Critical = 2,
    /// Worth knowing (`KERN_INFO`).
    Info = 6,
}

/// Writes one line; to standard error where there is no kernel log to write to. A failure is ignored:
/// there is nowhere left to report it.
pub fn log(level: Level, message: &str) {
    let line = format!("<{}>manta-agent: {message}\n", level as u8);
    // One write call is one record; the kernel cuts it at about 1000 bytes.
    let written = rustix::fs::open(Path::new("/dev/kmsg"), OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())
        .and_then(|kmsg| rustix::io::write(kmsg, line.as_bytes()));
    if written.is_err() {
        let _ = rustix::io::write(rustix::stdio::stderr(), line.as_bytes());
    }
}

/// An error with its sources, on one line.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let sources = std::iter::successors(error.source(), |source| source.source());
    sources.fold(error.to_string(), |text, source| format!("{text}: {source}"))
}
