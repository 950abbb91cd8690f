//! `manta doctor`: what the server needs of this machine, whether it is there, and what to do if not.
//! Changes nothing: what it tries, it tries in namespaces and files of its own.

mod checks;
mod vmms;

use std::io;
use std::path::Path;

use clap::Args;
use serde::Serialize;

use crate::args::ServerArgs;

/// Arguments of `manta doctor`.
#[derive(Debug, Clone, Args)]
pub struct DoctorArgs {
    /// Print one JSON object instead of text
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    settings: ServerArgs,
}

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
enum Level {
    /// As it should be.
    Ok,
    /// The server works, something is missing or slower.
    Warning,
    /// The server cannot work.
    Error,
}

/// One thing looked at.
#[derive(Debug, Clone, Serialize)]
struct Finding {
    check: &'static str,
    level: Level,
    found: String,
    /// What to do; empty when all is well.
    #[serde(skip_serializing_if = "String::is_empty")]
    advice: String,
}

impl Finding {
    fn ok(check: &'static str, found: impl Into<String>) -> Self {
        Self { check, level: Level::Ok, found: found.into(), advice: String::new() }
    }

    fn warning(check: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { check, level: Level::Warning, found: found.into(), advice: advice.into() }
    }

    fn error(check: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { check, level: Level::Error, found: found.into(), advice: advice.into() }
    }
}

/// The whole account, as `--json` prints it.
#[derive(Debug, Serialize)]
struct Report {
    /// The worst level found.
    status: Level,
    /// The VMM the server would choose; absent when none can be used.
    vmm: Option<String>,
    /// What the KVM probe measured.
    kvm: manta_vmm::KvmProbe,
    findings: Vec<Finding>,
}

/// Looks at everything and prints it; true when the server can work.
///
/// # Errors
/// Only when standard output cannot be written.
pub fn doctor(args: &DoctorArgs) -> io::Result<bool> {
    let kvm = manta_vmm::probe_kvm();
    let (vmm, mut findings) = vmms::check(&args.settings, &kvm);
    findings.extend(checks::all(&args.settings));
    let status = findings.iter().map(|finding| finding.level).max().unwrap_or(Level::Ok);
    let report = Report { status, vmm, kvm, findings };
    let mut out = io::stdout().lock();
    if args.json {
        serde_json::to_writer_pretty(&mut out, &report)?;
        io::Write::write_all(&mut out, b"\n")?;
    } else {
        print(&mut out, &report)?;
    }
    Ok(status < Level::Error)
}

fn print(out: &mut impl io::Write, report: &Report) -> io::Result<()> {
    for finding in &report.findings {
        let mark = match finding.level {
            Level::Ok => "ok     ",
            Level::Warning => "warning",
            Level::Error => "ERROR  ",
        };
        writeln!(out, "{mark}  {:<18} {}", finding.check, finding.found)?;
        if !finding.advice.is_empty() {
            writeln!(out, "         {:<18} → {}", "", finding.advice)?;
        }
    }
    match (&report.vmm, report.status) {
        (Some(vmm), Level::Ok) => writeln!(out, "\nAll is well. Sandboxes would run on {vmm}."),
        (Some(vmm), Level::Warning) => writeln!(out, "\nThe server works, on {vmm}; see the warnings."),
        _ => writeln!(out, "\nThe server cannot work here until the errors are mended."),
    }
}

/// Where the work directory is or will be: it may not exist yet.
fn existing(work_dir: &Path) -> Option<&Path> {
    work_dir.ancestors().find(|dir| dir.is_dir())
}

/// An error and its causes, on one line.
fn chain(error: &dyn std::error::Error) -> String {
    std::iter::successors(Some(error), |error| error.source())
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(": ")
}
