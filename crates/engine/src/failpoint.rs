//! Named steps at which a test has the server kill itself, to see what the next one makes of what is left. Always
//! compiled in: a step that nobody watches costs one relaxed load.
//!
//! `MANTA_FAILPOINT=NAME` kills the server when it reaches that step, `NAME:N` when it does for the Nth time. For
//! tests only.

use std::str::FromStr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use rustix::process::{Signal, getpid, kill_process};

/// The setting.
pub const VARIABLE: &str = "MANTA_FAILPOINT";

macro_rules! failpoints {
    ($($(#[$doc:meta])* $step:ident = $name:literal,)*) => {
        /// A step.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) enum Failpoint {
            $($(#[$doc])* $step,)*
        }

        const ALL: &[(&str, Failpoint)] = &[$(($name, Failpoint::$step),)*];
    };
}

failpoints! {
    /// A sandbox that will boot is in the journal; nothing is made.
    BootJournaled = "boot.journaled",
    /// Its directory and disk are there.
    BootDisk = "boot.disk",
    /// Its VMM runs; the journal does not know of that.
    BootSpawned = "boot.spawned",
    /// Its guest runs.
    BootStarted = "boot.started",
    /// Its guest is adopted.
    BootAdopted = "boot.adopted",
    /// The journal says that it is handed out; nobody was told.
    BootReady = "boot.ready",
    /// As of one that boots, for one that is restored when it is asked for.
    RestoreJournaled = "restore.journaled",
    RestoreDisk = "restore.disk",
    RestoreSpawned = "restore.spawned",
    RestoreStarted = "restore.started",
    RestoreAdopted = "restore.adopted",
    RestoreReady = "restore.ready",
    /// As of one that is restored, for one that is to wait.
    RefillJournaled = "refill.journaled",
    RefillDisk = "refill.disk",
    RefillSpawned = "refill.spawned",
    RefillStarted = "refill.started",
    RefillAdopted = "refill.adopted",
    /// It has run its commands, and rests.
    RefillRests = "refill.rests",
    /// It joins those that wait.
    RefillWaits = "refill.waits",
    /// One that waited was taken; the journal does not know of that.
    ClaimTaken = "claim.taken",
    /// Its guest runs again.
    ClaimRoused = "claim.roused",
    /// The journal says that it is handed out; nobody was told.
    ClaimReady = "claim.ready",
    /// The directory of a new snapshot is there.
    SnapshotDrafted = "snapshot.drafted",
    /// The agent is silent.
    SnapshotParked = "snapshot.parked",
    /// The guest stands still, its disk is being cloned.
    SnapshotPaused = "snapshot.paused",
    /// All is saved, the guest runs on, the agent is still silent.
    SnapshotSaved = "snapshot.saved",
    /// The agent speaks again.
    SnapshotResumed = "snapshot.resumed",
    /// The manifest is written.
    SnapshotSealed = "snapshot.sealed",
    /// It has its name; nobody was told.
    SnapshotNamed = "snapshot.named",
    /// A snapshot has lost its name, its files are there.
    DeleteBuried = "delete.buried",
    /// Its files are gone; nobody was told.
    DeleteRemoved = "delete.removed",
    /// The journal says that a sandbox is being destroyed.
    DestroyJournaled = "destroy.journaled",
    /// Its VMM is dead.
    DestroyKilled = "destroy.killed",
    /// Its files are gone.
    DestroyFiles = "destroy.files",
    /// The journal has forgotten it; nobody was told.
    DestroyForgotten = "destroy.forgotten",
    /// A sandbox is known to have failed; the journal does not know of that.
    CrashNoticed = "crash.noticed",
    /// It does; nothing is removed.
    CrashJournaled = "crash.journaled",
    /// The journal was read.
    RecoverOpened = "recover.opened",
    /// The network of what is not taken back is gone.
    RecoverNetwork = "recover.network",
    /// A sandbox was taken back.
    RecoverAdopted = "recover.adopted",
    /// A VMM that was left behind is dead.
    RecoverKilled = "recover.killed",
    /// Its files are gone.
    RecoverFiles = "recover.files",
    /// The journal has forgotten it.
    RecoverForgotten = "recover.forgotten",
}

/// How a sandbox comes to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    Boot,
    Restore,
    /// Ahead of time.
    Refill,
}

/// How far it is on each of these ways.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    Journaled,
    Disk,
    Spawned,
    Started,
    Adopted,
}

impl Way {
    /// Says that a step of this way is reached.
    pub(crate) fn reached(self, stage: Stage) {
        use Failpoint as At;
        let [boot, restore, refill] = match stage {
            Stage::Journaled => [At::BootJournaled, At::RestoreJournaled, At::RefillJournaled],
            Stage::Disk => [At::BootDisk, At::RestoreDisk, At::RefillDisk],
            Stage::Spawned => [At::BootSpawned, At::RestoreSpawned, At::RefillSpawned],
            Stage::Started => [At::BootStarted, At::RestoreStarted, At::RefillStarted],
            Stage::Adopted => [At::BootAdopted, At::RestoreAdopted, At::RefillAdopted],
        };
        reached(match self {
            Self::Boot => boot,
            Self::Restore => restore,
            Self::Refill => refill,
        });
    }
}

/// What the setting asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Armed {
    at: Failpoint,
    /// How often it is reached before that.
    passes: u32,
}

static WATCHED: AtomicBool = AtomicBool::new(false);
static ARMED: OnceLock<(Armed, AtomicU32)> = OnceLock::new();

/// The names of all steps.
#[must_use]
pub fn failpoints() -> Vec<&'static str> {
    ALL.iter().map(|(name, _)| *name).collect()
}

impl FromStr for Armed {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, count) = text.split_once(':').unwrap_or((text, "1"));
        let known = ALL.iter().find(|(known, _)| *known == name);
        let (_, at) =
            known.ok_or_else(|| format!("there is no step {name:?}; `manta failpoints` lists them"))?;
        let count = count.parse::<u32>().ok().filter(|count| *count > 0);
        let count = count.ok_or("what follows the colon is how often the step is reached, at least 1")?;
        Ok(Self { at: *at, passes: count - 1 })
    }
}

impl Armed {
    /// From now on; for the whole process, and only the first time.
    pub fn arm(self) {
        let _ = ARMED.set((self, AtomicU32::new(0)));
        WATCHED.store(true, Ordering::Release);
    }
}

/// Says that a step is reached.
#[inline]
pub(crate) fn reached(step: Failpoint) {
    if WATCHED.load(Ordering::Relaxed) {
        watched(step);
    }
}

#[cold]
fn watched(step: Failpoint) {
    let Some((armed, passed)) = ARMED.get() else { return };
    if armed.at == step && passed.fetch_add(1, Ordering::Relaxed) >= armed.passes {
        // As from outside: nothing of this process runs on.
        let _ = kill_process(getpid(), Signal::KILL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_watched_for_by_its_name() {
        for (name, at) in ALL {
            assert_eq!(name.parse(), Ok(Armed { at: *at, passes: 0 }));
        }
        assert_eq!("claim.ready:3".parse(), Ok(Armed { at: Failpoint::ClaimReady, passes: 2 }));
        for bad in ["", "claim", "claim.ready:", "claim.ready:0", "claim.ready:x"] {
            assert!(bad.parse::<Armed>().is_err(), "{bad}");
        }
        let mut names = failpoints();
        names.dedup();
        assert_eq!(names.len(), ALL.len());
    }
}
