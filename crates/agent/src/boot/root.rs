//! The mounts: devices in the initramfs, the overlay as the root, and what belongs into any root.

use std::ffi::CStr;
use std::path::Path;

use rustix::fs::{Mode, chmod, mkdir, symlink, unlink};
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount, mount_bind, mount_move, mount_remount};
use rustix::process::{chdir, chroot};

use super::BootError;
use super::disks::Disks;
use crate::kmsg::{Level, log};
use crate::names::Names;

/// Where things are put in the initramfs; nobody sees it afterwards.
const LOWER: &str = "/lower";
const WRITABLE: &str = "/writable";
const NEW_ROOT: &str = "/new-root";

const NO_DEVICES: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV);
const NO_PROGRAMS: MountFlags = NO_DEVICES.union(MountFlags::NOEXEC);
const NO_ACCESS_TIMES: MountFlags = MountFlags::NOATIME;

/// A filesystem that the kernel makes up.
struct Virtual {
    kind: &'static str,
    target: &'static str,
    flags: MountFlags,
    options: &'static CStr,
    /// A kernel built without it is good enough.
    optional: bool,
}

/// In the new root, in this order. `/dev` and `/sys` have been there since [`mount_devices`]. `/tmp` is
/// on the disk, as memory is scarcer.
const VIRTUAL: [Virtual; 6] = [
    Virtual { kind: "proc", target: "/proc", flags: NO_PROGRAMS, options: c"", optional: false },
    Virtual {
        kind: "devpts",
        target: "/dev/pts",
        flags: MountFlags::NOSUID.union(MountFlags::NOEXEC),
        options: c"gid=5,mode=620,ptmxmode=666", // 5: Debian's group tty
        optional: true,
    },
    Virtual { kind: "tmpfs", target: "/dev/shm", flags: NO_DEVICES, options: c"mode=1777", optional: false },
    Virtual { kind: "mqueue", target: "/dev/mqueue", flags: NO_PROGRAMS, options: c"", optional: true },
    Virtual { kind: "tmpfs", target: "/run", flags: NO_DEVICES, options: c"mode=755", optional: false },
    Virtual {
        kind: "cgroup2",
        target: "/sys/fs/cgroup",
        flags: NO_PROGRAMS,
        options: c"nsdelegate",
        optional: true,
    },
];

/// Directories that programs take for granted, with their modes.
const DIRECTORIES: [(&str, u32); 4] =
    [("/root", 0o700), ("/etc", 0o755), ("/tmp", 0o1777), ("/run/lock", 0o1777)];

/// The kernel's boot id, which all clones of a snapshot share; and what covers it, which they do not and
/// [`Names`] makes.
const KERNEL_BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
const BOOT_ID: &str = "/run/manta/boot_id";

/// Links that programs take for granted.
const LINKS: [(&str, &str); 4] = [
    ("/proc/self/fd", "/dev/fd"),
    ("/proc/self/fd/0", "/dev/stdin"),
    ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"),
];

/// Mounts `/dev` and `/sys` in the initramfs.
pub(super) fn mount_devices() -> Result<(), BootError> {
    make_directory("/dev", 0o755)?;
    mount_on("devtmpfs", "/dev", "devtmpfs", MountFlags::NOSUID, c"mode=755")?;
    make_directory("/sys", 0o755)?;
    mount_on("sysfs", "/sys", "sysfs", NO_PROGRAMS, c"")
}

