//! What tests do with snapshots: over HTTP, and behind the server's back on its disk.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::http::Answer;
use super::server::Server;

impl Server {
    pub(crate) fn try_snapshot(&self, sandbox: &str) -> Answer {
        self.post("/snapshot/create", &json!({"sandbox_id": sandbox}))
    }

    /// A new snapshot's id.
    pub(crate) fn snapshot(&self, sandbox: &str) -> String {
        let made = self.try_snapshot(sandbox).ok();
        made["snapshot_id"].as_str().expect("a snapshot id").to_owned()
    }

    pub(crate) fn try_restore(&self, snapshot: &str) -> Answer {
        self.post("/snapshot/restore", &json!({"snapshot_id": snapshot}))
    }

    /// A new sandbox's id.
    pub(crate) fn restore(&self, snapshot: &str) -> String {
        let restored = self.try_restore(snapshot).ok();
        restored["sandbox_id"].as_str().expect("a sandbox id").to_owned()
    }

    pub(crate) fn delete_snapshot(&self, snapshot: &str) -> Answer {
        self.post("/snapshot/delete", &json!({"snapshot_id": snapshot}))
    }

    /// All that are listed, oldest first.
    pub(crate) fn snapshots(&self) -> Vec<Value> {
        self.get("/snapshot/list")["snapshots"].as_array().expect("a list").clone()
    }

    /// The listed entry of one.
    pub(crate) fn snapshot_info(&self, snapshot: &str) -> Value {
        let mut listed = self.snapshots().into_iter();
        listed.find(|info| info["id"] == snapshot).unwrap_or_else(|| panic!("{snapshot} is not listed"))
    }

    pub(crate) fn snapshots_dir(&self) -> PathBuf {
        self.work_dir.join("snapshots")
    }

    pub(crate) fn snapshot_dir(&self, snapshot: &str) -> PathBuf {
        self.snapshots_dir().join(snapshot)
    }

    /// Where golden snapshots are; there should be one.
    pub(crate) fn golden_dir(&self) -> PathBuf {
        self.work_dir.join("golden")
    }
}

/// Names in a directory, sorted; none when there is no directory.
pub(crate) fn entries(dir: &Path) -> Vec<String> {
    let listed = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names: Vec<_> = listed.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// A hash of each file in a directory; two are the same only for the same bytes in the same places.
pub(crate) fn contents(dir: &Path) -> BTreeMap<String, String> {
    let hash = |path: &Path| {
        let mut file = File::open(path).expect("open a file of a snapshot");
        // Most of memory and disk are holes: hashing them would take many times as long as reading them.
        let (mut hasher, mut buffer, zeros) = (Sha256::new(), vec![0; 1 << 20], vec![0; 1 << 20]);
        let mut at = 0u64;
        loop {
            let length = file.read(&mut buffer).expect("read a file of a snapshot");
            if length == 0 {
                hasher.update(at.to_le_bytes());
                return format!("{:x}", hasher.finalize());
            }
            if buffer[..length] != zeros[..length] {
                hasher.update(at.to_le_bytes());
                hasher.update(&buffer[..length]);
            }
            at += length as u64;
        }
    };
    entries(dir).into_iter().map(|name| (name.clone(), hash(&dir.join(name)))).collect()
}

/// Puts zeros, `bytes` of them, in the place of a file, which other tests may have under another name.
pub(crate) fn zeros(path: &Path, bytes: u64) {
    fs::remove_file(path).expect("remove a file of a snapshot");
    File::create(path).and_then(|file| file.set_len(bytes)).expect("put another in its place");
}

/// Changes what the manifest in `dir` says.
pub(crate) fn edit_manifest(dir: &Path, change: impl FnOnce(&mut Value)) {
    let path = dir.join("manifest.json");
    let mut manifest = serde_json::from_slice(&fs::read(&path).expect("read a manifest")).expect("JSON");
    change(&mut manifest);
    fs::remove_file(&path).expect("remove a manifest");
    fs::write(&path, manifest.to_string()).expect("write a manifest");
}

/// Does something `count` times, `width` of them at once.
pub(crate) fn at_once<T: Send>(width: usize, count: usize, work: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let worker = || {
            let mut done = Vec::new();
            loop {
                let n = next.fetch_add(1, Ordering::Relaxed);
                if n >= count {
                    return done;
                }
                done.push(work(n));
            }
        };
        let workers: Vec<_> = (0..width).map(|_| scope.spawn(worker)).collect();
        workers.into_iter().flat_map(|worker| worker.join().expect("all of it")).collect()
    })
}

/// Waits for something that is over in a moment; whether it was seen.
pub(crate) fn spin(limit: Duration, mut seen: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + limit;
    while Instant::now() < end {
        if seen() {
            return true;
        }
        std::thread::yield_now();
    }
    false
}
