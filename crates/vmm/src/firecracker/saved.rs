//! The files of a snapshot: what Firecracker finds in its directory before it saves its VM, and how what it
//! wrote gets from there to where it belongs. Blocking; knows nothing of the API.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, fchown};
use std::path::Path;

use manta_host::disk::{CloneMode, clone_file};
use rustix::fs::{FallocateFlags, fallocate};

use super::requests::Pages;
use crate::dir::VmDir;
use crate::error::VmmError;
use crate::snapshot::{MAX_STATE, STATE, copy_out, ensure_final, finish, move_out, save};
use crate::vmm::SnapshotFiles;

/// Name in the VM's directory under which Firecracker writes the guest's memory.
pub(super) const MEMORY: &str = "snapshot.memory";

/// Holes are dug where this many bytes are zero: fewer of them make a file of too many pieces.
const HOLE: usize = 64 * 1024;
static ZEROES: [u8; HOLE] = [0; HOLE];

/// Puts a clone of `base`, the memory as it was, where Firecracker, whose user is `owner`, then writes what
/// has changed. Uses the path `memory` on the way.
pub(super) fn prepare(dir: &VmDir, base: &File, memory: &Path, owner: (u32, u32)) -> Result<(), VmmError> {
    let prepare = || {
        // Its name may be gone.
        let base = format!("/proc/self/fd/{}", base.as_raw_fd());
        clone_file(Path::new(&base), memory, CloneMode::Auto).map_err(io::Error::other)?;
        let clone = File::open(memory)?;
        // Firecracker waits for the medium during the pause: only for its own pages, that is.
        clone.sync_all()?;
        fchown(&clone, Some(owner.0), Some(owner.1))?;
        fs::rename(memory, dir.short_path(MEMORY))
    };
    prepare().map_err(save(memory))
}

/// Takes over what Firecracker wrote, which cannot change any more then. Returns the memory.
pub(super) fn take_over(
    dir: &VmDir,
    files: &SnapshotFiles,
    memory_len: u64,
    pages: Pages,
) -> Result<File, VmmError> {
    copy_out(dir, STATE, &files.state, MAX_STATE)?;
    move_out(dir, MEMORY, &files.memory, memory_len)?;
    if pages == Pages::All {
        match dig_holes(&files.memory, memory_len) {
            // Not every file system can.
            Err(error) if error.kind() == io::ErrorKind::Unsupported => {}
            dug => dug.map_err(save(&files.memory))?,
        }
    }
    finish(&files.state)?;
    finish(&files.memory)?;
    let memory = File::open(&files.memory).map_err(save(&files.memory))?;
    ensure_final(&memory, memory_len).map_err(save(&files.memory))?;
    Ok(memory)
}

/// Removes what may be left in the VM's directory of a snapshot that failed.
pub(super) fn discard(dir: &VmDir) {
    for name in [STATE, MEMORY] {
        match dir.remove(name) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(dir = %dir.path().display(), name, %error, "cannot remove a file");
            }
            _ => {}
        }
    }
}

/// Gives back the room of zeroes, which Firecracker writes as it does other pages: each clone that is a copy
/// would copy them.
fn dig_holes(path: &Path, len: u64) -> io::Result<()> {
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    let dig = |zeroes: &Range<u64>| {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        if zeroes.is_empty() {
            Ok(())
        } else {
            fallocate(&file, flags, zeroes.start, zeroes.end - zeroes.start)
        }
    };
    let mut block = vec![0; HOLE];
    let mut zeroes = 0..0;
    while zeroes.end + HOLE as u64 <= len {
        file.read_exact_at(&mut block, zeroes.end)?;
        let end = zeroes.end + HOLE as u64;
        if block == ZEROES {
            zeroes.end = end;
        } else {
            dig(&zeroes)?;
            zeroes = end..end;
        }
    }
    Ok(dig(&zeroes)?)
}

#[cfg(test)]
mod tests {
    use std::error::Error;
    use std::io::Write;
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn memory_that_a_vmm_can_still_write_to_is_not_taken_over() {
        let root = tempfile::tempdir().unwrap();
        let vm = root.path().join("vm");
        fs::create_dir(&vm).unwrap();
        let dir = VmDir::open(&vm).unwrap();
        let files = SnapshotFiles { state: root.path().join("state"), memory: root.path().join("memory") };
        let write = || {
            fs::write(vm.join(STATE), "processors").unwrap();
            let mut memory = File::create(vm.join(MEMORY)).unwrap();
            memory.write_all(&[1; 4096]).unwrap();
            memory
        };
        let still_open = write();
        let error = take_over(&dir, &files, 4096, Pages::All).unwrap_err();
        assert!(matches!(&error, VmmError::Save { path, .. } if *path == files.memory), "{error:?}");
        assert_eq!(error.source().unwrap().to_string(), "the VMM still has it open");
        drop(still_open);

        fs::remove_file(&files.state).unwrap();
        drop(write());
        take_over(&dir, &files, 4096, Pages::All).unwrap();
        assert_eq!(fs::read(&files.memory).unwrap(), [1; 4096]);
    }

    #[test]
    fn holes_change_the_room_a_file_takes_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("memory");
        let mut bytes = vec![0; 64 * HOLE + 100];
        bytes[0] = 1;
        bytes[40 * HOLE - 1] = 2;
        *bytes.last_mut().unwrap() = 3;
        fs::write(&path, &bytes).unwrap();
        File::open(&path).unwrap().sync_all().unwrap();
        dig_holes(&path, bytes.len() as u64).unwrap();
        assert!(fs::read(&path).unwrap() == bytes);
        let room = fs::metadata(&path).unwrap().blocks() * 512;
        assert!(room <= 4 * HOLE as u64, "{room} bytes");
    }
}
