//! The emulated KVM host: QEMU emulates a machine *with* AMD virtualization, in which a stock Debian kernel
//! offers a real /dev/kvm to real Firecracker. [`image`] makes the host once, [`payload`] what is carried
//! in for one run, [`boot`] runs it, [`repeat`] says which tests its defects made fail, [`terminal`] is the shell of
//! `--keep`.

mod boot;
mod image;
mod payload;
mod repeat;
mod terminal;

use std::fs;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::Args;

use crate::packages::{self, Purpose};
use crate::{artifacts, firecracker, place};

pub(crate) use payload::Job;

/// Exit status of the system tests' job when tests failed, and nothing else did: that of Rust's test harness.
const TESTS_FAILED: u8 = 101;

/// For one run of the system tests, which takes some thirty minutes on two idle cores.
pub(crate) const LIMIT: Duration = Duration::from_secs(3600);

/// Of the emulated host.
const PROCESSORS: u8 = 2;

/// What runs guests out of memory or processes. With two processors the emulation shuts most of these guests down,
/// and sometimes takes its own kernel along; with one that was not seen.
const ON_ONE_PROCESSOR: &str = "hostile_devices::";

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Afterwards open a shell in there; without a terminal, keep it running until Ctrl-C
    #[arg(long)]
    keep: bool,
    /// The command may take this long, seconds
    #[arg(long, default_value_t = LIMIT.as_secs())]
    limit_s: u64,
    /// So many processors the emulated host has
    #[arg(long, default_value_t = PROCESSORS)]
    processors: u8,
    /// Run this, with /srv/manta as its directory and manta in PATH, instead of the whole-system tests and a
    /// benchmark; what it writes into /srv/manta/out is brought back into target/lab/out
    #[arg(last = true)]
    command: Vec<String>,
}

/// `cargo xtask lab`: exits as the command does.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    packages::ensure(Purpose::Lab)?;
    artifacts::build_release()?;
    artifacts::build_image()?;
    let limit = Duration::from_secs(options.limit_s);
    let status = match options.command.as_slice() {
        [] if options.keep => run_job(&Job::Nothing, true, options.processors, limit, |_| {})?,
        [] => run_system_tests(limit, |_| {})?.status,
        command => {
            let job = Job::Command(command.to_vec());
            run_job(&job, options.keep, options.processors, limit, |_| {})?
        }
    };
    Ok(ExitCode::from(status))
}

/// What came of the system tests.
#[derive(Debug)]
pub(crate) struct SystemTests {
    /// Exit status of the job, or of the repetition.
    pub(crate) status: u8,
    /// Tests that failed at first, by the emulator's fault, and were run once more.
    pub(crate) repeated: Vec<String>,
}

/// Runs the whole-system tests and the benchmarks; `look` as in [`run_job`]. Then, on a machine of one processor, those
/// that need it, and once more those that failed because the emulated processor shut a guest down.
pub(crate) fn run_system_tests(limit: Duration, mut look: impl FnMut(&str) + Send) -> Result<SystemTests> {
    let mut output = repeat::Output::default();
    let status = run_job(&Job::SystemTests, false, PROCESSORS, limit, |line| {
        output.look(line);
        look(line);
    })?;
    let repeated = if status == TESTS_FAILED { output.to_repeat() } else { Vec::new() };
    if status != 0 && repeated.is_empty() {
        return Ok(SystemTests { status, repeated });
    }
    for name in &repeated {
        eprintln!("lab: repeated: {name}, because the emulated processor shut down a guest");
    }
    let mut command = ["./system", "--test-threads=1", ON_ONE_PROCESSOR].map(str::to_owned).to_vec();
    command.extend_from_slice(&repeated);
    // Beside the benchmarks' results.
    let status = boot_with(&Job::Command(command), false, 1, limit, look)?;
    Ok(SystemTests { status, repeated })
}

/// Runs a job in the lab; `look` sees every line of its standard output. Returns its exit status.
pub(crate) fn run_job(
    job: &Job,
    keep: bool,
    processors: u8,
    limit: Duration,
    look: impl FnMut(&str) + Send,
) -> Result<u8> {
    // Another job's files.
    let _ = fs::remove_dir_all(place::target().join("lab/out"));
    boot_with(job, keep, processors, limit, look)
}

fn boot_with(
    job: &Job,
    keep: bool,
    processors: u8,
    limit: Duration,
    look: impl FnMut(&str) + Send,
) -> Result<u8> {
    let firecracker = firecracker::ensure()?;
    let image = image::ensure()?;
    let payload = payload::make(job, keep, &firecracker)?;
    boot::run(&image, &payload, keep, processors, limit, look)
}
