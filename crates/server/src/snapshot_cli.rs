//! `manta snapshot`: the snapshots of a work directory, without a server. Arguments and printing; the work is
//! the engine's.

use std::io::{self, Write};
use std::path::PathBuf;

use clap::{Args, Subcommand};
use manta_api::SnapshotId;
use manta_engine::{GcReport, LockedSnapshotDir, OfflineError, SavedSnapshot, SnapshotDir};
use thiserror::Error;

use crate::table::{lines, utc};

/// Arguments of `manta snapshot`.
#[derive(Debug, Args)]
pub struct SnapshotArgs {
    /// Directory for everything the server writes
    #[arg(
        long,
        env = "MANTA_WORK_DIR",
        value_name = "MANTA_WORK_DIR",
        default_value = "/var/lib/manta",
        global = true
    )]
    work_dir: PathBuf,
    #[command(subcommand)]
    command: SnapshotCommand,
}

#[derive(Debug, Subcommand)]
enum SnapshotCommand {
    /// List the snapshots, oldest first; a server may be running
    List {
        /// Print one JSON array instead of a table
        #[arg(long)]
        json: bool,
    },
    /// Delete snapshots; no server may be running
    Delete {
        /// The snapshots
        #[arg(required = true, value_name = "ID")]
        ids: Vec<SnapshotId>,
    },
    /// Remove what was half made, half removed or is damaged, and can never be restored; no server may be
    /// running
    Gc {
        /// Only say what would be removed
        #[arg(long)]
        dry_run: bool,
    },
}

