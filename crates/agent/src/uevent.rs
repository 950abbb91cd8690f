//! Waiting for devices: the kernel says on a netlink socket when one appears.

use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::netlink::{KOBJECT_UEVENT, SocketAddrNetlink};
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, socket_with};

/// Looks with `find` until it finds something, after every device event; `None` after `timeout`.
///
/// # Errors
/// The errno of the socket, or what `find` fails with.
pub(crate) fn wait_for<T, E: From<Errno>>(
    timeout: Duration,
    mut find: impl FnMut() -> Result<Option<T>, E>,
) -> Result<Option<T>, E> {
    if let Some(found) = find()? {
        return Ok(Some(found)); // nearly always
    }
    let socket = socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        Some(KOBJECT_UEVENT),
    )?;
    bind(&socket, &SocketAddrNetlink::new(0, 1))?; // group 1: the kernel's own events
    let deadline = Instant::now() + timeout;
    loop {
        // After the bind: what appears from here on is announced.
        if let Some(found) = find()? {
            return Ok(Some(found));
        }
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
        match poll(&mut [PollFd::new(&socket, PollFlags::IN)], Some(&left)) {
            Ok(0) => return Ok(None),
            Ok(_) => while rustix::io::read(&socket, &mut [0_u8; 4096]).is_ok() {},
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
