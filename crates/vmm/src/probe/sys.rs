//! The system calls of the probe: KVM's ioctls (`Documentation/virt/kvm/api.rst` of Linux), a shared mapping,
//! and the signal that stops a vCPU. Owns one VM with one vCPU.

use std::ffi::{c_int, c_ulong};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::thread::JoinHandleExt;
use std::ptr::{self, NonNull};
use std::thread::JoinHandle;

use kvm_bindings::{KVM_API_VERSION, KVM_EXIT_IO, kvm_regs, kvm_run, kvm_sregs, kvm_userspace_memory_region};
use rustix::io::{self, Errno};
use rustix::mm::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};

use super::guest::PORT;

/// Interrupts `KVM_RUN`, and nothing else: it is blocked outside of it.
const STOP_SIGNAL: c_int = libc::SIGUSR1;

/// `_IO(0xae, n)`: no argument, or a number.
const fn io(number: c_ulong) -> c_ulong {
    0xae << 8 | number
}

/// `_IOW(0xae, n, T)`, `_IOR(0xae, n, T)`.
const fn iow<T>(number: c_ulong) -> c_ulong {
    1 << 30 | (size_of::<T>() as c_ulong) << 16 | io(number)
}

const fn ior<T>(number: c_ulong) -> c_ulong {
    2 << 30 | (size_of::<T>() as c_ulong) << 16 | io(number)
}

const GET_API_VERSION: c_ulong = io(0x00);
const CREATE_VM: c_ulong = io(0x01);
const GET_VCPU_MMAP_SIZE: c_ulong = io(0x04);
const CREATE_VCPU: c_ulong = io(0x41);
const SET_USER_MEMORY_REGION: c_ulong = iow::<kvm_userspace_memory_region>(0x46);
const RUN: c_ulong = io(0x80);
const SET_REGS: c_ulong = iow::<kvm_regs>(0x82);
const GET_SREGS: c_ulong = ior::<kvm_sregs>(0x83);
const SET_SREGS: c_ulong = iow::<kvm_sregs>(0x84);
/// Its size counts the header only: the set follows without being part of the C structure.
const SET_SIGNAL_MASK: c_ulong = iow::<u32>(0x8b);

/// `struct kvm_signal_mask` with the kernel's 64-bit set.
#[repr(C, packed)]
struct SignalMask {
    len: u32,
    set: u64,
}

/// Anonymous memory for the guest.
#[derive(Debug)]
pub(super) struct Memory {
    start: NonNull<u8>,
    len: usize,
}

/// A VM without vCPUs.
#[derive(Debug)]
pub(super) struct Kvm {
    device: OwnedFd,
    vm: OwnedFd,
}

/// A VM with one vCPU and its memory.
#[derive(Debug)]
pub(super) struct Vcpu {
    fd: OwnedFd,
    run: NonNull<kvm_run>,
    run_len: usize,
    // After the vCPU that uses them.
    _vm: Kvm,
    _memory: Memory,
}

/// Why a vCPU stopped.
#[derive(Debug)]
pub(super) enum Stop {
    /// It wrote to the agreed port.
    Port,
    /// `KVM_EXIT_*`.
    Other(u32),
}

fn result(returned: c_int) -> io::Result<c_int> {
    if returned < 0 {
        Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO))
    } else {
        Ok(returned)
    }
}

/// An ioctl whose argument is a number.
fn call(fd: &OwnedFd, request: c_ulong, argument: c_ulong) -> io::Result<c_int> {
    debug_assert!(matches!(request, GET_API_VERSION | CREATE_VM | GET_VCPU_MMAP_SIZE | CREATE_VCPU | RUN));
    // SAFETY: the requests passed here take no pointer.
    result(unsafe { libc::ioctl(fd.as_raw_fd(), request, argument) })
}

/// As [`call`], for requests that return a descriptor.
fn create(fd: &OwnedFd, request: c_ulong) -> io::Result<OwnedFd> {
    let raw = call(fd, request, 0)?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

impl Memory {
    pub(super) fn new(len: usize) -> io::Result<Self> {
        // SAFETY: a new mapping at an address of the kernel's choice touches no existing memory.
        let start = unsafe {
            mmap_anonymous(ptr::null_mut(), len, ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE)
        }?;
        Ok(Self { start: NonNull::new(start.cast()).ok_or(Errno::NOMEM)?, len })
    }

    pub(super) fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: the mapping is ours, `len` bytes long, zeroed, and lent out exclusively; no guest runs yet,
        // since a guest's memory is inside its `Vcpu`.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: mapped by `new`, unmapped only here. A failure leaks a few pages.
        let _ = unsafe { munmap(self.start.as_ptr().cast(), self.len) };
    }
}

