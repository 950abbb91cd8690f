//! Where things are: the checkout, its target directory, the cache that outlives a checkout.

use std::env;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

/// The checkout this xtask was built from.
pub(crate) fn root() -> PathBuf {
    let here =
        env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from);
    here.parent().map_or(here.clone(), PathBuf::from)
}

/// Cargo's target directory.
pub(crate) fn target() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), |dir| root().join(dir))
}

/// A program of the release build.
pub(crate) fn release(program: &str) -> PathBuf {
    target().join("release").join(program)
}

/// A guest artifact, where `manta image build` puts it.
pub(crate) fn artifact(name: &str) -> PathBuf {
    root().join("guest-artifacts").join(name)
}

/// The cache directory, as `manta image` chooses it: `MANTA_CACHE_DIR`, else `manta` in
/// `XDG_CACHE_HOME`, else `.cache/manta` in the home directory.
pub(crate) fn cache() -> Result<PathBuf> {
    let set = |name| env::var_os(name).map(PathBuf::from).filter(|dir| dir.is_absolute());
    set("MANTA_CACHE_DIR")
        .or_else(|| set("XDG_CACHE_HOME").map(|dir| dir.join("manta")))
        .or_else(|| set("HOME").map(|dir| dir.join(".cache/manta")))
        .context("no cache directory: set MANTA_CACHE_DIR to an absolute path")
}

/// Cargo itself, in the checkout.
pub(crate) fn cargo() -> Command {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(root());
    cargo
}

/// Makes a directory and those above it.
pub(crate) fn ensure_dir(dir: PathBuf) -> Result<PathBuf> {
    std::fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    Ok(dir)
}
