//! What is mounted where, read from `/proc/self/mountinfo`: the filesystem of a path, and what
//! [`crate::cgroup`] looks for. Mounts nothing.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

const MOUNTINFO: &str = "/proc/self/mountinfo";

/// The filesystem that a path is on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filesystem {
    /// Its type, such as `ext4`.
    pub kind: String,
    /// The block device, or what else the mount names as its source.
    pub device: String,
}

/// One mount.
#[derive(Debug)]
pub(crate) struct Mount {
    /// What of the file system is mounted there.
    pub(crate) root: PathBuf,
    pub(crate) point: PathBuf,
    pub(crate) kind: String,
    device: String,
    pub(crate) super_options: String,
}

/// The filesystem of a path.
///
/// # Errors
/// When the path does not exist or the mounts cannot be read.
pub fn filesystem_of(path: &Path) -> io::Result<Filesystem> {
    let path = path.canonicalize()?;
    let mounts = mounts()?;
    // Of two mounts on one point the later hides the earlier; `max_by_key` returns the last.
    let mount = mounts
        .into_iter()
        .filter(|mount| path.starts_with(&mount.point))
        .max_by_key(|mount| mount.point.components().count())
        .ok_or_else(|| io::Error::other(format!("no mount in {MOUNTINFO} contains {}", path.display())))?;
    Ok(Filesystem { kind: mount.kind, device: mount.device })
}

/// All mounts of this process's namespace.
pub(crate) fn mounts() -> io::Result<Vec<Mount>> {
    Ok(fs::read_to_string(MOUNTINFO)?.lines().filter_map(parse).collect())
}

/// A line of mountinfo, as in proc_pid_mountinfo(5).
fn parse(line: &str) -> Option<Mount> {
    let (mount, filesystem) = line.split_once(" - ")?;
    let mut fields = mount.split(' ').skip(3);
    let (root, point) = (fields.next()?, fields.next()?);
    let mut filesystem = filesystem.split(' ');
    Some(Mount {
        root: PathBuf::from(unescape(root)),
        point: PathBuf::from(unescape(point)),
        kind: filesystem.next()?.to_owned(),
        device: unescape(filesystem.next()?),
        super_options: filesystem.next().unwrap_or_default().to_owned(),
    })
}

/// Undoes the kernel's escapes: blanks and backslashes as three octal digits.
fn unescape(text: &str) -> String {
    let mut parts = text.split('\\');
    let mut plain = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        match part.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                plain.push(char::from(byte));
                plain.push_str(&part[3..]);
            }
            None => {
                plain.push('\\');
                plain.push_str(part);
            }
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_taken_apart() {
        let line = r"98 1 0:51 / /a\040b rw,relatime shared:7 - xfs /dev/sd\134a rw,noquota";
        let mount = parse(line).unwrap();
        assert_eq!(mount.point, Path::new("/a b"));
        assert_eq!((mount.kind.as_str(), mount.device.as_str()), ("xfs", r"/dev/sd\a"));
        assert_eq!(mount.super_options, "rw,noquota");
    }

    #[test]
    fn proc_is_proc() {
        assert_eq!(filesystem_of(Path::new("/proc/self")).unwrap().kind, "proc");
        assert!(filesystem_of(Path::new("/does/not/exist")).is_err());
    }
}
