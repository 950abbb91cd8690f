//! `manifest.json`: what the artifacts are and what they were made of. For people, for benchmark reports, and
//! for checks that a snapshot belongs to these artifacts.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::Path;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::error::{ImageError, cannot};
use crate::place::beside;

/// The format's version; raised when a reader of the one before would misread it.
const VERSION: u32 = 1;

#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Manifest {
    version: u32,
    /// By file name.
    artifacts: BTreeMap<String, Artifact>,
}

/// One artifact.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Artifact {
    pub(crate) size_bytes: u64,
    pub(crate) sha256: String,
    /// Hash of all that it was made from, when it was made here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) recipe: Option<String>,
    /// What is particular to the kind: versions, packages.
    #[serde(flatten)]
    pub(crate) details: Map<String, Value>,
}

impl Manifest {
    pub(crate) fn new(artifacts: impl IntoIterator<Item = (String, Artifact)>) -> Self {
        Self { version: VERSION, artifacts: artifacts.into_iter().collect() }
    }

    /// Writes the manifest unless it is there already.
    pub(crate) fn put(&self, path: &Path) -> Result<(), ImageError> {
        if read::<Self>(path).is_ok_and(|there| there == *self) { Ok(()) } else { write(path, self) }
    }
}

/// Reads a JSON file.
pub(crate) fn read<T: DeserializeOwned>(path: &Path) -> Result<T, ImageError> {
    let text = fs::read(path).map_err(cannot("read", path))?;
    serde_json::from_slice(&text).map_err(|source| ImageError::Json { path: path.to_owned(), source })
}

/// Writes a JSON file, whole or not at all.
pub(crate) fn write<T: Serialize>(path: &Path, value: &T) -> Result<(), ImageError> {
    let mut text = serde_json::to_vec_pretty(value)
        .map_err(|source| ImageError::Json { path: path.to_owned(), source })?;
    text.push(b'\n');
    let mut file = beside(path)?;
    file.write_all(&text).and_then(|()| file.as_file().sync_all()).map_err(cannot("write", path))?;
    file.persist(path).map_err(|error| cannot("put into place", path)(error.error))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manifest_comes_back_as_it_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("manifest.json");
        let details = Map::from_iter([("linux".to_owned(), Value::from("6.12.1"))]);
        let artifact = Artifact { size_bytes: 3, sha256: "ab".into(), recipe: None, details };
        let manifest = Manifest::new([("vmlinux".to_owned(), artifact)]);
        manifest.put(&path).unwrap();
        assert_eq!(read::<Manifest>(&path).unwrap(), manifest);
        let written = fs::metadata(&path).unwrap().modified().unwrap();
        manifest.put(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().modified().unwrap(), written);
    }
}
