//! Snapshots for the tests of this module: small, made through the store as real ones are.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use manta_api::SandboxId;
use tempfile::TempDir;

use super::draft::Draft;
use super::error::StoreError;
use super::machine::Machine;
use super::manifest::{FORMAT, Files, Hashed, Manifest, Measured};
use super::store::{Limits, Store};
use super::stored::Stored;

/// No two fields alike, and none that stays as it is when doubled.
pub(super) fn machine() -> Machine {
    Machine {
        vmm: "qemu".to_owned(),
        vmm_version: "10.0.2".to_owned(),
        accelerator: "tcg".to_owned(),
        devices: "d1".to_owned(),
        cpu: "A Processor".to_owned(),
        cpu_flags: "f1".to_owned(),
        tsc_khz: Some(2_500_000),
        host_kernel: "6.18.0".to_owned(),
        guest_kernel: "e1".to_owned(),
        rootfs: "r1".to_owned(),
        agent: "a1".to_owned(),
        agent_protocol: 3,
        vcpus: 1,
        mem_mib: 256,
        disk_mib: 2048,
        dns: vec![[192, 0, 2, 1].into()],
    }
}

pub(super) fn manifest(id: &str) -> Manifest {
    Manifest {
        format: FORMAT,
        id: id.parse().unwrap(),
        name: None,
        created_unix_ms: 1_700_000_000_000,
        pause_us: 900,
        sandbox_id: sandbox(),
        machine: machine(),
        files: Files {
            state: Hashed { bytes: 1, sha256: String::new() },
            memory: Measured { bytes: 2 },
            disk: Measured { bytes: 3 },
        },
    }
}

pub(super) fn sandbox() -> SandboxId {
    SandboxId::from_random([7; 10])
}

/// A store without limits in a directory of its own.
pub(super) fn store() -> (TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("snapshots"), Limits::NONE).unwrap();
    (dir, store)
}

/// Writes the three files, as a VMM and a disk clone would.
pub(super) fn fill(draft: &Draft) {
    let files = draft.files();
    fs::write(files.state, b"processors and devices").unwrap();
    fs::write(files.memory, vec![0x5a; 64 * 1024]).unwrap();
    fs::write(draft.disk(), vec![0xa5; 32 * 1024]).unwrap();
}

/// Completes a draft whose files are there.
pub(super) fn commit(draft: Draft) -> Result<Arc<Stored>, StoreError> {
    draft.commit(sandbox(), 1_700_000_000_000, machine(), Duration::from_micros(900))
}

/// A snapshot of that name.
pub(super) fn make(store: &Store, name: Option<&str>) -> Arc<Stored> {
    let name = name.map(|name| name.parse().unwrap());
    let draft = store.begin(name, 1 << 20).unwrap();
    fill(&draft);
    commit(draft).unwrap()
}

/// One that is in no store, and has no files.
pub(crate) fn stored(n: u16) -> Arc<Stored> {
    let manifest = manifest(&format!("snap-{n:020x}"));
    Arc::new(Stored { manifest, dir: "/nowhere".into() })
}