impl Kvm {
    pub(super) fn new(device: OwnedFd) -> io::Result<Self> {
        if call(&device, GET_API_VERSION, 0)? != KVM_API_VERSION as c_int {
            return Err(Errno::NOSYS);
        }
        let vm = create(&device, CREATE_VM)?;
        Ok(Self { device, vm })
    }

    /// Gives the VM its memory, from address 0, and a vCPU.
    pub(super) fn into_vcpu(self, memory: Memory) -> io::Result<Vcpu> {
        let region = kvm_userspace_memory_region {
            memory_size: memory.len as u64,
            userspace_addr: memory.start.as_ptr() as u64,
            ..Default::default()
        };
        // SAFETY: `region` is what the request reads; the memory it names stays mapped as long as the VM, both
        // being owned by the `Vcpu`.
        result(unsafe { libc::ioctl(self.vm.as_raw_fd(), SET_USER_MEMORY_REGION, &raw const region) })?;
        let fd = create(&self.vm, CREATE_VCPU)?;
        let run_len = call(&self.device, GET_VCPU_MMAP_SIZE, 0)?;
        let run_len = usize::try_from(run_len).map_err(|_| Errno::INVAL)?;
        if run_len < size_of::<kvm_run>() {
            return Err(Errno::INVAL);
        }
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice touches no existing memory.
        let run = unsafe { mmap(ptr::null_mut(), run_len, protection, MapFlags::SHARED, &fd, 0) }?;
        let run = NonNull::new(run.cast()).ok_or(Errno::NOMEM)?;
        let vcpu = Vcpu { fd, run, run_len, _vm: self, _memory: memory };
        vcpu.unblock_stop_signal()?;
        Ok(vcpu)
    }
}

impl Vcpu {
    /// While the vCPU runs, of all signals only the one that stops it is let through.
    fn unblock_stop_signal(&self) -> io::Result<()> {
        let mask = SignalMask { len: size_of::<u64>() as u32, set: !(1 << (STOP_SIGNAL - 1)) };
        // SAFETY: the request reads `len` and a set of that many bytes behind it, which is `mask`'s layout.
        result(unsafe { libc::ioctl(self.fd.as_raw_fd(), SET_SIGNAL_MASK, &raw const mask) }).map(drop)
    }

    pub(super) fn sregs(&self) -> io::Result<kvm_sregs> {
        let mut sregs = kvm_sregs::default();
        // SAFETY: the request fills in a `kvm_sregs`.
        result(unsafe { libc::ioctl(self.fd.as_raw_fd(), GET_SREGS, &raw mut sregs) })?;
        Ok(sregs)
    }

    pub(super) fn set_sregs(&mut self, sregs: &kvm_sregs) -> io::Result<()> {
        // SAFETY: the request reads a `kvm_sregs`.
        result(unsafe { libc::ioctl(self.fd.as_raw_fd(), SET_SREGS, ptr::from_ref(sregs)) }).map(drop)
    }

    pub(super) fn set_regs(&mut self, regs: &kvm_regs) -> io::Result<()> {
        // SAFETY: the request reads a `kvm_regs`.
        result(unsafe { libc::ioctl(self.fd.as_raw_fd(), SET_REGS, ptr::from_ref(regs)) }).map(drop)
    }

    /// Runs the guest until it stops; `EINTR` when it was stopped from outside.
    pub(super) fn run(&mut self) -> io::Result<Stop> {
        call(&self.fd, RUN, 0)?;
        // SAFETY: the mapping is a `kvm_run`, as long as one; the kernel writes to it only inside the call above.
        let run = unsafe { self.run.as_ref() };
        if run.exit_reason != KVM_EXIT_IO {
            return Ok(Stop::Other(run.exit_reason));
        }
        // SAFETY: with this exit reason, the kernel has filled in this member of the union.
        let port = unsafe { run.__bindgen_anon_1.io.port };
        Ok(if port == u16::from(PORT) { Stop::Port } else { Stop::Other(KVM_EXIT_IO) })
    }
}

impl Drop for Vcpu {
    fn drop(&mut self) {
        // SAFETY: mapped by `into_vcpu`, unmapped only here, used by nothing after.
        let _ = unsafe { munmap(self.run.as_ptr().cast(), self.run_len) };
    }
}

/// Blocks all signals in the calling thread, so that only its vCPU is interrupted by any.
pub(super) fn block_signals() {
    // SAFETY: a zeroed set is valid and is filled by the first call; the second reads it.
    unsafe {
        let mut all = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, ptr::null_mut());
    }
}

/// Stops the vCPU that runs, or will run, on `thread`, which has blocked its signals.
pub(super) fn stop_vcpu(thread: &JoinHandle<()>) {
    // SAFETY: the handle was neither joined nor detached, so the thread's id is valid. The signal stays pending,
    // and goes with the thread; it is never delivered.
    unsafe { libc::pthread_kill(thread.as_pthread_t(), STOP_SIGNAL) };
}
