//! What is in a store's directory.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use manta_api::SnapshotId;

use super::files::is_leftover;
use super::manifest::{Manifest, ManifestError};
use super::stored::{Stored, Unreadable};

/// One entry of the directory.
#[derive(Debug)]
pub(super) enum Found {
    /// Half made or half removed.
    Leftover(PathBuf),
    /// Its manifest was read; its files were not looked at.
    Snapshot(Arc<Stored>),
    /// There is a manifest, of no use.
    Unreadable(Unreadable),
    /// Named as a snapshot, but has no manifest: not made by us, or emptied by others.
    Bare(PathBuf),
}

/// All entries that are ours by their names, in no order; others are left alone.
pub(super) fn scan(dir: &Path) -> io::Result<Vec<Found>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        if is_leftover(name) {
            found.push(Found::Leftover(path));
        } else if let Ok(id) = name.parse() {
            found.extend(look(path, id));
        }
    }
    Ok(found)
}

/// None when it vanished meanwhile.
fn look(dir: PathBuf, id: SnapshotId) -> Option<Found> {
    let metadata = fs::symlink_metadata(&dir).ok()?;
    let manifest = if metadata.is_dir() {
        Manifest::read(&dir, &id)
    } else {
        Err(ManifestError::Read(io::ErrorKind::NotADirectory.into()))
    };
    Some(match manifest {
        Ok(Some(manifest)) => Found::Snapshot(Arc::new(Stored { manifest, dir })),
        Ok(None) => Found::Bare(dir),
        Err(why) => {
            let changed_ms = metadata.mtime() * 1000 + metadata.mtime_nsec() / 1_000_000;
            let changed_unix_ms = u64::try_from(changed_ms).unwrap_or_default();
            Found::Unreadable(Unreadable { id, dir, why, changed_unix_ms })
        }
    })
}