/// Makes the overlay of the two disks the root of this process, and so of all others.
pub(super) fn enter(disks: &Disks) -> Result<(), BootError> {
    for directory in [LOWER, WRITABLE, NEW_ROOT] {
        make_directory(directory, 0o755)?;
    }
    mount_on(&disks.root, LOWER, "ext4", MountFlags::RDONLY.union(NO_ACCESS_TIMES), c"")?;
    // Without a kernel thread that initialises the filesystem in the background of every guest.
    mount_on(&disks.writable, WRITABLE, "ext4", NO_ACCESS_TIMES, c"noinit_itable,no_prefetch_block_bitmaps")?;
    make_directory("/writable/upper", 0o755)?;
    make_directory("/writable/work", 0o755)?;
    // redirect_dir: renaming a directory of the shared image works as on any disk.
    let options = c"lowerdir=/lower,upperdir=/writable/upper,workdir=/writable/work,redirect_dir=on";
    mount_on("overlay", NEW_ROOT, "overlay", NO_ACCESS_TIMES, options)?;
    for mounted in ["/dev", "/sys"] {
        let target = format!("{NEW_ROOT}{mounted}");
        make_directory(&target, 0o755)?;
        mount_move(mounted, &target).map_err(|source| mount_error(mounted, &target, source))?;
    }
    // A move of the new root over "/", as an initramfs cannot be unmounted or pivoted away from.
    let _ = unlink("/init");
    chdir(NEW_ROOT)
        .and_then(|()| mount_move(".", "/"))
        .and_then(|()| chroot("."))
        .and_then(|()| chdir("/"))
        .map_err(BootError::EnterRoot)
}

/// Completes the new root.
pub(super) fn populate() -> Result<(), BootError> {
    for Virtual { kind, target, flags, options, optional } in VIRTUAL {
        make_directory(target, 0o755)
            .and_then(|()| mount_on(kind, target, kind, flags, options))
            .or_else(|error| if optional { without(&error) } else { Err(error) })?;
    }
    for (path, mode) in DIRECTORIES {
        make_directory(path, mode)?;
    }
    // Whatever the image says: made by another tool, it may lack the sticky bit.
    let _ = chmod("/tmp", Mode::from_raw_mode(0o1777));
    for (target, path) in LINKS {
        match symlink(target, path) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(source) => return Err(BootError::MakeLink { path: path.into(), source }),
        }
    }
    Ok(())
}

/// Makes the files with the machine's names; programs see the boot id among them as the kernel's.
pub(super) fn name() -> Result<Names, BootError> {
    let boot_id = std::fs::read_to_string(KERNEL_BOOT_ID).map_err(BootError::BootId)?;
    let names = Names::create("/".into(), &boot_id).map_err(BootError::Names)?;
    let failed = |source| mount_error(BOOT_ID, KERNEL_BOOT_ID, source);
    mount_bind(BOOT_ID, KERNEL_BOOT_ID).map_err(failed)?;
    // Like the kernel's own.
    let read_only = NO_PROGRAMS.union(MountFlags::BIND).union(MountFlags::RDONLY);
    mount_remount(KERNEL_BOOT_ID, read_only, c"").map_err(failed)?;
    Ok(names)
}

fn without(error: &BootError) -> Result<(), BootError> {
    log(Level::Info, &format!("going on without: {}", crate::kmsg::chain(error)));
    Ok(())
}

/// One that is there already is fine, as it is.
fn make_directory(path: &str, mode: u32) -> Result<(), BootError> {
    match mkdir(path, Mode::from_raw_mode(mode)) {
        Ok(()) => {
            // The mode given to mkdir is cut by the umask.
            let _ = chmod(path, Mode::from_raw_mode(mode));
            Ok(())
        }
        Err(Errno::EXIST) => Ok(()),
        Err(source) => Err(BootError::MakeDirectory { path: path.into(), source }),
    }
}

fn mount_on(
    source_name: &str,
    target: &str,
    kind: &str,
    flags: MountFlags,
    options: &CStr,
) -> Result<(), BootError> {
    mount(Path::new(source_name), target, kind, flags, options)
        .map_err(|source| mount_error(source_name, target, source))
}

fn mount_error(source_name: &str, target: &str, source: Errno) -> BootError {
    BootError::Mount { source_name: source_name.to_owned(), target: target.to_owned(), source }
}
