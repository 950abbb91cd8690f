//! What is carried into the lab for one run: the programs, the guest artifacts and the job, as one ext4 disk
//! that is mounted at /srv/manta. The rootfs is a disk of its own, for its size.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use super::terminal;
use crate::firecracker::Firecracker;
use crate::process::run_quietly;
use crate::progress::Step;
use crate::{artifacts, place};

const INIT: &str = include_str!("init.sh");
const SYSTEM_TESTS: &str = include_str!("system-tests.sh");
const UNIT_TEST: &str = include_str!("unit-test.sh");
const UNIT: &str = include_str!("../../../docs/manta.service");
/// Room for the files of the run, beside what is carried in. Sparse.
const FREE_BYTES: u64 = 1 << 30;
const LOCK: &str = "lock";

/// What to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Job {
    /// Nothing: straight to the shell.
    Nothing,
    /// One half of the whole-system tests, by its name in `system-tests.sh`, and what comes with it.
    SystemTests(&'static str),
    /// A program and its arguments.
    Command(Vec<String>),
}

impl Job {
    fn runs_system_tests(&self) -> bool {
        match self {
            Self::Nothing => false,
            Self::SystemTests(_) => true,
            Self::Command(words) => words.iter().any(|word| word.contains("./system")),
        }
    }
}

/// The disks of a run, in a directory that goes with this value.
#[derive(Debug)]
pub(super) struct Payload {
    dir: TempDir,
    /// Held for as long as the directory is in use.
    _lock: File,
}

impl Payload {
    /// The directory, for the run's other files.
    pub(super) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The disk with the programs.
    pub(super) fn disk(&self) -> PathBuf {
        self.dir().join("payload.ext4")
    }
}

/// Collects everything into a new disk.
pub(super) fn make(job: &Job, keep: bool, firecracker: &Firecracker) -> Result<Payload> {
    // One after the other: what another has made and not locked yet would be taken for abandoned.
    static MAKING: Mutex<()> = Mutex::new(());
    let _making = MAKING.lock().unwrap_or_else(PoisonError::into_inner);
    let system_tests = job.runs_system_tests().then(artifacts::build_system_tests).transpose()?;
    let step = Step::begin("lab payload", "collecting programs and artifacts");
    let runs = place::ensure_dir(place::target().join("lab"))?;
    remove_abandoned(&runs);
    let dir = tempfile::Builder::new().prefix("run-").tempdir_in(&runs).context("cannot make a directory")?;
    let lock = File::create(dir.path().join(LOCK)).context("cannot make a lock file")?;
    lock.lock().context("cannot lock a new file")?;
    let tree = place::ensure_dir(dir.path().join("payload"))?;
    for name in ["lab", "out", "guest-artifacts"] {
        fs::create_dir(tree.join(name))?;
    }
    carry(&place::release("manta"), &tree.join("manta"))?;
    for name in ["vmlinux", "manta-agent"] {
        carry(&place::artifact(name), &tree.join("guest-artifacts").join(name))?;
    }
    for name in Firecracker::names() {
        carry(&firecracker.program(name), &tree.join(name))?;
    }
    if let Some(program) = system_tests {
        carry(&program, &tree.join("system"))?;
    }
    script(&tree.join("lab/init"), INIT)?;
    script(&tree.join("lab/system-tests"), SYSTEM_TESTS)?;
    script(&tree.join("lab/unit-test"), UNIT_TEST)?;
    fs::write(tree.join("lab/manta.service"), UNIT)?;
    fs::write(tree.join("lab/argv"), argv(job)?)?;
    if keep {
        fs::write(tree.join("lab/keep"), terminal::description())?;
    }

    let payload = Payload { dir, _lock: lock };
    let mib = (size(&tree)? + FREE_BYTES) >> 20;
    run_quietly(
        Command::new("mke2fs")
            .args(["-q", "-t", "ext4", "-O", "^has_journal", "-m", "0", "-d"])
            .args([&tree, &payload.disk()])
            .arg(format!("{mib}M")),
    )?;
    fs::remove_dir_all(&tree).context("cannot remove the payload's files")?;
    step.done("one disk");
    Ok(payload)
}

/// The job's words, each ended by a zero byte.
fn argv(job: &Job) -> Result<String> {
    let words: &[String] = match job {
        Job::Nothing => &["true".into()],
        Job::SystemTests(half) => &["/srv/manta/lab/system-tests".into(), (*half).to_owned()],
        Job::Command(words) => words,
    };
    if words.iter().any(|word| word.contains('\0')) {
        bail!("a command's words cannot hold zero bytes");
    }
    Ok(words.iter().flat_map(|word| [word, "\0"]).collect())
}

/// Removes the directories of runs that were killed; the kernel has released their locks.
fn remove_abandoned(runs: &Path) {
    for entry in fs::read_dir(runs).into_iter().flatten().flatten() {
        let abandoned = File::open(entry.path().join(LOCK)).is_ok_and(|lock| lock.try_lock().is_ok());
        if abandoned && let Err(error) = fs::remove_dir_all(entry.path()) {
            eprintln!("lab payload: cannot remove {}: {error}", entry.path().display());
        }
    }
}

/// A hard link where that works: the files are only read.
fn carry(from: &Path, to: &Path) -> Result<()> {
    fs::hard_link(from, to)
        .or_else(|_| fs::copy(from, to).map(drop))
        .with_context(|| format!("cannot carry {} into the lab", from.display()))
}

fn script(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
    Ok(())
}

fn size(dir: &Path) -> Result<u64> {
    let mut total = 0;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        total += if metadata.is_dir() { size(&entry.path())? } else { metadata.len() };
    }
    Ok(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_keeps_its_words() {
        let job = Job::Command(vec!["sh".into(), "-c".into(), "echo \"a b\"".into(), String::new()]);
        assert_eq!(argv(&job).unwrap(), "sh\0-c\0echo \"a b\"\0\0");
        assert!(argv(&Job::Command(vec!["a\0b".into()])).is_err());
    }
}
