//! A sandbox's own disk, in the directory that its VMM owns.

use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;

use manta_host::disk::clone_file;
use manta_host::process::Credentials;
use rustix::fs::{FileType, Mode, OFlags, fstat, open};

use crate::artifacts::by_descriptor;
use crate::error::chain;
use crate::journal::DiskId;
use crate::shared::Shared;

/// Its name.
const DISK: &str = "disk.ext4";

/// Makes the directory and, in it, a clone of the disk `original`; both are the VMM's then. The disk is opened before.
pub(super) fn make_disk(
    dir: &Path,
    original: &Path,
    owner: &Credentials,
    shared: &Shared,
) -> Result<(File, DiskId), String> {
    fs::create_dir(dir).map_err(|error| format!("cannot make {}: {error}", dir.display()))?;
    let disk = dir.join(DISK);
    clone_file(original, &disk, shared.config.clone_mode).map_err(|error| chain(&error))?;
    let opened = File::open(&disk).map_err(|error| format!("cannot open {}: {error}", disk.display()))?;
    for path in [dir, &disk] {
        chown(path, Some(owner.uid), Some(owner.gid))
            .map_err(|error| format!("cannot give {} to its VMM: {error}", path.display()))?;
    }
    fs::set_permissions(dir, fs::Permissions::from_mode(0o700))
        .map_err(|error| format!("cannot protect {}: {error}", dir.display()))?;
    let found = opened.metadata().map_err(|error| format!("cannot look at {}: {error}", disk.display()))?;
    Ok((opened, DiskId::of(&found)))
}

/// Opens the disk that an earlier server made in `dir`. Its VMM may have put anything in its place since: what is not
/// that very file is not opened.
pub(super) fn find_disk(dir: &Path, made: DiskId) -> Result<File, String> {
    let path = dir.join(DISK);
    let failed = |error: &dyn std::error::Error| format!("cannot open {}: {error}", path.display());
    // To look at it without opening it: a pipe would wait, a device would act.
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let found = File::from(open(&path, flags, Mode::empty()).map_err(|error| failed(&error))?);
    let metadata = found.metadata().map_err(|error| failed(&error))?;
    let kind = FileType::from_raw_mode(fstat(&found).map_err(|error| failed(&error))?.st_mode);
    if kind != FileType::RegularFile || DiskId::of(&metadata) != made {
        return Err(format!("{} is not the disk that was made", path.display()));
    }
    File::open(by_descriptor(&found)).map_err(|error| failed(&error))
}
