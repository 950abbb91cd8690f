//! The guest's kernel: Debian's source of Linux 6.12 with the configuration in `guest/kernel.config`.

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;
use std::thread::available_parallelism;
use std::time::UNIX_EPOCH;

use serde_json::{Map, Value};

use crate::cache::{Cache, Entry, Lock};
use crate::command::Runner;
use crate::error::{ImageError, cannot};
use crate::hash::RecipeHasher;
use crate::interrupt::Interrupts;
use crate::kconfig;
use crate::progress::Step;

pub(crate) const KIND: &str = "kernel";
pub(crate) const FILE: &str = "vmlinux";
/// Options on top of the kernel's own `tinyconfig`.
const CONFIG: &str = include_str!("../../../guest/kernel.config");
pub(crate) const SOURCE_PACKAGE: &str = "linux-source-6.12";
const SOURCE: &str = "/usr/src/linux-source-6.12.tar.xz";
/// Raised when this file builds another kernel from the same configuration and source.
const RECIPE_VERSION: u32 = 1;
/// Over half of the source, by files: what no x86-64 kernel, or none for a microVM, compiles. Kconfig's files
/// stay.
const UNUSED_SOURCE: &[&str] = &[
    "*/arch/[!x]*/*.[chS]",
    "*/arch/[!x]*/*.dts*",
    "*/arch/xtensa/*.[chS]",
    "*/Documentation/*/*",
    "*/drivers/gpu/*.[ch]",
    "*/drivers/iio/*.[ch]",
    "*/drivers/infiniband/*.[ch]",
    "*/drivers/media/*.[ch]",
    "*/drivers/net/ethernet/*.[ch]",
    "*/drivers/net/wireless/*.[ch]",
    "*/drivers/scsi/*.[ch]",
    "*/drivers/staging/*.[ch]",
    "*/drivers/usb/*.[ch]",
    "*/sound/*.[ch]",
    "*/tools/testing/*",
];
/// Lines that `make` prints; only the progress bar hangs on it.
const MAKE_LINES: u64 = 2300;

/// What a kernel is made from.
pub(crate) struct Recipe {
    source_version: String,
    hash: String,
}

impl Recipe {
    /// Looks at the source package on this machine. It alone says which version it is; its content is not
    /// hashed.
    pub(crate) fn of_machine() -> Result<Self, ImageError> {
        let missing = || ImageError::PackageMissing { wanted: SOURCE.into(), package: SOURCE_PACKAGE };
        let version = Command::new("dpkg-query")
            .args(["--show", "--showformat=${db:Status-Status} ${Version}", SOURCE_PACKAGE])
            .output()
            .map_err(|source| ImageError::Run { program: "dpkg-query".into(), source })?;
        let version = String::from_utf8_lossy(&version.stdout);
        let source_version = version.strip_prefix("installed ").ok_or_else(missing)?.to_owned();
        if !Path::new(SOURCE).exists() {
            return Err(missing());
        }
        let hash = RecipeHasher::new(KIND, RECIPE_VERSION)
            .with("config", CONFIG)
            .with("source", SOURCE_PACKAGE)
            .with("source version", &source_version)
            .finish();
        Ok(Self { source_version, hash })
    }

    pub(crate) fn hash(&self) -> &str {
        &self.hash
    }

    /// The Debian version of the source package.
    pub(crate) fn source_version(&self) -> &str {
        &self.source_version
    }

    /// Builds the kernel into the cache.
    pub(crate) fn build(
        &self,
        cache: &Cache,
        lock: &Lock,
        interrupts: &Interrupts,
        step: &Step,
    ) -> Result<Entry, ImageError> {
        let scratch = cache.scratch(lock)?;
        let tree = scratch.path().join("linux");
        fs::create_dir(&tree).map_err(cannot("make", &tree))?;
        let mut runner = Runner::new(interrupts, cache.log(KIND))?;

        step.part(format!("unpacking Linux {}", self.source_version), None);
        let mut tar = Command::new("tar");
        tar.args(["--extract", "--strip-components=1", "--no-same-owner", "--wildcards"]);
        tar.args(UNUSED_SOURCE.iter().map(|pattern| format!("--exclude={pattern}")));
        tar.args(["--file", SOURCE, "--directory"]).arg(&tree);
        runner.run(tar, |_| step.alive())?;

        step.part("configuring", None);
        let fragment = scratch.path().join("fragment");
        fs::write(&fragment, CONFIG).map_err(cannot("write", &fragment))?;
        runner.run(make(&tree, &["tinyconfig"]), |_| step.alive())?;
        let mut merge = Command::new("scripts/kconfig/merge_config.sh");
        merge.current_dir(&tree).args(["-m", ".config"]).arg(&fragment);
        runner.run(merge, |_| step.alive())?;
        runner.run(make(&tree, &["olddefconfig"]), |_| step.alive())?;
        let config = tree.join(".config");
        let unmet = kconfig::unmet(CONFIG, &fs::read_to_string(&config).map_err(cannot("read", &config))?);
        if !unmet.is_empty() {
            return Err(ImageError::KernelOptions(unmet));
        }

        step.part("compiling", Some(MAKE_LINES));
        let jobs = format!("-j{}", available_parallelism().map_or(1, usize::from));
        runner.run(make(&tree, &[&jobs, FILE]), |line| {
            if line.is_empty() { step.alive() } else { step.advance() }
        })?;
        let file = scratch.path().join(FILE);
        let mut strip = Command::new("strip");
        strip.arg("-o").arg(&file).arg(tree.join(FILE));
        runner.run(strip, |_| step.alive())?;

        step.part("cleaning up", None);
        let details = Map::from_iter([("linux".to_owned(), Value::from(self.source_version.as_str()))]);
        cache.commit(lock, KIND, &file, &self.hash, details)
    }
}

/// `make` in the kernel's tree. Who builds it, where and when is not to be seen in the result.
fn make(tree: &Path, args: &[&str]) -> Command {
    let packaged = File::open(SOURCE).and_then(|source| source.metadata()?.modified()).ok();
    let seconds =
        packaged.and_then(|time| time.duration_since(UNIX_EPOCH).ok()).map_or(0, |since| since.as_secs());
    let mut make = Command::new("make");
    make.current_dir(tree)
        .args(args)
        // The compiler's temporary files go with the tree, also after a kill.
        .env("TMPDIR", tree)
        .env("KBUILD_BUILD_USER", "manta")
        .env("KBUILD_BUILD_HOST", "manta")
        .env("KBUILD_BUILD_VERSION", "1")
        .env("KBUILD_BUILD_TIMESTAMP", format!("@{seconds}"));
    make
}
