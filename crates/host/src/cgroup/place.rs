//! Where the tree can be: which hierarchies have the controllers, and below which group of each a server may make
//! its own. Makes nothing but what is needed to find that out: controllers passed on to a group's children, and for
//! this process a group of its own.
//!
//! Version 1: below this process's own group. Version 2, the first of these that passes the controllers on:
//! 1. the group that was delegated, when this process was started in a part of it (systemd's `DelegateSubgroup=`);
//! 2. the root of what is mounted. Beside this server's own group, not below: systemd cannot start a unit anew whose
//!    own group has groups with limits in it (<https://systemd.io/CGROUP_DELEGATION/>), and the VMMs that outlive
//!    a server would be in there;
//! 3. this process's own group, when nobody else is in it: the usual thing in a container.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::{CgroupError, error, make_dir};
use crate::facts;
use crate::mounts::{self, Mount};

/// What this process is moved to when its own group becomes the parent of others.
const LEAF: &str = "server";

/// Extended attributes by which systemd marks a group as delegated.
const DELEGATED: [&str; 2] = ["trusted.delegate", "user.delegate"];

/// What limits something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Controller {
    Memory,
    Cpu,
    Pids,
}

impl Controller {
    const ALL: [Self; 3] = [Self::Memory, Self::Cpu, Self::Pids];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Cpu => "cpu",
            Self::Pids => "pids",
        }
    }

    /// For people: what it limits.
    pub(super) fn limits(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Cpu => "use of processors",
            Self::Pids => "number of processes",
        }
    }
}

/// Of the interface; both can be mounted, with different controllers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Version {
    V1,
    V2,
}

impl Version {
    /// For people: how to get what is missing.
    pub(super) fn advice(self) -> &'static str {
        match self {
            Self::V1 => {
                "mount the controller writable, or boot with cgroup v2 (systemd.unified_cgroup_hierarchy=1)"
            }
            Self::V2 => {
                "mount cgroup v2 writable at /sys/fs/cgroup (under systemd: Delegate=yes and DelegateSubgroup=server, in \
                 a container: a writable cgroup namespace with the server as its only process)"
            }
        }
    }
}

/// A hierarchy, and the tree's directory in it.
#[derive(Debug)]
pub(super) struct Hierarchy {
    pub(super) version: Version,
    pub(super) controllers: Vec<Controller>,
    pub(super) tree: PathBuf,
    /// Single processes, not only groups, compete with the tree for processors.
    beside_processes: bool,
    mount_point: PathBuf,
}

impl Hierarchy {
    /// Version 2: has the groups of the tree get the controllers.
    pub(super) fn pass_on_controllers(&self) -> Result<(), CgroupError> {
        if self.version == Version::V1 {
            return Ok(());
        }
        for controller in &self.controllers {
            pass_on(&self.tree, *controller)?;
        }
        Ok(())
    }

    /// Beside single processes the weight counts for each processor: the tree's is shared out among them.
    pub(super) fn weigh(&self, weight: u32) -> Result<(), CgroupError> {
        if !self.controllers.contains(&Controller::Cpu) {
            return Ok(());
        }
        let parts = if self.beside_processes { facts::cpus() as u64 } else { 1 };
        let weight = u64::from(weight) * parts;
        let (file, value) = match self.version {
            // An ordinary process weighs 1024 there, and 100 here.
            Version::V1 => ("cpu.shares", (weight * 1024 / 100).clamp(2, 262_144)),
            Version::V2 => ("cpu.weight", weight.clamp(1, 10_000)),
        };
        let path = self.tree.join(file);
        fs::write(&path, value.to_string()).map_err(error("write", &path))
    }
}

/// The mounts of cgroups, and the groups this process is in.
#[derive(Debug)]
pub(super) struct Surroundings {
    mounts: Vec<Mount>,
    own: String,
}

impl Surroundings {
    pub(super) fn look() -> io::Result<Self> {
        let mut mounts = mounts::mounts()?;
        mounts.retain(|mount| matches!(mount.kind.as_str(), "cgroup" | "cgroup2"));
        Ok(Self { mounts, own: fs::read_to_string("/proc/self/cgroup")? })
    }

