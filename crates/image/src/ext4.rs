//! A directory tree as an ext4 image that is mounted read-only by many VMs at once.

use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use crate::error::{ImageError, cannot};

const BLOCK: u64 = 4096;
const INODE: u64 = 256;
/// ext4's reserved inodes.
const RESERVED_INODES: u64 = 11;
/// Blocks of one group, each with two bitmaps; `man 5 ext4`.
const GROUP_BLOCKS: u64 = 8 * BLOCK;
const LABEL: &str = "manta-rootfs";

/// What a tree takes on disk.
#[derive(Debug, Default, PartialEq, Eq)]
struct Usage {
    inodes: u64,
    blocks: u64,
}

/// The command that makes `image` of `tree`. Same recipe, same identity: `recipe` is a hash in hexadecimal
/// digits, of which the file system's UUID is made.
///
/// No journal, no room for growth and none kept for root, because nothing is ever written. No checksums of
/// metadata: they would be computed anew in each VM, and the host's file is what has to be trusted anyway.
pub(crate) fn mke2fs(tree: &Path, image: &Path, recipe: &str) -> Result<Command, ImageError> {
    let mut usage = Usage::default();
    add_usage(tree, &mut usage)?;
    let inodes = usage.inodes + RESERVED_INODES;
    let uuid = |from: &str| {
        format!("{}-{}-4{}-8{}-{}", &from[..8], &from[8..12], &from[13..16], &from[17..20], &from[20..32])
    };
    let features = "^has_journal,^resize_inode,^metadata_csum";
    let hash_seed = uuid(&recipe[32..]);
    let mut mke2fs = Command::new("mke2fs");
    mke2fs
        .args([
            "-q",
            "-t",
            "ext4",
            "-b",
            &BLOCK.to_string(),
            "-I",
            &INODE.to_string(),
            "-m",
            "0",
            "-L",
            LABEL,
        ])
        .args(["-O", features, "-U", &uuid(recipe), "-E", &format!("hash_seed={hash_seed},root_owner=0:0")])
        .args(["-N", &inodes.to_string(), "-d"])
        .args([tree, image])
        .arg(blocks_for(&usage, inodes).to_string())
        // The file system's own times; e2fsprogs before 1.47.1 has no SOURCE_DATE_EPOCH.
        .env("E2FSPROGS_FAKE_TIME", "1");
    Ok(mke2fs)
}

/// Size of an image for this content, in blocks: what mke2fs adds is small, and known but for where it rounds
/// up.
fn blocks_for(usage: &Usage, inodes: u64) -> u64 {
    let content = usage.blocks + (inodes * INODE).div_ceil(BLOCK);
    let groups = content.div_ceil(GROUP_BLOCKS) + 1;
    // Two bitmaps a group, an inode table rounded up to whole blocks, and copies of the group descriptors.
    content + groups * 8 + content / 64 + 1024
}

fn add_usage(path: &Path, usage: &mut Usage) -> Result<(), ImageError> {
    let meta = path.symlink_metadata().map_err(cannot("read", path))?;
    usage.inodes += 1;
    usage.blocks += blocks_of(&meta);
    if meta.is_dir() {
        for entry in fs::read_dir(path).map_err(cannot("list", path))? {
            add_usage(&entry.map_err(cannot("list", path))?.path(), usage)?;
        }
    }
    Ok(())
}

fn blocks_of(meta: &Metadata) -> u64 {
    // A short link's target is kept in its inode.
    const INLINE_LINK: u64 = 60;
    if meta.is_symlink() && meta.size() < INLINE_LINK {
        0
    } else {
        meta.size().div_ceil(BLOCK).max(u64::from(meta.is_dir()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_is_counted_in_whole_blocks() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("empty"), "").unwrap();
        fs::write(dir.path().join("block"), [1; 4096]).unwrap();
        fs::write(dir.path().join("more"), [1; 4097]).unwrap();
        std::os::unix::fs::symlink("block", dir.path().join("link")).unwrap();
        let mut usage = Usage::default();
        add_usage(dir.path(), &mut usage).unwrap();
        assert_eq!(usage, Usage { inodes: 5, blocks: 1 + 1 + 2 });
    }

    #[test]
    fn an_image_holds_its_tree_and_is_the_same_each_time() {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("tree");
        fs::create_dir_all(tree.join("deep/er")).unwrap();
        fs::write(tree.join("deep/er/file"), vec![7; 3 << 20]).unwrap();
        let recipe = "0123456789abcdef".repeat(4);
        let images = ["one", "two"].map(|name| dir.path().join(name));
        for image in &images {
            let made = mke2fs(&tree, image, &recipe).unwrap().output().unwrap();
            assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        }
        assert!(fs::read(&images[0]).unwrap() == fs::read(&images[1]).unwrap());
        let check = Command::new("e2fsck").args(["-f", "-n"]).arg(&images[0]).output().unwrap();
        assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stdout));
        let listed =
            Command::new("debugfs").args(["-R", "stat /deep/er/file"]).arg(&images[0]).output().unwrap();
        assert!(String::from_utf8_lossy(&listed.stdout).contains("Size: 3145728"));
    }
}
