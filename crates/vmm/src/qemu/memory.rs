//! A guest's memory, as the file that QEMU maps: shared with it when the guest was booted; private to it,
//! over the file of its snapshot, when restored. Copies it to a file of its own. Blocking.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use manta_host::disk::{CloneMode, clone_file};
use rustix::fs::{
    FileType, MemfdFlags, Mode, OFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, fstat, ftruncate,
    memfd_create, open,
};

/// Of x86-64, bytes.
const PAGE: u64 = 4096;
/// Entries of the page map read at once: those of 32 MiB.
const ENTRIES: usize = 8192;
/// Pages copied at once: 1 MiB.
const RUN: u64 = 256;

/// A page is in memory (63) or in swap (62), or a file's (61): Linux, `admin-guide/mm/pagemap`.
const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;
const OF_FILE: u64 = 1 << 61;

/// What QEMU maps is its own affair: no more is read of the list than a well-behaved one has.
const MAX_MAPS: u64 = 1 << 20;

/// Memory keeps its size for good.
const SEALS: SealFlags = SealFlags::GROW.union(SealFlags::SHRINK).union(SealFlags::SEAL);

/// What QEMU maps. Kept open: a snapshot may be deleted while VMs restored from it run.
#[derive(Debug)]
pub(super) enum Memory {
    /// All that the guest writes comes to be in this file.
    Shared(File),
    /// What the guest writes is QEMU's alone; this file never changes.
    Private(File),
}

impl Memory {
    /// Empty memory in a file without a name.
    pub(super) fn empty(mib: u32) -> io::Result<Self> {
        let file = memfd_create("guest-memory", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        ftruncate(&file, u64::from(mib) << 20)?;
        // QEMU is not trusted, and a snapshot copies the whole length.
        fcntl_add_seals(&file, SEALS)?;
        Ok(Self::Shared(file.into()))
    }

    /// That of a QEMU which another server has spawned, of `len` bytes. As for [`Process::open`], it must be known to
    /// live after this.
    ///
    /// QEMU is not trusted: it may have any file under any descriptor, also one that it cannot read. But what it has
    /// mapped it can read.
    pub(super) fn of_process(pid: u32, len: u64, restored: bool) -> io::Result<Self> {
        let maps = BufReader::new(File::open(format!("/proc/{pid}/maps"))?.take(MAX_MAPS));
        for line in maps.lines() {
            let Some(found) = Mapping::parse(&line?) else { continue };
            if found.private == restored
                && found.end - found.start == len
                && let Some(file) = found.file(pid, len)?
            {
                return Self::of_mapped(file, restored);
            }
        }
        Err(io::Error::new(io::ErrorKind::NotFound, "no file of the memory's size is mapped"))
    }

    fn of_mapped(file: File, restored: bool) -> io::Result<Self> {
        if restored {
            return Ok(Self::Private(file));
        }
        if !fcntl_get_seals(&file)?.contains(SEALS) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "what is mapped could change its size"));
        }
        Ok(Self::Shared(file))
    }

    /// The file, for QEMU.
    pub(super) fn fd(&self) -> io::Result<OwnedFd> {
        let (Self::Shared(file) | Self::Private(file)) = self;
        file.as_fd().try_clone_to_owned()
    }

    /// The path of the open file, also when it has no name any more.
    pub(super) fn path(&self) -> PathBuf {
        let (Self::Shared(file) | Self::Private(file)) = self;
        format!("/proc/self/fd/{}", file.as_raw_fd()).into()
    }
}

/// Copies what is data, sparsely; shares the blocks if it can.
pub(super) fn copy(from: &Path, to: &Path) -> io::Result<()> {
    clone_file(from, to, CloneMode::Auto).map(drop).map_err(io::Error::other)
}

/// The memory of a QEMU process that was restored, seen from outside.
#[derive(Debug)]
pub(super) struct Process {
    maps: File,
    pagemap: File,
    mem: File,
    inode: u64,
    len: u64,
}

impl Process {
    /// The process must be known to live after this: the files are that process's for good then, whoever gets
    /// its number.
    pub(super) fn open(pid: u32, snapshot: &File) -> io::Result<Self> {
        let open = |name: &str| File::open(format!("/proc/{pid}/{name}"));
        let metadata = snapshot.metadata()?;
        let (inode, len) = (metadata.ino(), metadata.len());
        Ok(Self { maps: open("maps")?, pagemap: open("pagemap")?, mem: open("mem")?, inode, len })
    }

    /// Writes the pages that the process has of its own over a copy of the snapshot's. The guest must be
    /// paused. Gives their number.
    pub(super) fn copy_own_pages(&self, to: &Path) -> io::Result<u64> {
        let to = OpenOptions::new().write(true).open(to)?;
        let start = self.mapping()?;
        let mut entries = vec![0; ENTRIES * 8];
        let mut pages = 0;
        for first in (0..self.len / PAGE).step_by(ENTRIES) {
            let here = (self.len / PAGE - first).min(ENTRIES as u64);
            let entries = &mut entries[..here as usize * 8];
            self.pagemap.read_exact_at(entries, (start / PAGE + first) * 8)?;
            for (begin, end) in own_runs(entries) {
                self.copy_run(&to, start, first + begin, first + end)?;
                pages += end - begin;
            }
        }
        Ok(pages)
    }

