//! Waits for the moment a process listens on a socket it makes itself, without polling for its path.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::io::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::dir::VmDir;
use crate::error::VmmError;
use crate::sys::watch_readable;

/// Between making a socket's path and listening on it a process makes no event. It needs microseconds.
const LISTEN_PAUSE: Duration = Duration::from_millis(1);

/// Watches a directory for new entries. To be made before the process starts.
#[derive(Debug)]
pub(super) struct SocketWatch {
    events: AsyncFd<OwnedFd>,
}

impl SocketWatch {
    pub(super) fn new(dir: &VmDir) -> Result<Self, VmmError> {
        let make = || {
            let events = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
            inotify::add_watch(&events, dir.short_path("."), WatchFlags::CREATE | WatchFlags::MOVED_TO)?;
            watch_readable(events)
        };
        make().map(|events| Self { events }).map_err(|source: io::Error| watch_error(dir, source))
    }

    /// Completes when the socket `name` accepts connections.
    pub(super) async fn connectable(self, dir: &VmDir, name: &str) -> Result<(), VmmError> {
        loop {
            match dir.connect(name).await {
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::NotFound => self.changed(dir).await?,
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                    tokio::time::sleep(LISTEN_PAUSE).await;
                }
                Err(error) => return Err(dir.connect_error(name, error)),
            }
        }
    }

    /// Completes when there is a new entry since the last time.
    async fn changed(&self, dir: &VmDir) -> Result<(), VmmError> {
        let read = self.events.async_io(Interest::READABLE, |events| {
            let mut buffer = [MaybeUninit::uninit(); 4096];
            // Which entry it was does not matter.
            inotify::Reader::new(events, &mut buffer).next().map(drop).map_err(Errno::into)
        });
        read.await.map_err(|source| watch_error(dir, source))
    }
}

fn watch_error(dir: &VmDir, source: io::Error) -> VmmError {
    VmmError::Watch { dir: dir.path().to_owned(), source }
}
