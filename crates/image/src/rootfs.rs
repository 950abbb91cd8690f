//! The guest's root file system: Debian packages (`guest/packages.list`), our files, one read-only ext4
//! image.

use std::path::Path;
use std::process::Command;

use serde_json::{Map, Value};

use crate::cache::{Cache, Entry, Lock};
use crate::command::Runner;
use crate::error::ImageError;
use crate::ext4::mke2fs;
use crate::hash::RecipeHasher;
use crate::interrupt::Interrupts;
use crate::progress::Step;
use crate::tree;

pub(crate) const KIND: &str = "rootfs";
pub(crate) const FILE: &str = "rootfs.ext4";
const SUITE: &str = "bookworm";
const PACKAGES: &str = include_str!("../../../guest/packages.list");
/// What packages contain and the image does not. dpkg in the guest keeps to it, too. Licences stay.
const DPKG_OPTIONS: &[&str] = &[
    "path-exclude=/usr/share/doc/*",
    "path-include=/usr/share/doc/*/copyright",
    "path-exclude=/usr/share/info/*",
    "path-exclude=/usr/share/locale/*",
    "path-exclude=/usr/share/man/*",
];
/// Raised when this file, `ext4.rs` or `tree.rs` makes another image of the same recipe.
const RECIPE_VERSION: u32 = 1;

/// The packages asked for; those they depend on come along.
fn packages() -> impl Iterator<Item = &'static str> {
    PACKAGES.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'))
}

/// Hash of what the image is made from. The packages' versions are not part of it: they are what the archive
/// has on the day of the build, and a new build is asked for (`--refresh`) rather than had at every update.
pub(crate) fn recipe() -> String {
    let recipe = RecipeHasher::new(KIND, RECIPE_VERSION).with("suite", SUITE);
    let recipe = packages().fold(recipe, |recipe, package| recipe.with("package", package));
    let recipe = DPKG_OPTIONS.iter().fold(recipe, |recipe, option| recipe.with("dpkg", option));
    tree::describe(recipe).finish()
}

/// Builds the image into the cache.
pub(crate) fn build(
    recipe: &str,
    cache: &Cache,
    lock: &Lock,
    interrupts: &Interrupts,
    step: &Step,
) -> Result<Entry, ImageError> {
    let scratch = cache.scratch(lock)?;
    let root = scratch.path().join("root");
    let mut runner = Runner::new(interrupts, cache.log(KIND))?;

    step.part(format!("installing Debian {SUITE}"), None);
    runner.run(mmdebstrap(&root), |line| match line.strip_prefix("I: ") {
        Some(doing) => step.detail(format!("Debian {SUITE}: {doing}")),
        None => step.alive(),
    })?;
    let installed = installed(&root, &mut runner)?;
    tree::finish(&root)?;

    step.part("writing the image", None);
    let image = scratch.path().join(FILE);
    runner.run(mke2fs(&root, &image, recipe)?, |_| step.alive())?;
    step.part("hashing and cleaning up", None);
    let details = Map::from_iter([
        ("debian".to_owned(), Value::from(SUITE)),
        ("packages".to_owned(), Value::Object(installed)),
    ]);
    cache.commit(lock, KIND, &image, recipe, details)
}

/// Which mirror packages come from is mmdebstrap's own choice for the suite, so that the image's sources are
/// Debian's and not this machine's.
fn mmdebstrap(root: &Path) -> Command {
    let mut mmdebstrap = Command::new("mmdebstrap");
    mmdebstrap.args(["--mode=root", "--variant=minbase", "--format=directory"]);
    mmdebstrap.args(DPKG_OPTIONS.iter().map(|option| format!("--dpkgopt={option}")));
    mmdebstrap.arg(format!("--include={}", packages().collect::<Vec<_>>().join(",")));
    mmdebstrap.arg(SUITE).arg(root);
    mmdebstrap
}

/// The installed packages and their versions.
fn installed(root: &Path, runner: &mut Runner<'_>) -> Result<Map<String, Value>, ImageError> {
    let mut dpkg_query = Command::new("dpkg-query");
    dpkg_query.arg("--admindir").arg(root.join("var/lib/dpkg"));
    dpkg_query.args(["--show", "--showformat=${Package} ${Version}\n"]);
    let mut installed = Map::new();
    runner.run(dpkg_query, |line| {
        if let Some((package, version)) = line.split_once(' ') {
            installed.insert(package.to_owned(), Value::from(version));
        }
    })?;
    Ok(installed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_package_list_holds_names_only_and_none_twice() {
        let mut seen = Vec::new();
        for package in packages() {
            let valid = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "+-.".contains(c);
            assert!(package.chars().all(valid), "{package:?}");
            assert!(!seen.contains(&package), "{package} is there twice");
            seen.push(package);
        }
        for promised in ["curl", "git", "nodejs", "python3", "ca-certificates"] {
            assert!(seen.contains(&promised), "{promised}");
        }
    }

    #[test]
    fn the_recipe_is_the_same_each_time() {
        assert_eq!(recipe(), recipe());
    }
}
