//! `manta`: the one binary people run. Parses the command line and hands over.

use std::io::Write as _;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Isolated Linux sandboxes, one microVM each.
#[derive(Debug, Parser)]
#[command(name = "manta", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve sandboxes over HTTP until SIGINT or SIGTERM
    Server(Box<manta_server::ServerArgs>),
    /// Measure the time from creating a sandbox to the output of its first command
    Bench(manta_bench::BenchCommand),
    /// Measure the time from restoring a snapshot to the output of the first command
    BenchRestore(manta_bench::restore::RestoreArgs),
    /// Build the guest's kernel and root file system
    Image(manta_image::ImageArgs),
    /// List, delete and clean up snapshots on the disk, without a server
    Snapshot(manta_server::SnapshotArgs),
    /// Make, list and revoke API keys; a server may be running
    Key(manta_server::KeyArgs),
    /// List the steps at which a test can have the server kill itself (`MANTA_FAILPOINT`)
    #[command(hide = true)]
    Failpoints,
    /// Check everything the server needs, and say what to do about each finding
    Doctor(Box<manta_server::DoctorArgs>),
}

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Server(args) => report(manta_server::main(*args)),
        Command::Bench(args) => manta_bench::main(args),
        Command::BenchRestore(args) => manta_bench::restore::main(args),
        Command::Image(args) => report(manta_image::main(args)),
        Command::Snapshot(args) => report(manta_server::snapshot(&args)),
        Command::Key(args) => report(manta_server::key(&args)),
        Command::Failpoints => {
            let _ = writeln!(std::io::stdout(), "{}", manta_server::failpoints().join("\n"));
            ExitCode::SUCCESS
        }
        Command::Doctor(args) => match manta_server::doctor(&args) {
            Ok(true) => ExitCode::SUCCESS,
            Ok(false) => ExitCode::FAILURE,
            Err(error) => report(Err(error)),
        },
    }
}

/// An error with its causes, one a line. Whoever should read it may be gone.
fn report<E: std::error::Error>(outcome: Result<(), E>) -> ExitCode {
    let Err(error) = outcome else { return ExitCode::SUCCESS };
    let mut text = format!("manta: {error}\n");
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!("  because: {error}\n"));
        cause = error.source();
    }
    let _ = std::io::stderr().write_all(text.as_bytes());
    ExitCode::FAILURE
}
