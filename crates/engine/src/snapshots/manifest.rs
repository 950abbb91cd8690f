//! `manifest.json`: what a snapshot is, and what it depends on.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use manta_api::{SandboxId, SnapshotId};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::files::{MANIFEST, open_regular};
use super::machine::Machine;
use super::name::SnapshotName;

/// Raised when an older Manta would not understand what is written.
pub(super) const FORMAT: u32 = 1;
/// Many times what one takes.
const BYTES_MAX: u64 = 64 * 1024;

/// A snapshot's manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Manifest {
    /// Always [`FORMAT`].
    pub(crate) format: u32,
    pub(crate) id: SnapshotId,
    pub(crate) name: Option<SnapshotName>,
    /// When it was made, milliseconds since 1970.
    pub(crate) created_unix_ms: u64,
    /// How long the sandbox stood still for it, microseconds.
    pub(crate) pause_us: u64,
    /// The sandbox it was made of.
    pub(crate) sandbox_id: SandboxId,
    pub(crate) machine: Machine,
    pub(crate) files: Files,
}

/// The files beside the manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Files {
    pub(crate) state: Hashed,
    pub(crate) memory: Measured,
    pub(crate) disk: Measured,
}

/// A file small enough to be hashed at every restore.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Hashed {
    pub(crate) bytes: u64,
    pub(crate) sha256: String,
}

/// A file known by its length only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Measured {
    pub(crate) bytes: u64,
}

/// Why a manifest is of no use.
#[derive(Debug, Error)]
pub(crate) enum ManifestError {
    /// It could not be read.
    #[error("cannot be read")]
    Read(#[source] io::Error),
    /// It is no manifest.
    #[error("is not a manifest: {0}")]
    Parse(String),
    /// Another version of Manta wrote it.
    #[error("has format {found}, this version of manta reads format {FORMAT}")]
    Format {
        /// What it says.
        found: u32,
    },
    /// It is that of another snapshot.
    #[error("is that of {found}")]
    OtherId {
        /// What it says.
        found: SnapshotId,
    },
}

impl Manifest {
    /// Reads that of snapshot `id` in `dir`; `None` when there is none.
    pub(super) fn read(dir: &Path, id: &SnapshotId) -> Result<Option<Self>, ManifestError> {
        let file = match open_regular(&dir.join(MANIFEST)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(ManifestError::Read(error)),
        };
        let mut text = Vec::new();
        file.take(BYTES_MAX + 1).read_to_end(&mut text).map_err(ManifestError::Read)?;
        if text.len() as u64 > BYTES_MAX {
            return Err(ManifestError::Parse(format!("longer than {BYTES_MAX} bytes")));
        }
        let manifest = Self::parse(&text)?;
        if manifest.id != *id {
            return Err(ManifestError::OtherId { found: manifest.id });
        }
        Ok(Some(manifest))
    }

    /// Reads one's text.
    pub(super) fn parse(text: &[u8]) -> Result<Self, ManifestError> {
        #[derive(Deserialize)]
        struct Version {
            format: u32,
        }
        let parse_error = |error: serde_json::Error| ManifestError::Parse(error.to_string());
        // First by itself: another format has other fields.
        let Version { format } = serde_json::from_slice(text).map_err(parse_error)?;
        if format != FORMAT {
            return Err(ManifestError::Format { found: format });
        }
        serde_json::from_slice(text).map_err(parse_error)
    }

    /// Writes it into `dir`, through to the medium; there must be none yet.
    pub(super) fn write(&self, dir: &Path) -> io::Result<()> {
        let mut text = serde_json::to_vec_pretty(self)?;
        text.push(b'\n');
        let mut file: File =
            OpenOptions::new().write(true).create_new(true).mode(0o444).open(dir.join(MANIFEST))?;
        file.write_all(&text)?;
        file.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshots::testing::manifest;

    #[test]
    fn a_manifest_is_read_as_it_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let written = manifest("snap-00000000000000000001");
        assert!(Manifest::read(dir.path(), &written.id).unwrap().is_none());
        written.write(dir.path()).unwrap();
        assert_eq!(Manifest::read(dir.path(), &written.id).unwrap(), Some(written.clone()));
        let other = "snap-00000000000000000002".parse().unwrap();
        assert!(matches!(Manifest::read(dir.path(), &other), Err(ManifestError::OtherId { .. })));
        assert!(written.write(dir.path()).is_err(), "a manifest is never written over");
    }

    #[test]
    fn another_format_is_told_apart_from_garbage() {
        let parse = |text: &str| Manifest::parse(text.as_bytes()).unwrap_err();
        assert!(matches!(parse("{\"format\": 2, \"pages\": []}"), ManifestError::Format { found: 2 }));
        let text = serde_json::to_string(&manifest("snap-00000000000000000001")).unwrap();
        let unknown = text.replacen('{', "{\"extra\": 1,", 1);
        let bad_name = text.replace("\"name\":null", "\"name\":\"../x\"");
        assert!(bad_name != text);
        for garbage in ["", "{}", "[1]", "{\"format\": 1}", "\0\0\0", &unknown, &bad_name, &text[..200]] {
            assert!(matches!(parse(garbage), ManifestError::Parse(_)), "{garbage}");
        }
    }

    #[test]
    fn a_manifest_without_end_is_not_read_to_its_end() {
        let dir = tempfile::tempdir().unwrap();
        let file = File::create(dir.path().join(MANIFEST)).unwrap();
        file.set_len(1 << 40).unwrap();
        let id = "snap-00000000000000000001".parse().unwrap();
        assert!(matches!(Manifest::read(dir.path(), &id), Err(ManifestError::Parse(_))));
    }
}
