//! Snapshots, with a guest that counts in its memory.

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use manta_vmm::{MicroVm, Origin, SnapshotFiles, VmmError};
use rustix::process::{Pid, Signal, kill_process};

use crate::ground::Ground;
use crate::guest::{COUNT, GREETING, Then, kernel};
use crate::{spawn, within};

/// A counting VM and where it lives. What it printed begins where its snapshot was taken.
struct Counter {
    ground: Ground,
    vm: Box<dyn MicroVm>,
    booted: bool,
}

impl Counter {
    async fn spawn(kernel: &Path, origin: &Origin) -> Result<Self, VmmError> {
        let ground = Ground::new();
        let start = Instant::now();
        let vm = spawn(&ground, kernel, Then::Count, origin).await?;
        println!("spawn to QMP ready: {:?}", start.elapsed());
        Ok(Self { ground, vm, booted: *origin == Origin::Boot })
    }

    async fn start(kernel: &Path, origin: &Origin) -> Self {
        let counter = Self::spawn(kernel, origin).await.unwrap();
        let start = Instant::now();
        within(counter.vm.start()).await.unwrap();
        println!("start: {:?}", start.elapsed());
        counter
    }

    fn files(&self) -> SnapshotFiles {
        SnapshotFiles { state: self.ground.path("state"), memory: self.ground.path("memory") }
    }

    /// Saves it; gives what it had printed by then.
    async fn save(&self) -> (SnapshotFiles, String) {
        let files = self.files();
        let mut printed = String::new();
        let look = async {
            printed = self.printed().await;
            Ok(())
        };
        let pause = within(self.vm.snapshot(&files, Box::pin(look))).await.unwrap();
        let state = fs::metadata(&files.state).unwrap();
        let memory = fs::metadata(&files.memory).unwrap();
        println!("pause: {pause:?}; state: {} B, memory: {} KiB", state.len(), memory.blocks() / 2);
        assert_eq!((state.mode() & 0o777, memory.mode() & 0o777), (0o444, 0o444));
        assert_eq!(memory.len(), 128 << 20);
        assert!(memory.blocks() * 512 < 64 << 20, "sparse: {} blocks", memory.blocks());
        assert!(!self.ground.vm_dir().join("snapshot.state").exists());
        (files, printed)
    }

    async fn printed(&self) -> String {
        let printed = self.vm.console().await;
        if !self.booted {
            return printed;
        }
        // The kernel may have had its say before.
        printed.split_once(GREETING).map(|(_, counts)| counts.to_owned()).unwrap_or_default()
    }

    /// Waits until it has printed as many whole counts, after `before`; there is none missing.
    async fn count(&self, before: &str, counts: usize) {
        let mut look = tokio::time::interval(Duration::from_millis(20));
        within(async {
            while checked(&format!("{before}{}", self.printed().await)) < counts {
                look.tick().await;
            }
        })
        .await;
    }

    async fn end(self) -> Ground {
        within(self.vm.kill()).await.unwrap();
        self.ground
    }
}

/// How many counts these are: from one on, each once.
fn checked(printed: &str) -> usize {
    let (whole, _cut) = printed.rsplit_once('\n').unwrap_or_default();
    let digit = |letter: u8| usize::from(letter - b'a');
    for (before, line) in whole.lines().enumerate() {
        assert_eq!(line.len(), COUNT, "{line:?} after {before}");
        let count = line.bytes().fold(0, |count, letter| 16 * count + digit(letter));
        assert_eq!(count, before + 1, "{printed}");
    }
    whole.lines().count()
}

