//! A complete snapshot, and what is in its place when its manifest is of no use.

use std::path::PathBuf;

use manta_api::{SandboxId, SnapshotId, SnapshotInfo};
use manta_vmm::SnapshotFiles;

use super::error::StoreError;
use super::files::{DISK, Damage, MANIFEST, MEMORY, STATE, bytes_on_disk, check_sizes, check_state};
use super::machine::{Compare, Machine};
use super::manifest::{Manifest, ManifestError};

/// A complete snapshot. Its files stay where they are until it is deleted; who opened them before keeps them.
#[derive(Debug)]
pub(crate) struct Stored {
    /// What it is and depends on.
    pub(crate) manifest: Manifest,
    pub(super) dir: PathBuf,
}

/// A directory under a snapshot's id whose manifest is of no use.
#[derive(Debug)]
pub(super) struct Unreadable {
    pub(super) id: SnapshotId,
    pub(super) dir: PathBuf,
    pub(super) why: ManifestError,
    /// When something was last put into or taken out of the directory, milliseconds since 1970.
    pub(super) changed_unix_ms: u64,
}

impl Stored {
    /// State and memory, for a VMM.
    pub(crate) fn files(&self) -> SnapshotFiles {
        SnapshotFiles { state: self.dir.join(STATE), memory: self.dir.join(MEMORY) }
    }

    /// The guest's disk; to be cloned, never written.
    pub(crate) fn disk(&self) -> PathBuf {
        self.dir.join(DISK)
    }

    /// As clients see it; whether it can be restored by what is cheap to know.
    pub(crate) fn info(&self, current: &Machine) -> SnapshotInfo {
        let Manifest { id, name, created_unix_ms, sandbox_id, machine, .. } = &self.manifest;
        let reason = match self.check_sizes() {
            Err(damage) => Some(damage.to_string()),
            Ok(()) => Some(machine.differences(current, Compare::User).join("; ")),
        };
        let reason = reason.filter(|reason| !reason.is_empty());
        SnapshotInfo {
            id: id.clone(),
            name: name.clone().map(String::from),
            created_unix_ms: *created_unix_ms,
            sandbox_id: sandbox_id.clone(),
            vmm: machine.vmm.clone(),
            vmm_version: machine.vmm_version.clone(),
            vcpus: machine.vcpus,
            mem_mib: machine.mem_mib,
            disk_bytes: bytes_on_disk(&self.dir),
            restorable: reason.is_none(),
            reason,
        }
    }

    /// That nothing it depends on differs on `current`.
    pub(super) fn check_machine(&self, current: &Machine, compare: Compare) -> Result<(), StoreError> {
        let Manifest { id, machine, .. } = &self.manifest;
        match machine.differences(current, compare) {
            differences if differences.is_empty() => Ok(()),
            differences => Err(StoreError::Incompatible { id: id.clone(), differences }),
        }
    }

    /// That its files are as they were written: all are there and of their lengths, and the state hashes to
    /// what it did. Reads the state, tens of KiB; memory and disk are not read.
    ///
    /// # Errors
    /// `Damaged`.
    pub(crate) fn check(&self) -> Result<(), StoreError> {
        let Manifest { id, files, .. } = &self.manifest;
        self.check_sizes()
            .and_then(|()| check_state(&self.dir, files))
            .map_err(|damage| StoreError::Damaged { id: id.clone(), damage })
    }

    /// That its files are there and of the right length.
    pub(super) fn check_sizes(&self) -> Result<(), Damage> {
        check_sizes(&self.dir, &self.manifest.files)
    }
}

impl Unreadable {
    /// Why, as one sentence.
    pub(super) fn reason(&self) -> String {
        self.damage().to_string()
    }

    /// What is wrong with the manifest.
    pub(super) fn damage(&self) -> Damage {
        let for_good = match self.why {
            // It may be read another day, or by another version.
            ManifestError::Format { .. } | ManifestError::Read(_) => false,
            ManifestError::Parse(_) | ManifestError::OtherId { .. } => true,
        };
        Damage { file: MANIFEST, why: crate::error::chain(&self.why), for_good }
    }

    /// As clients see it: what is unknown is zero or `unknown`.
    pub(super) fn info(&self) -> SnapshotInfo {
        SnapshotInfo {
            id: self.id.clone(),
            name: None,
            created_unix_ms: self.changed_unix_ms,
            sandbox_id: SandboxId::from_random([0; 10]),
            vmm: "unknown".to_owned(),
            vmm_version: "unknown".to_owned(),
            vcpus: 0,
            mem_mib: 0,
            disk_bytes: bytes_on_disk(&self.dir),
            restorable: false,
            reason: Some(self.reason()),
        }
    }

    /// Why it cannot be restored.
    pub(super) fn error(&self) -> StoreError {
        let id = self.id.clone();
        match self.why {
            // Nothing is broken: another version of Manta can read it.
            ManifestError::Format { .. } => StoreError::Incompatible { id, differences: vec![self.reason()] },
            _ => StoreError::Damaged { id, damage: self.damage() },
        }
    }
}
