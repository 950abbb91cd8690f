//! What a QEMU process is kept in: what it sees of the file system, and limits on itself. Its user, namespace and
//! cgroup are its place's, what system calls it may use is on its command line.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use manta_host::process::{Confinement, Rlimits};
use manta_host::{Credentials, Jail, JailContents, Process, ProcessError, Spawn};
use rustix::process::{getegid, geteuid};

use crate::error::VmmError;
use crate::vmm::{Accelerator, VmSpec};

/// Address space beside the guest's memory, bytes. Most of it is reserved and never used: 64 MiB of it by the C
/// library's allocator and 8 of stack for each of up to 64 threads, 64 of translated code, and some 100 of programs.
const ADDRESS_SPACE: u64 = 8 << 30;
/// Of a file: QEMU writes its devices' state, some 10 KiB, and to the VM's disk.
const FILE_SIZE: u64 = 64 << 20;
/// A QEMU of one guest has some 30 open.
const OPEN_FILES: u64 = 256;
/// Of its user. Another server's VMMs may have the same one; the cgroup counts more exactly.
const PROCESSES: u64 = 4096;
/// To print a few lines.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The root of all QEMU processes of this program.
pub(super) async fn jail(program: &Path, accelerator: Accelerator) -> Result<Arc<Jail>, VmmError> {
    let program = real(program)?;
    let made = tokio::task::spawn_blocking(move || {
        let data = firmware(&program).map_err(VmmError::Spawn)?;
        let devices = match accelerator {
            Accelerator::Kvm => vec![PathBuf::from("/dev/kvm")],
            Accelerator::Tcg => Vec::new(),
        };
        let contents = JailContents { programs: vec![program.clone()], data, devices };
        Jail::make(&contents).map(Arc::new).map_err(|source| VmmError::Confine { program, source })
    });
    made.await.map_err(|broken| VmmError::Pidfd(broken.into()))?
}

/// The program itself, and no link to it: that is how it is called in the jail.
pub(super) fn real(program: &Path) -> Result<PathBuf, VmmError> {
    fs::canonicalize(program).map_err(|_| VmmError::NotFound { program: program.to_owned() })
}

/// The directories that this QEMU has its firmware in.
fn firmware(program: &Path) -> Result<Vec<PathBuf>, ProcessError> {
    let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
    let process = Process::spawn(Spawn {
        program,
        args: &["-L", "help"].map(OsString::from),
        dir: Path::new("/"),
        netns: None,
        credentials: &Credentials { uid, gid, groups: Vec::new() },
        fds: Vec::new(),
        confinement: Confinement::default(),
    })?;
    process.wait_timeout(TIMEOUT)?;
    let printed = process.output();
    let mut dirs: Vec<PathBuf> =
        printed.lines().map(PathBuf::from).filter(|dir| dir.is_absolute() && dir.is_dir()).collect();
    dirs.sort();
    dirs.dedup();
    Ok(dirs)
}

/// Limits of the process that runs a machine.
pub(super) fn rlimits(spec: &VmSpec) -> Result<Rlimits, VmmError> {
    let disk = fs::metadata(&spec.disk).map_err(|error| VmmError::Open {
        what: "disk",
        path: spec.disk.clone(),
        source: rustix::io::Errno::from_io_error(&error).unwrap_or(rustix::io::Errno::IO),
    })?;
    Ok(Rlimits {
        address_space: Some((u64::from(spec.mem_mib) << 20) + ADDRESS_SPACE),
        file_size: Some(disk.len().max(FILE_SIZE)),
        locked_memory: Some(0),
        open_files: Some(OPEN_FILES),
        processes: Some(PROCESSES),
    })
}
