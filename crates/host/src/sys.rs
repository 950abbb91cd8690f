//! The few system calls of this crate that no safe wrapper covers. Owns nothing but their safety arguments.

use std::os::fd::AsFd;

use rustix::io;
use rustix::ioctl::{IntegerSetter, Opcode, Updater, ioctl, opcode};
use rustix::thread::UnshareFlags;

/// Moves the calling thread into a new network namespace.
pub(crate) fn unshare_net() -> io::Result<()> {
    // SAFETY: only `CLONE_FILES` has consequences for the soundness of file descriptors; it is not passed.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }
}

/// Moves the calling thread into a new mount namespace, a copy of its own, with a working directory and root of its
/// own.
pub(crate) fn unshare_mounts() -> io::Result<()> {
    // SAFETY: as above.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) }
}

/// `struct ifreq` of `linux/if.h` with the member that `TUNSETIFF` reads.
#[repr(C)]
struct TunRequest {
    name: [u8; libc::IFNAMSIZ],
    flags: libc::c_short,
    /// The kernel copies the whole 40 bytes of the union's largest member.
    padding: [u8; 22],
}

const TUNSETIFF: Opcode = opcode::write::<libc::c_int>(b'T', 202);
const TUNSETPERSIST: Opcode = opcode::write::<libc::c_int>(b'T', 203);
const TUNSETOWNER: Opcode = opcode::write::<libc::c_int>(b'T', 204);

/// Attaches an open `/dev/net/tun` to the tap `name` of the calling thread's namespace, creating it if need be.
/// Frames carry a `virtio_net_hdr`, no packet information.
pub(crate) fn tun_attach_tap(tun: impl AsFd, name: &str) -> io::Result<()> {
    let mut request = TunRequest {
        name: [0; libc::IFNAMSIZ],
        flags: (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short,
        padding: [0; 22],
    };
    // The last byte stays zero.
    let field = request.name[..libc::IFNAMSIZ - 1].get_mut(..name.len()).ok_or(io::Errno::NAMETOOLONG)?;
    field.copy_from_slice(name.as_bytes());
    // SAFETY: TUNSETIFF reads, and writes the name back to, a `struct ifreq`, which `TunRequest` has the layout
    // and size of.
    unsafe { ioctl(tun, Updater::<TUNSETIFF, TunRequest>::new(&mut request)) }
}

/// Lets the user `uid` attach to the tap that `tun` is attached to.
pub(crate) fn tun_set_owner(tun: impl AsFd, uid: u32) -> io::Result<()> {
    // SAFETY: TUNSETOWNER takes a user id by value.
    unsafe { ioctl(tun, IntegerSetter::<TUNSETOWNER>::new_usize(uid as usize)) }
}

/// Keeps the tap when nobody is attached to it.
pub(crate) fn tun_set_persistent(tun: impl AsFd) -> io::Result<()> {
    // SAFETY: TUNSETPERSIST takes a flag by value.
    unsafe { ioctl(tun, IntegerSetter::<TUNSETPERSIST>::new_usize(1)) }
}

/// See [`crate::facts::tsc_khz`].
#[cfg(target_arch = "x86_64")]
pub(crate) fn measure_tsc_khz() -> Option<u64> {
    let (tsc_before, ns_before) = tsc_and_ns();
    std::thread::sleep(std::time::Duration::from_millis(20));
    let (tsc_after, ns_after) = tsc_and_ns();
    // Ticks per nanosecond times a million.
    tsc_after.checked_sub(tsc_before)?.checked_mul(1_000_000)?.checked_div(ns_after - ns_before)
}

#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn measure_tsc_khz() -> Option<u64> {
    None
}

/// The time stamp counter, and the clock in nanoseconds, at the same moment: the best of a few attempts, since
/// another process may run in between.
#[cfg(target_arch = "x86_64")]
fn tsc_and_ns() -> (u64, u64) {
    // SAFETY: `rdtsc` has no preconditions on x86_64.
    let tsc = || unsafe { std::arch::x86_64::_rdtsc() };
    let attempt = || {
        let before = tsc();
        let now = rustix::time::clock_gettime(rustix::time::ClockId::MonotonicRaw);
        let took = tsc().wrapping_sub(before);
        let ns = now.tv_sec.cast_unsigned() * 1_000_000_000 + now.tv_nsec.cast_unsigned();
        (took, (before + took / 2, ns))
    };
    (0..20).map(|_| attempt()).min_by_key(|(took, _)| *took).map_or((0, 0), |(_, pair)| pair)
}
