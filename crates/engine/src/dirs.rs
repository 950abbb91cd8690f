//! Directories below the work directory: made and named.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::config::EngineConfig;
use crate::error::StartError;

/// Each sandbox has a directory in this one, under its id.
pub(crate) fn sandboxes(config: &EngineConfig) -> PathBuf {
    config.work_dir.join("sandboxes")
}

/// Users' snapshots below a work directory, each under its id.
pub(crate) fn snapshots(work_dir: &Path) -> PathBuf {
    work_dir.join("snapshots")
}

/// The snapshot that new sandboxes begin with, under its id.
pub(crate) fn golden(work_dir: &Path) -> PathBuf {
    work_dir.join("golden")
}

/// A directory that others may pass through but not list.
pub(crate) fn make_dir(path: &Path) -> Result<(), StartError> {
    let failed = |source| StartError::Path { action: "make directory", path: path.to_owned(), source };
    fs::create_dir_all(path).map_err(failed)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o711)).map_err(failed)
}