    /// The hierarchies for a tree called `name`; and, for people, the limits that there are none for.
    pub(super) fn hierarchies(&self, name: &str) -> (Vec<Hierarchy>, Vec<String>) {
        let (mut found, mut missing) = (Vec::<Hierarchy>::new(), Vec::new());
        let mut left = Vec::new();
        for controller in Controller::ALL {
            let has = |mount: &&Mount| {
                mount.kind == "cgroup" && mount.super_options.split(',').any(|name| name == controller.name())
            };
            let Some(mount) = self.mounts.iter().find(has) else {
                left.push(controller);
                continue;
            };
            let same = |known: &&mut Hierarchy| known.mount_point == mount.point;
            if let Some(known) = found.iter_mut().find(same) {
                known.controllers.push(controller);
                continue;
            }
            let own = group_of(&self.own, Some(controller.name()));
            match own.and_then(|own| below(mount, own)) {
                Some(own) => found.push(Hierarchy {
                    version: Version::V1,
                    controllers: vec![controller],
                    tree: own.join(name),
                    beside_processes: true,
                    mount_point: mount.point.clone(),
                }),
                None => left.push(controller),
            }
        }
        if left.is_empty() {
            return (found, missing);
        }
        let reasons = match self.unified(name, &left) {
            Ok(hierarchy) => {
                left.retain(|controller| !hierarchy.controllers.contains(controller));
                found.push(hierarchy);
                vec!["no hierarchy has its controller".to_owned()]
            }
            Err(reasons) => reasons,
        };
        let (reasons, advice) = (reasons.join(", and "), Version::V2.advice());
        missing.extend(
            left.into_iter()
                .map(|controller| format!("no limit on VMMs' {}: {reasons}; {advice}", controller.limits())),
        );
        (found, missing)
    }

    /// The place in version 2 with as many of the controllers as can be had, or why there is none.
    fn unified(&self, name: &str, wanted: &[Controller]) -> Result<Hierarchy, Vec<String>> {
        let Some(mount) = self.mounts.iter().find(|mount| mount.kind == "cgroup2") else {
            return Err(vec!["cgroup v2 is not mounted".to_owned()]);
        };
        let own = group_of(&self.own, None).and_then(|own| below(mount, own));
        let mut reasons = Vec::new();
        let delegated = own.as_deref().and_then(Path::parent).filter(|parent| is_delegated(parent));
        let candidates = [delegated.map(Path::to_owned), Some(mount.point.clone()), own.clone()];
        for (attempt, base) in candidates.into_iter().enumerate() {
            let Some(base) = base else { continue };
            if attempt == 2
                && let Err(reason) = move_aside(&base)
            {
                reasons.push(reason);
                continue;
            }
            let offered = fs::read_to_string(base.join("cgroup.controllers")).unwrap_or_default();
            let has = |wanted: &&Controller| offered.split_whitespace().any(|name| name == wanted.name());
            let controllers: Vec<Controller> = wanted.iter().filter(has).copied().collect();
            if controllers.is_empty() {
                reasons.push(format!("{} has none of the controllers", base.display()));
                continue;
            }
            let passed = controllers.iter().try_for_each(|controller| pass_on(&base, *controller));
            if let Err(error) = passed {
                reasons.push(super::chain(&error));
                continue;
            }
            return Ok(Hierarchy {
                version: Version::V2,
                controllers,
                tree: base.join(name),
                beside_processes: attempt == 1 && own.as_ref() == Some(&base),
                mount_point: mount.point.clone(),
            });
        }
        Err(reasons)
    }

    /// All directories called `name` but `own`, in whichever group and hierarchy; each once, however often it is mounted.
    pub(super) fn named(&self, name: &str, own: &[PathBuf]) -> Vec<(PathBuf, Version)> {
        let identity = |dir: &Path| fs::metadata(dir).map(|found| (found.dev(), found.ino())).ok();
        let mut seen: BTreeSet<_> = own.iter().filter_map(|dir| identity(dir)).collect();
        let mut found = Vec::new();
        for mount in &self.mounts {
            let version = if mount.kind == "cgroup2" { Version::V2 } else { Version::V1 };
            let mut dirs = vec![mount.point.clone()];
            while let Some(dir) = dirs.pop() {
                // Others' groups come and go meanwhile.
                let entries = fs::read_dir(dir).into_iter().flatten().flatten();
                for entry in entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
                    let path = entry.path();
                    if entry.file_name() != name {
                        dirs.push(path);
                    } else if identity(&path).is_some_and(|identity| seen.insert(identity)) {
                        found.push((path, version));
                    }
                }
            }
        }
        found
    }
}