    fn copy_run(&self, to: &File, start: u64, mut page: u64, end: u64) -> io::Result<()> {
        let mut buffer = vec![0; (RUN.min(end - page) * PAGE) as usize];
        while page < end {
            let bytes = &mut buffer[..(RUN.min(end - page) * PAGE) as usize];
            self.mem.read_exact_at(bytes, start + page * PAGE)?;
            to.write_all_at(bytes, page * PAGE)?;
            page += RUN;
        }
        Ok(())
    }

    /// Where the process has the snapshot's file.
    fn mapping(&self) -> io::Result<u64> {
        let maps = BufReader::new((&self.maps).take(MAX_MAPS));
        for line in maps.lines() {
            if let Some(found) = Mapping::parse(&line?)
                && found.private
                && (found.end - found.start, found.inode) == (self.len, self.inode)
            {
                return Ok(found.start);
            }
        }
        Err(io::Error::new(io::ErrorKind::NotFound, "the snapshot's file is not mapped"))
    }
}

/// A mapping from the start of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Mapping {
    start: u64,
    end: u64,
    private: bool,
    /// Not the device: some file systems name another here than `stat` does.
    inode: u64,
}

impl Mapping {
    /// A line of `proc_pid_maps(5)`.
    fn parse(line: &str) -> Option<Self> {
        let mut fields = line.split_ascii_whitespace();
        let (start, end) = fields.next()?.split_once('-')?;
        let (mode, offset, _device, inode) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
        let hex = |text| u64::from_str_radix(text, 16).ok();
        let (start, end, inode) = (hex(start)?, hex(end)?, inode.parse().ok()?);
        let private = mode.ends_with('p');
        (start <= end && hex(offset)? == 0 && inode != 0).then_some(Self { start, end, private, inode })
    }

    /// The mapped file, if it is a regular one of `len` bytes. Opens no other, as that could have effects.
    fn file(&self, pid: u32, len: u64) -> io::Result<Option<File>> {
        // Needs CAP_SYS_ADMIN or CAP_CHECKPOINT_RESTORE in the initial user namespace: proc_pid_map_files(5).
        let link = format!("/proc/{pid}/map_files/{:x}-{:x}", self.start, self.end);
        let seen = open(&link, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
        let stat = fstat(&seen)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile || stat.st_size as u64 != len {
            return Ok(None);
        }
        File::open(format!("/proc/self/fd/{}", seen.as_raw_fd())).map(Some)
    }
}

/// The runs of pages that are the process's own, from the first up to before the second.
fn own_runs(entries: &[u8]) -> Vec<(u64, u64)> {
    let mut runs: Vec<(u64, u64)> = Vec::new();
    let (entries, _) = entries.as_chunks::<8>();
    for (page, entry) in (0..).zip(entries) {
        let entry = u64::from_ne_bytes(*entry);
        if entry & (PRESENT | SWAPPED) == 0 || entry & OF_FILE != 0 {
            continue;
        }
        match runs.last_mut() {
            Some((_, end)) if *end == page => *end += 1,
            _ => runs.push((page, page + 1)),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mappings_from_the_start_of_a_file_are_told_from_others() {
        let private = "7f0000000000-7f0010000000 rw-p 00000000 fe:00 1234    /vm/a b (deleted)";
        let (start, end, inode) = (0x7f00_0000_0000, 0x7f00_1000_0000, 1234);
        assert_eq!(Mapping::parse(private), Some(Mapping { start, end, private: true, inode }));
        let shared = "7f0000000000-7f0010000000 rw-s 00000000 00:01 1234 /memfd:guest-memory (deleted)";
        assert_eq!(Mapping::parse(shared), Some(Mapping { start, end, private: false, inode }));
        for other in [
            "7f0000000000-7f0010000000 rw-p 00001000 fe:00 1234 /vm/a",
            "7f0000000000-7f0010000000 rw-p 00000000 00:00 0 ",
            "7f0010000000-7f0000000000 rw-p 00000000 fe:00 1234 /vm/a",
            "7f0000000000-7f0010000000 rw-p",
            "",
        ] {
            assert_eq!(Mapping::parse(other), None, "{other}");
        }
    }

    #[test]
    fn own_pages_are_those_in_memory_or_swap_that_are_no_files() {
        let entries = [0, PRESENT, PRESENT | OF_FILE, PRESENT, SWAPPED, PRESENT, SWAPPED | OF_FILE, OF_FILE];
        let bytes: Vec<u8> = entries.iter().flat_map(|entry: &u64| entry.to_ne_bytes()).collect();
        assert_eq!(own_runs(&bytes), [(1, 2), (3, 6)]);
    }

    #[test]
    fn the_memory_of_a_booting_guest_has_its_size_for_good() {
        let memory = Memory::empty(8).unwrap();
        let file = OpenOptions::new().write(true).open(memory.path()).unwrap();
        assert_eq!(file.metadata().unwrap().len(), 8 << 20);
        assert!(file.set_len(1 << 30).is_err());
        assert!(file.set_len(0).is_err());
    }
}
