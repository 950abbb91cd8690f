//! `cargo xtask`: set the machine up and run Manta (`up`), test everything (`test`), the checks that
//! need no build (`check`), the fuzz targets (`fuzz`), the emulated KVM host (`lab`), and the run book of the benchmarks (`bench`). What the
//! product itself does is not here.

mod artifacts;
mod bench;
mod check;
mod firecracker;
mod fuzz;
mod hash;
mod http;
mod lab;
mod packages;
mod place;
mod process;
mod progress;
mod server;
mod test;
mod up;

use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::{Parser, Subcommand};

use crate::process::Interrupted;

/// Set Manta up, run it, test it.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Install what is missing, build, start the server, run a first sandbox, serve until Ctrl-C
    Up(up::Options),
    /// Run every check and every test: native ones on QEMU, and the same in the emulated KVM host
    Test(test::Options),
    /// Formatting, lints, documentation, house rules
    Check,
    /// Build the fuzz targets and run each for a while
    Fuzz(fuzz::Options),
    /// Run the whole-system tests, or a command, on an emulated KVM host with real Firecracker
    Lab(lab::Options),
    /// Take the measurements of docs/benchmark-results.md, each on a server of its own
    Bench(bench::Options),
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(code) => code,
        Err(error) if error.is::<Interrupted>() => {
            eprintln!("xtask: interrupted; everything it had started is stopped");
            ExitCode::from(130)
        }
        Err(error) => {
            eprintln!("xtask: failed: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<ExitCode> {
    process::catch_signals()?;
    if matches!(command, Command::Check) {
        check::run_all()?;
        return Ok(ExitCode::SUCCESS);
    }
    require_machine()?;
    match command {
        Command::Up(options) => up::run(&options)?,
        Command::Test(options) => test::run(&options)?,
        Command::Lab(options) => return lab::run(&options),
        Command::Fuzz(options) => fuzz::run_targets(&options)?,
        Command::Bench(options) => bench::run(&options)?,
        Command::Check => {}
    }
    Ok(ExitCode::SUCCESS)
}

/// What no step can make good: the platform and the privileges.
fn require_machine() -> Result<()> {
    if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
        bail!("Manta runs on x86_64 Linux only; this is {} {}", std::env::consts::ARCH, std::env::consts::OS);
    }
    if !rustix::process::geteuid().is_root() {
        bail!(
            "this needs root (it installs packages, and the server makes network namespaces, taps and \
             firewall rules): run it in a root shell, as in `sudo -i`"
        );
    }
    Ok(())
}
