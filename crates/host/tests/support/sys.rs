//! The tap of a pretend guest. Only what needs `unsafe`.

use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags};
use rustix::ioctl::{IntegerSetter, Opcode, Updater, ioctl, opcode};

#[repr(C)]
struct TunRequest {
    name: [u8; 16],
    flags: libc::c_short,
    padding: [u8; 22],
}

const TUNSETIFF: Opcode = opcode::write::<libc::c_int>(b'T', 202);
const TUNSETOFFLOAD: Opcode = opcode::write::<libc::c_uint>(b'T', 208);
/// `TUN_F_CSUM | TUN_F_TSO4`, as a guest's virtio-net driver negotiates them.
const OFFLOADS: usize = 0x01 | 0x02;

/// Creates and opens a tap `eth0` in the calling thread's namespace, for frames with a `virtio_net_hdr`.
pub fn open_eth0() -> OwnedFd {
    let fd = rustix::fs::open("/dev/net/tun", OFlags::RDWR | OFlags::NONBLOCK, Mode::empty()).unwrap();
    let flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
    let mut request = TunRequest { name: [0; 16], flags, padding: [0; 22] };
    request.name[..4].copy_from_slice(b"eth0");
    // SAFETY: TUNSETIFF reads and writes a `struct ifreq`, whose layout `TunRequest` has.
    unsafe { ioctl(&fd, Updater::<TUNSETIFF, TunRequest>::new(&mut request)) }.unwrap();
    fd
}

/// Says that whoever reads from a tap can take packets without checksums and larger than the MTU.
pub fn take_offloads(tap: &OwnedFd) {
    // SAFETY: TUNSETOFFLOAD takes flags by value.
    unsafe { ioctl(tap, IntegerSetter::<TUNSETOFFLOAD>::new_usize(OFFLOADS)) }.unwrap();
}
