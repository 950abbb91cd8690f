//! Tap devices: the network card of a guest, seen from the host. Does not own the device; the namespace does.

use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::NetError;
use super::addresses::TAP;
use crate::process::no_spawning;
use crate::sys;

/// Creates the slot's tap in the calling thread's namespace: it stays when no one has it open, and `owner` may
/// open it.
pub(super) fn create(owner: u32) -> Result<(), NetError> {
    // A child on its way to exec would keep a copy open, and the tap busy.
    let _no_copies = no_spawning();
    let tap = attach("create")?;
    sys::tun_set_owner(&tap, owner).map_err(error("set the owner of"))?;
    sys::tun_set_persistent(&tap).map_err(error("keep"))
}

/// Opens the slot's tap in the calling thread's namespace. Only one descriptor at a time can be attached.
pub(super) fn open() -> Result<OwnedFd, NetError> {
    attach("open")
}

fn attach(action: &'static str) -> Result<OwnedFd, NetError> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let fd = rustix::fs::open("/dev/net/tun", flags, Mode::empty()).map_err(error(action))?;
    sys::tun_attach_tap(&fd, TAP).map_err(error(action))?;
    Ok(fd)
}

fn error(action: &'static str) -> impl FnOnce(Errno) -> NetError {
    move |source| NetError::Tap { action, name: TAP, source }
}
