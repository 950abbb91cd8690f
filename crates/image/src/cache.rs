//! The cache: one directory for each artifact that was ever made, named by its recipe's hash. An entry
//! appears complete, by a rename, or not at all. Builders hold the lock; readers need none.

use std::env;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustix::fs::{FlockOperation, flock, statvfs};
use serde::{Deserialize, Serialize};
use tempfile::TempDir;

use crate::error::{ImageError, cannot};
use crate::hash::file_sha256;
use crate::manifest::{self, Artifact};

/// Entries kept of each kind, the most recently used ones: a rootfs takes half a GiB.
const KEPT: usize = 3;
/// What a kernel build needs at its height (sources 1.6 GiB, objects 0.6 GiB), with a rootfs and some air.
const NEEDED_MIB: u64 = 4096;
const ABOUT: &str = "about.json";
const SCRATCH_PREFIX: &str = "tmp-";

/// Where artifacts are cached unless told otherwise: `MANTA_CACHE_DIR`, else `manta` in `XDG_CACHE_HOME`,
/// else `.cache/manta` in the home directory. `None` when none of these is set to an absolute path.
pub fn default_cache_dir() -> Option<PathBuf> {
    let set = |name| env::var_os(name).map(PathBuf::from).filter(|dir| dir.is_absolute());
    set("MANTA_CACHE_DIR")
        .or_else(|| set("XDG_CACHE_HOME").map(|dir| dir.join("manta")))
        .or_else(|| set("HOME").map(|dir| dir.join(".cache/manta")))
}

/// The part of the cache directory that holds guest artifacts.
pub(crate) struct Cache {
    dir: PathBuf,
}

/// An artifact in the cache.
pub(crate) struct Entry {
    /// The file.
    pub(crate) file: PathBuf,
    /// What is known about it.
    pub(crate) artifact: Artifact,
}

#[derive(Serialize, Deserialize)]
struct About {
    file: String,
    #[serde(flatten)]
    artifact: Artifact,
}

impl Cache {
    pub(crate) fn open(root: &Path) -> Result<Self, ImageError> {
        let dir = root.join("image");
        fs::create_dir_all(&dir).map_err(cannot("make", &dir))?;
        Ok(Self { dir })
    }

    /// Where the log of the last build of this kind is.
    pub(crate) fn log(&self, kind: &str) -> PathBuf {
        self.dir.join(format!("{kind}.log"))
    }

    /// The entry of this kind made by this recipe.
    pub(crate) fn find(&self, kind: &str, recipe: &str) -> Option<Entry> {
        let dir = self.entry_dir(kind, recipe);
        let about: About = manifest::read(&dir.join(ABOUT)).ok()?;
        let file = dir.join(about.file);
        let whole = fs::metadata(&file).is_ok_and(|meta| meta.len() == about.artifact.size_bytes);
        // Its age decides what is kept: being used makes it young. Failing to note that harms nothing.
        let _ = File::open(dir.join(ABOUT)).and_then(|about| about.set_modified(SystemTime::now()));
        whole.then_some(Entry { file, artifact: about.artifact })
    }

    /// Makes this process the only one that builds, clears what killed builds left, and looks at the free
    /// space.
    pub(crate) fn lock(&self) -> Result<Lock, ImageError> {
        let path = self.dir.join("lock");
        let file = File::create(&path).map_err(cannot("open", &path))?;
        flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(|error| match error {
            rustix::io::Errno::WOULDBLOCK => ImageError::CacheBusy(self.dir.clone()),
            error => cannot("lock", &path)(error.into()),
        })?;
        let lock = Lock { file };
        for entry in self.entries(SCRATCH_PREFIX)? {
            fs::remove_dir_all(&entry).map_err(cannot("remove", &entry))?;
        }
        let space = statvfs(&self.dir).map_err(|error| cannot("look at", &self.dir)(error.into()))?;
        let free_mib = (space.f_bavail * space.f_frsize) >> 20;
        if free_mib < NEEDED_MIB {
            return Err(ImageError::DiskSpace { dir: self.dir.clone(), free_mib, needed_mib: NEEDED_MIB });
        }
        Ok(lock)
    }

    /// A directory to build in, on the cache's file system, removed when dropped.
    pub(crate) fn scratch(&self, _lock: &Lock) -> Result<TempDir, ImageError> {
        tempfile::Builder::new()
            .prefix(SCRATCH_PREFIX)
            .tempdir_in(&self.dir)
            .map_err(cannot("write in", &self.dir))
    }

