//! cgroups: one for each VMM process, in a tree of this server's own. Owns the tree's directories, their limits,
//! and the killing of what is in them. Does not know what the processes are.
//!
//! With version 1 a group is a directory in each of several hierarchies, with version 2 in one; [`place`] finds
//! them. A limit that cannot be had is no error here: [`Cgroups::missing`] names it.

mod controls;
mod group;
mod place;

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use controls::{Control, Controls};
pub use group::{Cgroup, CgroupEntry};
use place::{Hierarchy, Surroundings, Version};

/// Name of the group that limits are tried on at first; no group of a process is called so.
const TRIAL: &str = ".trial";

/// What the processes of a group may use, together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CgroupLimits {
    /// Memory, bytes: their own, and what the kernel keeps for them, such as cached files. They get no swap.
    pub memory_bytes: u64,
    /// Time of processors, in percent of one.
    pub cpu_percent: u32,
    /// Processes and threads.
    pub processes: u32,
}

/// The tree of groups of one server.
#[derive(Debug)]
pub struct Cgroups {
    trees: Arc<[Tree]>,
    /// Trees of the same name in other places: of an earlier server that ran in another group itself, or that had limits
    /// where this one has none. Groups in them are found and removed, none is made.
    elsewhere: Arc<[(PathBuf, Version)]>,
    missing: Vec<String>,
}

/// The part of the tree in one hierarchy.
#[derive(Debug)]
struct Tree {
    hierarchy: Hierarchy,
    controls: Controls,
}

/// What can go wrong with a group.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// A name that is no single file name, or one of this module's own.
    #[error("no group can be called {0:?}")]
    Name(String),
    /// A directory or file of a group could not be made, opened, written or removed.
    #[error("cannot {action} {path}")]
    Path {
        /// What was to be done.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Killed processes of the group did not end in time.
    #[error("the processes of {path} did not end when killed")]
    Unkillable {
        /// The group.
        path: PathBuf,
    },
}

impl Cgroups {
    /// The tree called `name`, which no other server may use, weighing `weight` (1 to 10,000, 100 is usual)
    /// against the rest of the host; made as far as that can be, or found. Everything in it stays as it is, for
    /// [`Self::sweep`]. A limit that the host refuses to set to what `each` group will have is missing.
    ///
    /// If need be, and if nobody else is in this process's own group of version 2, it moves to a group of its own
    /// below that, since groups with limits in them may hold no processes (`cgroups(7)`, "no internal processes").
    #[must_use]
    pub fn set_up(name: &str, weight: u32, each: &CgroupLimits) -> Self {
        let surroundings = match Surroundings::look() {
            Ok(surroundings) => surroundings,
            Err(error) => {
                let missing = vec![format!("no limits for VMMs: cannot look for cgroups: {error}")];
                return Self { trees: Arc::new([]), elsewhere: Arc::new([]), missing };
            }
        };
        let (hierarchies, mut missing) = surroundings.hierarchies(name);
        let mut trees = Vec::new();
        for hierarchy in hierarchies {
            match make_tree(&hierarchy, weight, each) {
                Ok((controls, lacking)) => {
                    missing.extend(lacking);
                    trees.push(Tree { hierarchy, controls });
                }
                Err(error) => {
                    missing.extend(hierarchy.controllers.iter().map(|controller| {
                        let (what, error) = (controller.limits(), chain(&error));
                        format!("no limit on VMMs' {what}: {error}; {}", hierarchy.version.advice())
                    }));
                }
            }
        }
        let own: Vec<_> = trees.iter().map(|tree| tree.hierarchy.tree.clone()).collect();
        let elsewhere = surroundings.named(name, &own).into();
        Self { trees: trees.into(), elsewhere, missing }
    }

    /// A tree of groups without limits, that are nowhere; those that an earlier server made in its tree of this name are
    /// found.
    #[must_use]
    pub fn off(name: &str) -> Self {
        let elsewhere = Surroundings::look().map(|surroundings| surroundings.named(name, &[]));
        Self { trees: Arc::new([]), elsewhere: elsewhere.unwrap_or_default().into(), missing: Vec::new() }
    }

    /// For people: each limit that cannot be had, why, and how to get it.
    #[must_use]
    pub fn missing(&self) -> &[String] {
        &self.missing
    }

    /// The directories of the tree, for messages.
    #[must_use]
    pub fn dirs(&self) -> Vec<PathBuf> {
        self.trees.iter().map(|tree| tree.hierarchy.tree.clone()).collect()
    }