/// Passes a controller of version 2 on to the groups below a group.
fn pass_on(group: &Path, controller: Controller) -> Result<(), CgroupError> {
    let path = group.join("cgroup.subtree_control");
    let passed = fs::read_to_string(&path).map_err(error("read", &path))?;
    if passed.split_whitespace().any(|name| name == controller.name()) {
        return Ok(());
    }
    fs::write(&path, format!("+{}", controller.name())).map_err(error("pass controllers on in", &path))
}

/// Makes room in this process's own group of version 2.
fn move_aside(own: &Path) -> Result<(), String> {
    let path = own.join("cgroup.procs");
    let inside = fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    let this = std::process::id().to_string();
    if inside.lines().any(|pid| pid != this) {
        return Err(format!("other processes are in {} with the server", own.display()));
    }
    let leaf = own.join(LEAF);
    make_dir(&leaf).map_err(|error| super::chain(&error))?;
    let path = leaf.join("cgroup.procs");
    fs::write(&path, this).map_err(|error| format!("{}: {error}", path.display()))
}

fn is_delegated(group: &Path) -> bool {
    let mut value = [0u8; 8];
    DELEGATED.into_iter().any(|name| {
        let length = rustix::fs::getxattr(group, name, &mut value[..]);
        length.is_ok_and(|length| value.get(..length) == Some(b"1"))
    })
}

/// A line of `/proc/PID/cgroup` (cgroups(7)): the group in the hierarchy of version 1 with this controller, or of
/// version 2.
fn group_of<'a>(text: &'a str, controller: Option<&str>) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':');
        let (id, controllers, group) = (fields.next()?, fields.next()?, fields.next()?);
        let matches = match controller {
            Some(wanted) => controllers.split(',').any(|name| name == wanted),
            None => id == "0" && controllers.is_empty(),
        };
        matches.then_some(group)
    })
}

fn below(mount: &Mount, group: &str) -> Option<PathBuf> {
    join(&mount.root, &mount.point, group)
}

/// The directory of a group; none if it is not below what is mounted, as seen from this cgroup namespace.
fn join(mount_root: &Path, mount_point: &Path, group: &str) -> Option<PathBuf> {
    let relative = Path::new(group).strip_prefix(mount_root).ok()?;
    if relative.components().any(|part| !matches!(part, std::path::Component::Normal(_))) {
        return None;
    }
    // Not `join`, which adds a slash to nothing.
    Some(mount_point.components().chain(relative.components()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const V1: &str = "9:name=systemd:/\n4:memory:/a/b\n3:cpu,cpuacct:/c\n0::/user.slice/x:y\n";

    #[test]
    fn a_process_is_in_one_group_of_each_hierarchy() {
        assert_eq!(group_of(V1, Some("memory")), Some("/a/b"));
        assert_eq!(group_of(V1, Some("cpu")), Some("/c"));
        assert_eq!(group_of(V1, Some("pids")), None);
        assert_eq!(group_of(V1, None), Some("/user.slice/x:y"));
        assert_eq!(group_of("1:name=systemd:/\n", None), None);
    }

    #[test]
    fn groups_are_found_below_what_is_mounted_and_nowhere_else() {
        let joined = |root: &str, group: &str| join(Path::new(root), Path::new("/sys/fs/cgroup"), group);
        assert_eq!(joined("/", "/a/b"), Some("/sys/fs/cgroup/a/b".into()));
        assert_eq!(joined("/", "/"), Some("/sys/fs/cgroup".into()));
        assert_eq!(joined("/docker/1", "/docker/1/a"), Some("/sys/fs/cgroup/a".into()));
        assert_eq!(joined("/docker/1", "/docker/2"), None);
        assert_eq!(joined("/", "/../2"), None);
    }
}
