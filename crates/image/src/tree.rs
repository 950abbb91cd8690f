//! What the rootfs has beside its packages, and what of theirs it does not keep. Files are data in
//! `guest/rootfs/`.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use crate::error::{ImageError, cannot};
use crate::hash::RecipeHasher;

macro_rules! file {
    ($path:literal) => {
        ($path, include_str!(concat!("../../../guest/rootfs/", $path)))
    };
}

/// Files by their path in the guest, in place of those of packages.
///
/// The shell of every command reads the profiles, and an emulated processor pays some hundred instructions for each
/// of their characters. So what only interactive shells or only bash need has files of its own. Debian's profiles
/// also start `id` and `mesg`, each of which takes longer than all of a shell's own start.
const FILES: &[(&str, &str)] = &[
    file!("etc/default/locale"),
    file!("etc/hostname"),
    file!("etc/hosts"),
    file!("etc/pip.conf"),
    file!("etc/profile"),
    file!("etc/profile.interactive"),
    file!("etc/resolv.conf"),
    file!("root/.bash_profile"),
    // Each VM has an identity of its own, given by the agent: there has to be a file to put it on.
    ("etc/machine-id", ""),
];
/// Links in the guest, and where they point.
const LINKS: &[(&str, &str)] = &[("etc/mtab", "../proc/self/mounts")];
/// What packages leave behind and nothing needs.
const REMOVED: &[&str] = &[
    "root/.profile",
    "var/cache/debconf/config.dat-old",
    "var/cache/debconf/templates.dat-old",
    "var/cache/ldconfig/aux-cache",
    "var/lib/dpkg/diversions-old",
    "var/lib/dpkg/status-old",
    "var/lib/dbus/machine-id",
    "var/log/alternatives.log",
    "var/log/bootstrap.log",
    "var/log/dpkg.log",
];
/// Directories that are mounted over, or empty at every boot.
const EMPTIED: &[&str] =
    &["dev", "proc", "run", "sys", "tmp", "var/cache/apt", "var/lib/apt/lists", "var/log/apt", "var/tmp"];
/// The mode of every added file.
const FILE_MODE: u32 = 0o644;

/// Adds all this to a recipe.
pub(crate) fn describe(recipe: RecipeHasher) -> RecipeHasher {
    let recipe = FILES.iter().fold(recipe, |recipe, (path, content)| recipe.with(path, content));
    let recipe = LINKS.iter().fold(recipe, |recipe, (path, target)| recipe.with(path, target));
    [REMOVED, EMPTIED].iter().copied().flatten().fold(recipe, |recipe, path| recipe.with("without", path))
}

/// Makes the guest's tree of one that has only the packages.
pub(crate) fn finish(tree: &Path) -> Result<(), ImageError> {
    for path in REMOVED {
        remove(&tree.join(path))?;
    }
    for dir in EMPTIED.iter().map(|dir| tree.join(dir)) {
        let Ok(entries) = fs::read_dir(&dir) else { continue };
        for entry in entries {
            remove(&entry.map_err(cannot("list", &dir))?.path())?;
        }
    }
    for (path, content) in FILES {
        let path = tree.join(path);
        // Anew, so that a package's link or mode does not stay.
        remove(&path)?;
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir).map_err(cannot("make", dir))?;
        }
        fs::write(&path, content)
            .and_then(|()| fs::set_permissions(&path, Permissions::from_mode(FILE_MODE)))
            .map_err(cannot("write", &path))?;
    }
    for (path, target) in LINKS {
        let path = tree.join(path);
        remove(&path)?;
        symlink(target, &path).map_err(cannot("make a link at", &path))?;
    }
    Ok(())
}

fn remove(path: &Path) -> Result<(), ImageError> {
    let is_dir = path.symlink_metadata().is_ok_and(|meta| meta.is_dir());
    let removed = if is_dir { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(cannot("remove", path)(error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::CommandExt;
    use std::process::Command;

    use super::*;

    #[test]
    fn a_tree_is_finished_whatever_the_packages_left() {
        let dir = tempfile::tempdir().unwrap();
        let at = |path: &str| dir.path().join(path);
        for made in ["dev/pts", "etc", "root", "var/log/apt", "tmp"] {
            fs::create_dir_all(at(made)).unwrap();
        }
        symlink("/etc/passwd", at("etc/hostname")).unwrap();
        fs::write(at("etc/resolv.conf"), "nameserver 192.0.2.1").unwrap();
        fs::write(at("var/log/apt/history.log"), "secrets of the build").unwrap();
        symlink("/proc/self/fd", at("dev/fd")).unwrap();

        finish(dir.path()).unwrap();

        assert_eq!(fs::read_to_string(at("etc/hostname")).unwrap(), "sandbox\n");
        assert!(at("etc/hostname").symlink_metadata().unwrap().is_file());
        assert!(!fs::read_to_string(at("etc/resolv.conf")).unwrap().contains("nameserver"));
        assert_eq!(fs::read(at("etc/machine-id")).unwrap(), b"");
        for emptied in ["dev", "var/log/apt"] {
            assert_eq!(fs::read_dir(at(emptied)).unwrap().count(), 0, "{emptied}");
        }
        finish(dir.path()).unwrap();
    }

    /// A shell whose user may have no process more: a fork fails, and with it the script.
    fn run_forkless(shell: &str, script: &str) -> std::process::Output {
        Command::new(shell)
            .args(["-ec", &format!("{{ ulimit -u 0 || ulimit -p 0; }} 2>/dev/null\n{script}\necho $PATH")])
            .env_clear()
            .envs([("PATH", "/mine"), ("HOME", "/nonexistent")])
            .uid(65_534)
            .output()
            .unwrap()
    }

    #[test]
    fn the_profiles_start_no_process_and_keep_the_callers_environment() {
        // Not bash: it takes 15 seconds to believe that it cannot fork.
        assert!(!run_forkless("/bin/dash", "x=$(echo)").status.success(), "the limit does not bind");
        for shell in ["/bin/dash", "/bin/bash"] {
            for path in ["etc/profile", "root/.bash_profile"] {
                let (_, text) = FILES.iter().find(|(file, _)| *file == path).unwrap();
                let output = run_forkless(shell, text);
                let said = String::from_utf8_lossy(&output.stderr);
                assert!(output.status.success(), "{path} in {shell}: {said}");
                assert_eq!(output.stdout, b"/mine\n", "{path} in {shell}");
            }
        }
    }
}