fn hash(files: &SnapshotFiles) -> u64 {
    let mut hasher = DefaultHasher::new();
    fs::read(&files.memory).unwrap().hash(&mut hasher);
    fs::read(&files.state).unwrap().hash(&mut hasher);
    hasher.finish()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_saved_guest_goes_on_and_so_do_two_clones_of_it() {
    let Some(kernel) = kernel() else { return };
    let original = Counter::start(&kernel, &Origin::Boot).await;
    original.count("", 30).await;
    let (files, printed) = original.save().await;
    let saved = hash(&files);
    let now = checked(&printed);
    assert!(now >= 30, "{now}");
    let origin = Origin::Snapshot(files.clone());
    let (a, b) = tokio::join!(Counter::start(&kernel, &origin), Counter::start(&kernel, &origin));
    tokio::join!(a.count(&printed, now + 40), b.count(&printed, now + 20), original.count("", now + 40));
    within(b.vm.kill()).await.unwrap();
    a.count(&printed, now + 60).await;
    assert_eq!(hash(&files), saved, "clones do not write to their snapshot");
    for counter in [a, b, original] {
        counter.end().await.finish();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_guest_is_saved_with_what_it_wrote_since_to_any_depth() {
    let Some(kernel) = kernel() else { return };
    let mut counter = Counter::start(&kernel, &Origin::Boot).await;
    let mut printed = String::new();
    let mut counts = 0;
    for depth in 1..=3 {
        counts += 30;
        counter.count(&printed, counts).await;
        let (files, more) = counter.save().await;
        printed.push_str(&more);
        let saved = hash(&files);
        let next = Counter::start(&kernel, &Origin::Snapshot(files.clone())).await;
        next.count(&printed, checked(&printed) + 10).await;
        assert_eq!(hash(&files), saved, "depth {depth}");
        // Its files go with it; the clone does not need their names, not even to be saved.
        std::mem::replace(&mut counter, next).end().await.finish();
        counts = checked(&printed);
    }
    counter.count(&printed, counts + 30).await;
    counter.end().await.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_that_is_none_is_refused_in_qemus_words() {
    let Some(kernel) = kernel() else { return };
    let ground = Ground::new();
    let files = SnapshotFiles {
        state: ground.file("state", b"this is not the state of a machine"),
        memory: ground.file("memory", b""),
    };
    fs::OpenOptions::new().write(true).open(&files.memory).unwrap().set_len(128 << 20).unwrap();
    let counter = Counter::spawn(&kernel, &Origin::Snapshot(files.clone())).await.unwrap();
    let error = within(counter.vm.start()).await.unwrap_err();
    let VmmError::Ended(exit) = &error else { panic!("{error:?}") };
    assert!(exit.status.contains("exit status: 1"), "{exit:?}");
    assert!(exit.console.contains("migration"), "{exit:?}");
    counter.ground.finish();

    fs::OpenOptions::new().write(true).open(&files.memory).unwrap().set_len(1 << 20).unwrap();
    let Err(error) = Counter::spawn(&kernel, &Origin::Snapshot(files)).await else { panic!("memory cut") };
    assert!(matches!(&error, VmmError::Ended(exit) if exit.console.contains("size")), "{error:?}");
    ground.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_goes_on_whatever_fails_while_it_is_saved() {
    let Some(kernel) = kernel() else { return };
    let original = Counter::start(&kernel, &Origin::Boot).await;
    original.count("", 10).await;
    let (files, printed) = original.save().await;
    let clone = Counter::start(&kernel, &Origin::Snapshot(files)).await;
    for (counter, before) in [(&original, ""), (&clone, &printed)] {
        counter.count(before, checked(&printed) + 10).await;
        let failing = SnapshotFiles {
            state: counter.ground.path("other-state"),
            memory: counter.ground.path("other-memory"),
        };
        let full = async { Err(io::ErrorKind::StorageFull.into()) };
        let error = within(counter.vm.snapshot(&failing, Box::pin(full))).await.unwrap_err();
        let VmmError::WhilePaused(source) = &error else { panic!("{error:?}") };
        assert_eq!(source.kind(), io::ErrorKind::StorageFull);
        let fine = async { Ok(()) };
        let error = within(counter.vm.snapshot(&failing, Box::pin(fine))).await.unwrap_err();
        assert!(matches!(&error, VmmError::Save { path, .. } if *path == failing.memory), "{error:?}");
        // QEMU cannot write there.
        let planted = counter.ground.vm_dir().join("snapshot.state");
        std::os::unix::fs::symlink(counter.ground.path("disk.of-root"), &planted).unwrap();
        fs::remove_file(&failing.memory).unwrap();
        let fine = async { Ok(()) };
        let error = within(counter.vm.snapshot(&failing, Box::pin(fine))).await.unwrap_err();
        assert!(matches!(&error, VmmError::Qmp { command: "xen-save-devices-state", .. }), "{error:?}");
        assert!(!planted.is_symlink(), "nothing is left in the VM's directory");
        counter.count(before, checked(&format!("{before}{}", counter.printed().await)) + 10).await;
    }
    for counter in [clone, original] {
        counter.end().await.finish();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vmm_killed_while_it_saves_is_reported_as_ended() {
    let Some(kernel) = kernel() else { return };
    let original = Counter::start(&kernel, &Origin::Boot).await;
    original.count("", 10).await;
    let (files, _) = original.save().await;
    let clone = Counter::start(&kernel, &Origin::Snapshot(files)).await;
    for counter in [&original, &clone] {
        let files = SnapshotFiles {
            state: counter.ground.path("other-state"),
            memory: counter.ground.path("other-memory"),
        };
        let pid = Pid::from_raw(i32::try_from(counter.vm.pid()).unwrap()).unwrap();
        let kill = async { Ok(kill_process(pid, Signal::KILL)?) };
        let start = Instant::now();
        let error = within(counter.vm.snapshot(&files, Box::pin(kill))).await.unwrap_err();
        assert!(matches!(&error, VmmError::Ended(exit) if exit.status.contains("SIGKILL")), "{error:?}");
        assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
        assert!(!counter.ground.vm_dir().join("snapshot.state").exists());
        assert!(!files.state.exists());
    }
    for counter in [clone, original] {
        counter.end().await.finish();
    }
}