    /// A new group without processes, with these limits as far as they can be had.
    ///
    /// # Errors
    /// When the name is unfit or taken, or the kernel refuses what it took when the tree was set up; nothing is left
    /// of it then.
    pub fn create(&self, name: &str, limits: &CgroupLimits) -> Result<Cgroup, CgroupError> {
        check_name(name)?;
        let mut group = Cgroup::new(name);
        for tree in self.trees.iter() {
            let dir = tree.hierarchy.tree.join(name);
            fs::create_dir(&dir).map_err(error("make", &dir))?;
            group.push(dir.clone(), tree.hierarchy.version, false);
            tree.controls.apply(&dir, limits)?;
        }
        Ok(group)
    }

    /// A group made by an earlier server, by its name; whoever is in it. None if there is none.
    ///
    /// # Errors
    /// When the name is unfit.
    pub fn find(&self, name: &str) -> Result<Option<Cgroup>, CgroupError> {
        check_name(name)?;
        let mut group = Cgroup::new(name);
        for tree in self.trees.iter() {
            let dir = tree.hierarchy.tree.join(name);
            if dir.is_dir() {
                group.push(dir, tree.hierarchy.version, false);
            }
        }
        for (tree, version) in self.elsewhere.iter() {
            let dir = tree.join(name);
            if dir.is_dir() {
                group.push(dir, *version, true);
            }
        }
        if group.is_empty() { Ok(None) } else { Ok(Some(group)) }
    }

    /// Kills everything in the groups of the tree but those called as in `keep`, and removes them. Gives the names
    /// of those removed.
    ///
    /// # Errors
    /// The first that one could not be emptied or removed; it goes on with the others.
    pub fn sweep(&self, keep: &BTreeSet<String>) -> Result<Vec<String>, CgroupError> {
        let mut names = BTreeSet::new();
        let own = self.trees.iter().map(|tree| &tree.hierarchy.tree);
        for dir in own.chain(self.elsewhere.iter().map(|(tree, _)| tree)) {
            let entries = match fs::read_dir(dir) {
                // One elsewhere goes with its last group.
                Err(gone) if gone.kind() == io::ErrorKind::NotFound => continue,
                entries => entries.map_err(error("list", dir))?,
            };
            let dirs = entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
            names.extend(dirs.filter_map(|entry| entry.file_name().into_string().ok()));
        }
        let (mut swept, mut failure) = (Vec::new(), None);
        for name in names.into_iter().filter(|name| !keep.contains(name)) {
            let Ok(Some(group)) = self.find(&name) else { continue };
            match group.destroy() {
                Ok(()) => swept.push(name),
                Err(error) => drop(failure.get_or_insert(error)),
            }
        }
        for (tree, _) in self.elsewhere.iter() {
            // Only when they are empty: the kernel refuses otherwise.
            drop((fs::remove_dir(tree.join(TRIAL)), fs::remove_dir(tree)));
        }
        failure.map_or(Ok(swept), Err)
    }

    /// Removes the tree, which must be empty: see [`Self::sweep`]. It goes on past errors.
    ///
    /// # Errors
    /// When a directory cannot be removed, as when there still is a group in it.
    pub fn tear_down(&self) -> Result<(), CgroupError> {
        let removed = self.trees.iter().map(|tree| group::remove(&tree.hierarchy.tree));
        removed.fold(Ok(()), Result::and)
    }
}

/// Also tells the limits that cannot be had in it.
fn make_tree(
    hierarchy: &Hierarchy,
    weight: u32,
    each: &CgroupLimits,
) -> Result<(Controls, Vec<String>), CgroupError> {
    let dir = &hierarchy.tree;
    make_dir(dir)?;
    hierarchy.pass_on_controllers()?;
    let weighed = hierarchy.weigh(weight);
    let trial = dir.join(TRIAL);
    make_dir(&trial)?;
    let (controls, refused) = Controls::try_on(&trial, hierarchy, each);
    group::remove(&trial)?;
    let told = |(control, error): (Control, CgroupError)| {
        let (what, error) = (control.what(), chain(&error));
        format!("no limit on VMMs' {what}: {error}; {}", hierarchy.version.advice())
    };
    let mut lacking: Vec<String> = refused.into_iter().map(told).collect();
    if let Err(error) = weighed {
        lacking.push(format!("VMMs' share of the processors is not weighed: {}", chain(&error)));
    }
    Ok((controls, lacking))
}

/// An error and its cause, on one line.
fn chain(error: &CgroupError) -> String {
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

fn make_dir(dir: &Path) -> Result<(), CgroupError> {
    match fs::create_dir(dir) {
        Err(source) if source.kind() != io::ErrorKind::AlreadyExists => Err(error("make", dir)(source)),
        _ => Ok(()),
    }
}

fn check_name(name: &str) -> Result<(), CgroupError> {
    let fit = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    if name.is_empty() || name.len() > 128 || !name.chars().all(fit) {
        return Err(CgroupError::Name(name.to_owned()));
    }
    Ok(())
}

fn error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> CgroupError {
    let path = path.to_owned();
    move |source| CgroupError::Path { action, path, source }
}
