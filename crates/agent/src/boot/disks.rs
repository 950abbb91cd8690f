//! Which disk is which. By what they are, not by name: the order in which a machine finds its virtio
//! devices differs between VMMs.

use std::fs;
use std::path::Path;
use std::time::Duration;

use super::BootError;
use crate::uevent;

/// Disks are there before PID 1 on the machines we know; a slower one may take this long.
const WAIT: Duration = Duration::from_secs(10);

/// The machine's disks, as device files.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Disks {
    /// The read-only one: the root filesystem.
    pub(super) root: String,
    /// The writable one.
    pub(super) writable: String,
}

pub(super) fn find() -> Result<Disks, BootError> {
    let block = Path::new("/sys/block");
    match uevent::wait_for(WAIT, || look(block))? {
        Some(disks) => Ok(disks),
        None => Err(BootError::Disks { found: describe(block)? }),
    }
}

/// The first disk of each kind.
fn look(block: &Path) -> Result<Option<Disks>, BootError> {
    let disks = list(block)?;
    let first = |read_only| {
        let (name, _) = disks.iter().find(|disk| disk.1 == read_only)?;
        Some(format!("/dev/{name}"))
    };
    Ok(first(true).zip(first(false)).map(|(root, writable)| Disks { root, writable }))
}

/// Name of every virtio disk, and whether it is read-only; sorted by name.
fn list(block: &Path) -> Result<Vec<(String, bool)>, BootError> {
    let mut disks = Vec::new();
    for entry in fs::read_dir(block).map_err(BootError::ListDisks)? {
        let entry = entry.map_err(BootError::ListDisks)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with("vd")
            && let Ok(read_only) = fs::read_to_string(entry.path().join("ro"))
        {
            disks.push((name, read_only.trim() == "1"));
        }
    }
    disks.sort();
    Ok(disks)
}

fn describe(block: &Path) -> Result<String, BootError> {
    let word = |read_only| if read_only { "read-only" } else { "writable" };
    let disks: Vec<_> =
        list(block)?.into_iter().map(|(name, read_only)| format!("{name} ({})", word(read_only))).collect();
    Ok(if disks.is_empty() { "none".to_owned() } else { disks.join(", ") })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(disks: &[(&str, &str)]) -> tempfile::TempDir {
        let block = tempfile::tempdir().unwrap();
        for (name, read_only) in disks {
            fs::create_dir(block.path().join(name)).unwrap();
            fs::write(block.path().join(name).join("ro"), read_only).unwrap();
        }
        block
    }

    #[test]
    fn disks_are_told_apart_by_what_they_allow() {
        let expected = |root: &str, writable: &str| Disks { root: root.into(), writable: writable.into() };
        let in_order = block(&[("loop0", "0\n"), ("vda", "1\n"), ("vdb", "0\n")]);
        assert_eq!(look(in_order.path()).unwrap(), Some(expected("/dev/vda", "/dev/vdb")));
        let reversed = block(&[("vda", "0\n"), ("vdb", "1\n"), ("vdc", "0\n")]);
        assert_eq!(look(reversed.path()).unwrap(), Some(expected("/dev/vdb", "/dev/vda")));
    }

    #[test]
    fn a_missing_disk_is_named_by_what_is_there() {
        let alone = block(&[("vda", "1\n"), ("sda", "0\n")]);
        assert_eq!(look(alone.path()).unwrap(), None);
        assert_eq!(describe(alone.path()).unwrap(), "vda (read-only)");
        assert_eq!(describe(block(&[]).path()).unwrap(), "none");
    }
}
