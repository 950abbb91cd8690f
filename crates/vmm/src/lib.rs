//! How to run a microVM: one trait, [`Vmm`], two drivers, and the probe that tells usable KVM from unusable.
//! Owns the processes of virtual machine monitors and what is said to them. Knows no sandboxes: who runs in
//! the VM, in which network, and for how long is decided above.
//!
//! All that is needed to talk to a VMM lies in the VM's directory under fixed names, as Unix sockets, so that a
//! later server can take up the conversation.

#[cfg(any(test, fuzzing))]
pub mod fuzzing;
pub mod initramfs;
pub mod probe;

mod child;
mod choose;
mod console;
mod deadline;
mod dir;
mod disk_limits;
mod error;
mod firecracker;
mod kernel_args;
mod qemu;
mod snapshot;
mod sys;
mod version;
mod vmm;

pub use choose::{Choice, VmmChoice, choose};
pub use disk_limits::DiskLimits;
pub use error::VmmError;
pub use firecracker::{ApiError, JailerChoice, firecracker};
pub use initramfs::write_initramfs;
pub use probe::{KvmProbe, KvmVerdict, probe_kvm};
pub use qemu::{QmpError, qemu};
pub use sys::watch_readable;
pub use vmm::{
    Accelerator, BoxFuture, Exit, MicroVm, Origin, Place, SnapshotFiles, Survivor, UnknownName, VmSpec, Vmm,
    VmmInfo, VmmKind,
};