/// Why `manta snapshot` failed.
#[derive(Debug, Error)]
pub enum SnapshotCliError {
    /// The snapshots could not be looked at or changed.
    #[error(transparent)]
    Snapshots(#[from] OfflineError),
    /// Some of it was not done.
    #[error("{}", .0.join("\nmanta: "))]
    Partly(Vec<String>),
    /// Standard output could not be written.
    #[error("cannot print")]
    Print(#[from] io::Error),
}

/// Runs `manta snapshot`.
///
/// # Errors
/// See [`SnapshotCliError`].
pub fn snapshot(args: &SnapshotArgs) -> Result<(), SnapshotCliError> {
    let dir = SnapshotDir::open(&args.work_dir)?;
    let mut out = io::stdout().lock();
    match &args.command {
        SnapshotCommand::List { json: true } => {
            let text = serde_json::to_string_pretty(&dir.list()?).map_err(io::Error::from)?;
            writeln!(out, "{text}")?;
        }
        SnapshotCommand::List { json: false } => write!(out, "{}", table(&dir.list()?))?,
        SnapshotCommand::Delete { ids } => delete(&mut out, &dir.lock()?, ids)?,
        SnapshotCommand::Gc { dry_run } => {
            let report = dir.lock()?.gc(*dry_run)?;
            write!(out, "{}", account(&report, *dry_run))?;
            if !report.problems.is_empty() {
                return Err(SnapshotCliError::Partly(report.problems));
            }
        }
    }
    Ok(())
}

/// Each that can be deleted is.
fn delete(out: &mut impl Write, dir: &LockedSnapshotDir, ids: &[SnapshotId]) -> Result<(), SnapshotCliError> {
    let mut problems = Vec::new();
    for id in ids {
        match dir.delete(id) {
            Ok(()) => writeln!(out, "deleted {id}")?,
            Err(error) => problems.push(error.to_string()),
        }
    }
    if problems.is_empty() { Ok(()) } else { Err(SnapshotCliError::Partly(problems)) }
}

/// Columns as wide as they need to be, what is wrong with a snapshot on a line below it.
fn table(snapshots: &[SavedSnapshot]) -> String {
    if snapshots.is_empty() {
        return "no snapshots\n".to_owned();
    }
    let mut rows =
        vec![["ID", "NAME", "CREATED", "SANDBOX", "VMM", "VCPUS", "MEMORY", "ON DISK"].map(str::to_owned)];
    rows.extend(snapshots.iter().map(row));
    let problems = snapshots.iter().map(|snapshot| snapshot.problem.as_deref());
    let mut text = String::new();
    for (line, problem) in lines(rows).iter().zip(std::iter::once(None).chain(problems)) {
        text.push_str(line);
        text.push('\n');
        if let Some(problem) = problem {
            text.push_str(&format!("  cannot be restored: {problem}\n"));
        }
    }
    text
}

fn row(snapshot: &SavedSnapshot) -> [String; 8] {
    let name = snapshot.name.clone().unwrap_or_else(|| "-".to_owned());
    let disk = mib(snapshot.disk_bytes.total());
    let [sandbox, vmm, vcpus, memory] = match &snapshot.machine {
        Some(machine) => [
            machine.sandbox_id.to_string(),
            format!("{} {}", machine.vmm, machine.vmm_version),
            machine.vcpus.to_string(),
            format!("{} MiB", machine.mem_mib),
        ],
        None => ["?"; 4].map(str::to_owned),
    };
    [snapshot.id.to_string(), name, utc(snapshot.created_unix_ms), sandbox, vmm, vcpus, memory, disk]
}

/// What a clean-up did, a line for each directory.
fn account(report: &GcReport, dry_run: bool) -> String {
    let (removed, freed) = if dry_run { ("would remove", "would free") } else { ("removed", "freed") };
    let mut text = String::new();
    for gone in &report.removed {
        text.push_str(&format!("{removed} {} ({}): {}\n", gone.path.display(), mib(gone.bytes), gone.reason));
    }
    let bytes = report.removed.iter().map(|gone| gone.bytes).sum();
    let noun = if report.removed.len() == 1 { "directory" } else { "directories" };
    text.push_str(&format!("{freed} {} in {} {noun}\n", mib(bytes), report.removed.len()));
    text
}

fn mib(bytes: u64) -> String {
    let tenths = bytes.saturating_mul(10) >> 20;
    format!("{}.{} MiB", tenths / 10, tenths % 10)
}

#[cfg(test)]
mod tests {
    use manta_api::SnapshotBytes;
    use manta_engine::{RemovedSnapshot, SavedMachine};

    use super::*;

    fn saved() -> SavedSnapshot {
        SavedSnapshot {
            id: "snap-0123456789abcdef0123".parse().unwrap(),
            name: Some("ready".to_owned()),
            created_unix_ms: 1_795_000_000_500,
            machine: Some(SavedMachine {
                sandbox_id: "sb-0123456789abcdef0123".parse().unwrap(),
                vmm: "qemu".to_owned(),
                vmm_version: "10.0.2".to_owned(),
                vcpus: 1,
                mem_mib: 256,
            }),
            disk_bytes: SnapshotBytes { state: 16_384, memory: 40 << 20, disk: 1 << 20 },
            problem: None,
        }
    }

    #[test]
    fn the_table_aligns_and_tells_what_is_wrong() {
        let broken = SavedSnapshot {
            name: None,
            machine: None,
            disk_bytes: SnapshotBytes::default(),
            problem: Some("its file manifest.json is not a manifest: EOF".to_owned()),
            ..saved()
        };
        let expected = "\
ID                         NAME   CREATED               \
    SANDBOX                  VMM          VCPUS  MEMORY   ON DISK
snap-0123456789abcdef0123  ready  2026-11-18T11:06:40Z  \
    sb-0123456789abcdef0123  qemu 10.0.2  1      256 MiB  41.0 MiB
snap-0123456789abcdef0123  -      2026-11-18T11:06:40Z  \
    ?                        ?            ?      ?        0.0 MiB
  cannot be restored: its file manifest.json is not a manifest: EOF
";
        assert_eq!(table(&[saved(), broken]), expected);
        assert_eq!(table(&[]), "no snapshots\n");
    }

    #[test]
    fn json_has_the_exact_figures() {
        let value = serde_json::to_value(saved()).unwrap();
        assert_eq!(value["disk_bytes"]["state"], 16_384);
        assert_eq!(value["sandbox_id"], "sb-0123456789abcdef0123");
        assert_eq!(value.get("problem"), None);
        assert_eq!(value.get("restorable"), None);
    }

    #[test]
    fn a_clean_up_is_accounted_for() {
        let removed = vec![RemovedSnapshot {
            path: "/w/snapshots/.new-x".into(),
            reason: "half made or half removed".to_owned(),
            bytes: 3 << 20,
        }];
        let report = GcReport { removed, problems: Vec::new() };
        let line = "/w/snapshots/.new-x (3.0 MiB): half made or half removed\n";
        assert_eq!(account(&report, false), format!("removed {line}freed 3.0 MiB in 1 directory\n"));
        assert_eq!(account(&report, true), format!("would remove {line}would free 3.0 MiB in 1 directory\n"));
    }
}