    /// Takes `file`, made in a [`scratch`](Self::scratch) directory, into the cache, in place of an older one
    /// by the same recipe. `details` is what the manifest says about it beside size and hash.
    pub(crate) fn commit(
        &self,
        lock: &Lock,
        kind: &str,
        file: &Path,
        recipe: &str,
        details: serde_json::Map<String, serde_json::Value>,
    ) -> Result<Entry, ImageError> {
        let name = file.file_name().unwrap_or_default();
        let new = self.scratch(lock)?;
        let at = new.path().join(name);
        fs::rename(file, &at).map_err(cannot("move", file))?;
        let size_bytes = File::open(&at)
            .and_then(|file| file.sync_all().and_then(|()| file.metadata()))
            .map_err(cannot("finish", &at))?
            .len();
        let sha256 = file_sha256(&at).map_err(cannot("read", &at))?;
        let artifact = Artifact { size_bytes, sha256, recipe: Some(recipe.to_owned()), details };
        let about = About { file: name.to_string_lossy().into_owned(), artifact };
        manifest::write(&new.path().join(ABOUT), &about)?;

        let dir = self.entry_dir(kind, recipe);
        match fs::remove_dir_all(&dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(cannot("remove", &dir)(error));
            }
            _ => {}
        }
        fs::rename(new.keep(), &dir).map_err(cannot("move into place", &dir))?;
        self.prune(kind)?;
        Ok(Entry { file: dir.join(about.file), artifact: about.artifact })
    }

    fn prune(&self, kind: &str) -> Result<(), ImageError> {
        let mut entries = self.entries(&format!("{kind}-"))?;
        let used = |dir: &PathBuf| fs::metadata(dir.join(ABOUT)).and_then(|meta| meta.modified()).ok();
        entries.sort_by_key(|dir| std::cmp::Reverse(used(dir)));
        for old in entries.iter().skip(KEPT) {
            fs::remove_dir_all(old).map_err(cannot("remove", old))?;
        }
        Ok(())
    }

    fn entries(&self, prefix: &str) -> Result<Vec<PathBuf>, ImageError> {
        let listed = fs::read_dir(&self.dir).and_then(Iterator::collect::<io::Result<Vec<_>>>);
        let mut entries = listed.map_err(cannot("list", &self.dir))?;
        entries.retain(|entry| entry.file_name().to_string_lossy().starts_with(prefix));
        Ok(entries.into_iter().map(|entry| entry.path()).filter(|path| path.is_dir()).collect())
    }

    fn entry_dir(&self, kind: &str, recipe: &str) -> PathBuf {
        self.dir.join(format!("{kind}-{}", &recipe[..16]))
    }
}

/// The right to build. One process has it at a time.
pub(crate) struct Lock {
    file: File,
}

impl Drop for Lock {
    /// Not left to the closing of the file: a child that another thread starts at this moment has it open,
    /// too.
    fn drop(&mut self) {
        let _ = flock(&self.file, FlockOperation::Unlock);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recipe(n: u8) -> String {
        format!("{n:064x}").chars().rev().collect()
    }

    fn add(cache: &Cache, recipe: &str, content: &str) -> Entry {
        let lock = cache.lock().unwrap();
        let scratch = cache.scratch(&lock).unwrap();
        let file = scratch.path().join("vmlinux");
        fs::write(&file, content).unwrap();
        cache.commit(&lock, "kernel", &file, recipe, serde_json::Map::new()).unwrap()
    }

    #[test]
    fn an_entry_is_found_by_its_recipe_only() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path()).unwrap();
        add(&cache, &recipe(1), "one");
        let found = cache.find("kernel", &recipe(1)).unwrap();
        assert_eq!(fs::read_to_string(&found.file).unwrap(), "one");
        assert_eq!(found.artifact.recipe, Some(recipe(1)));
        assert!(cache.find("kernel", &recipe(2)).is_none());
        assert!(cache.find("rootfs", &recipe(1)).is_none());
    }

    #[test]
    fn a_file_of_another_size_than_recorded_is_no_entry() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path()).unwrap();
        let entry = add(&cache, &recipe(1), "whole");
        fs::write(&entry.file, "cut").unwrap();
        assert!(cache.find("kernel", &recipe(1)).is_none());
    }

    #[test]
    fn a_second_build_by_the_same_recipe_replaces_the_first() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path()).unwrap();
        add(&cache, &recipe(1), "older");
        add(&cache, &recipe(1), "newer");
        assert_eq!(fs::read_to_string(cache.find("kernel", &recipe(1)).unwrap().file).unwrap(), "newer");
    }

    #[test]
    fn one_builds_at_a_time_and_clears_what_a_killed_one_left() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path()).unwrap();
        let left = dir.path().join("image/tmp-killed/tree");
        fs::create_dir_all(&left).unwrap();
        let lock = cache.lock().unwrap();
        assert!(!left.exists());
        assert!(matches!(Cache::open(dir.path()).unwrap().lock(), Err(ImageError::CacheBusy(_))));
        drop(lock);
        cache.lock().unwrap();
    }

    #[test]
    fn only_the_last_used_entries_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path()).unwrap();
        for n in 0..3 {
            add(&cache, &recipe(n), "x");
        }
        cache.find("kernel", &recipe(0)).unwrap();
        add(&cache, &recipe(3), "x");
        let left: Vec<_> = (0..4).filter(|n| cache.find("kernel", &recipe(*n)).is_some()).collect();
        assert_eq!(left, [0, 2, 3]);
    }
}
