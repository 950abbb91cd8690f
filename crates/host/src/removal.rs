//! Removes a directory with all in it, whoever made that. Does not know whose it is.
//!
//! A VMM that its guest took over can nest directories as deep as there are inodes. `std::fs::remove_dir_all` calls
//! itself for each level and holds a descriptor meanwhile; here every depth takes a few descriptors and no stack.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir, Gid, Mode, OFlags, Uid, fchmod, fchown, openat, renameat, unlinkat};
use rustix::io::Errno;
use rustix::path::Arg;
use rustix::process::{getegid, geteuid};

/// Removes a file, a link, or a directory with all in it; what is not there is fine. Links are not followed, mounts
/// not entered. Each directory is taken from its owner first, so that one who still has it open adds nothing.
///
/// # Errors
/// The first that something could not be removed, as a mount or what is immutable; the rest stays.
pub fn remove_all(path: &Path) -> io::Result<()> {
    if unlink(CWD, path)? == Unlinked::Gone {
        return Ok(());
    }
    let top = take(CWD, path)?;
    // What is nested is moved up here, and comes next.
    let mut moved = 0;
    while unlinkat(CWD, path, AtFlags::REMOVEDIR) == Err(Errno::NOTEMPTY) {
        each_entry(&top, |name| match unlink(&top, name)? {
            Unlinked::Gone => Ok(()),
            Unlinked::Filled => lift(&top, name, &mut moved),
        })?;
    }
    if unlink(CWD, path)? == Unlinked::Gone { Ok(()) } else { Err(Errno::NOTEMPTY.into()) }
}

/// Removes directory `name` of `top`; what is in directories in it is then in directories of `top`.
fn lift(top: &OwnedFd, name: &std::ffi::CStr, moved: &mut u64) -> Result<(), Errno> {
    let dir = take(top, name)?;
    while unlinkat(top, name, AtFlags::REMOVEDIR) == Err(Errno::NOTEMPTY) {
        each_entry(&dir, |inner| {
            while unlink(&dir, inner)? == Unlinked::Filled {
                let to = moved.to_string();
                *moved += 1;
                match renameat(&dir, inner, top, to) {
                    // There is something of that name.
                    Err(Errno::NOTEMPTY | Errno::EXIST | Errno::NOTDIR) => {}
                    renamed => return renamed,
                }
            }
            Ok(())
        })?;
    }
    if unlink(top, name)? == Unlinked::Gone { Ok(()) } else { Err(Errno::NOTEMPTY) }
}

#[derive(PartialEq)]
enum Unlinked {
    Gone,
    /// It is a directory, and there is something in it.
    Filled,
}

/// A mount is an error, [`Errno::BUSY`], before anything is told of what is in it.
fn unlink(dir: impl AsFd, name: impl Arg + Copy) -> Result<Unlinked, Errno> {
    let removed = match unlinkat(&dir, name, AtFlags::empty()) {
        Err(Errno::ISDIR) => unlinkat(&dir, name, AtFlags::REMOVEDIR),
        removed => removed,
    };
    match removed {
        Ok(()) | Err(Errno::NOENT) => Ok(Unlinked::Gone),
        Err(Errno::NOTEMPTY) => Ok(Unlinked::Filled),
        Err(error) => Err(error),
    }
}

/// Opens a directory and makes it ours.
fn take(dir: impl AsFd, name: impl Arg) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let taken = openat(dir, name, flags, Mode::empty())?;
    fchown(&taken, Some::<Uid>(geteuid()), Some::<Gid>(getegid()))?;
    fchmod(&taken, Mode::RWXU)?;
    Ok(taken)
}

/// # Errors
/// That of `act`, or of reading; [`Errno::NOTEMPTY`] when there is no entry, as then nothing would become of it.
fn each_entry(dir: &OwnedFd, mut act: impl FnMut(&std::ffi::CStr) -> Result<(), Errno>) -> Result<(), Errno> {
    let mut entries = 0_u64;
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        if !matches!(name.to_bytes(), b"." | b"..") {
            act(name)?;
            entries += 1;
        }
    }
    if entries == 0 { Err(Errno::NOTEMPTY) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use rustix::fs::mkdirat;

    use super::*;

    const LEVELS: usize = 20_000;

    #[test]
    fn what_is_nested_deeper_than_a_stack_goes() {
        let root = tempfile::tempdir().unwrap();
        let top = root.path().join("top");
        fs::create_dir(&top).unwrap();
        let mut dir = take(CWD, &top).unwrap();
        for level in 0..LEVELS {
            // Names as those that things are moved to.
            drop(openat(&dir, "1", OFlags::CREATE | OFlags::RDWR, Mode::RWXU).unwrap());
            mkdirat(&dir, "2", Mode::RWXU).unwrap();
            if level % 100 == 0 {
                mkdirat(&dir, "0", Mode::RWXU).unwrap();
                mkdirat(take(&dir, "0").unwrap(), "3", Mode::RWXU).unwrap();
            }
            dir = take(&dir, "2").unwrap();
        }
        drop(dir);
        let stack = std::thread::Builder::new().stack_size(128 << 10);
        stack.spawn(move || remove_all(&top)).unwrap().join().unwrap().unwrap();
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
    }

    #[test]
    fn many_files_go_and_what_links_lead_to_stays() {
        let root = tempfile::tempdir().unwrap();
        let [outside, top] = ["outside", "top"].map(|name| root.path().join(name));
        let deep = top.join("a/b/c");
        fs::create_dir_all(&deep).unwrap();
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("file"), "kept").unwrap();
        let before = fs::metadata(&outside).unwrap().permissions();
        for dir in [&top, &deep] {
            symlink(&outside, dir.join("link")).unwrap();
            symlink(outside.join("file"), dir.join("file")).unwrap();
            symlink("../..", dir.join("up")).unwrap();
            for number in 0..3000 {
                fs::write(dir.join(format!("a file of number {number}")), "").unwrap();
            }
        }
        let link = root.path().join("link");
        symlink(&outside, &link).unwrap();
        if geteuid().is_root() {
            fs::set_permissions(&deep, fs::Permissions::from_mode(0o000)).unwrap();
            std::os::unix::fs::chown(&deep, Some(12345), Some(12345)).unwrap();
        }
        for gone in [&top, &link, &root.path().join("none")] {
            remove_all(gone).unwrap();
            assert!(fs::symlink_metadata(gone).is_err(), "{}", gone.display());
        }
        assert_eq!(fs::read_to_string(outside.join("file")).unwrap(), "kept");
        assert_eq!(fs::metadata(&outside).unwrap().permissions(), before);
    }
}
