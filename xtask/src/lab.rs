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
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::Args;

use crate::packages::{self, Purpose};
use crate::{artifacts, firecracker, place};

pub(crate) use payload::Job;

/// Exit status of the system tests' job when tests failed, and nothing else did: that of Rust's test harness.
const TESTS_FAILED: u8 = 101;

/// For one half of the system tests, which takes some fifteen minutes on two idle cores.
pub(crate) const LIMIT: Duration = Duration::from_secs(3600);

/// Of the emulated host. With two, nested guests now and then stand still or are shut down, under load most of them, and
/// sometimes its own kernel goes along; with one that was not seen.
pub(crate) const PROCESSORS: u8 = 1;

/// Run side by side, each on a host of its own.
const HALVES: [&str; 2] = ["first", "rest"];

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
        [] => run_system_tests(options.processors, limit, |_| {})?.status,
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

/// Runs the whole-system tests, the benchmarks and the unit; `look` as in [`run_job`], the lines of both halves as they
/// come. Then once more the tests that failed because the emulated processor shut a guest down.
pub(crate) fn run_system_tests(
    processors: u8,
    limit: Duration,
    look: impl FnMut(&str) + Send,
) -> Result<SystemTests> {
    clear_out();
    let look = Mutex::new(look);
    let run = |half| -> Result<(u8, Vec<String>)> {
        let mut output = repeat::Output::default();
        let status = boot_with(&Job::SystemTests(half), false, processors, limit, |line| {
            output.look(line);
            look.lock().unwrap_or_else(PoisonError::into_inner)(line);
        })?;
        let repeat = if status == TESTS_FAILED { output.to_repeat() } else { Vec::new() };
        Ok((status, repeat))
    };
    let run = &run;
    let halves = thread::scope(|scope| {
        let halves = HALVES.map(|half| scope.spawn(move || run(half)));
        halves.map(|half| half.join().unwrap_or_else(|_| bail!("running a half of the tests panicked")))
    });
    let halves = halves.into_iter().collect::<Result<Vec<_>>>()?;
    // What cannot be blamed on the emulator stands.
    let failed = halves.iter().find(|(status, repeat)| *status != 0 && repeat.is_empty());
    if let Some((status, _)) = failed {
        return Ok(SystemTests { status: *status, repeated: Vec::new() });
    }
    let repeated: Vec<String> = halves.into_iter().flat_map(|(_, repeat)| repeat).collect();
    if repeated.is_empty() {
        return Ok(SystemTests { status: 0, repeated });
    }
    if repeated.len() > repeat::MOST {
        return Ok(SystemTests { status: TESTS_FAILED, repeated: Vec::new() });
    }
    for name in &repeated {
        eprintln!("lab: repeated: {name}, because the emulated processor shut down a guest");
    }
    let mut command = ["./system", "--test-threads=1"].map(str::to_owned).to_vec();
    command.extend_from_slice(&repeated);
    // Beside the benchmarks' results.
    let status = boot_with(
        &Job::Command(command),
        false,
        processors,
        limit,
        look.into_inner().unwrap_or_else(PoisonError::into_inner),
    )?;
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
    clear_out();
    boot_with(job, keep, processors, limit, look)
}

/// Removes another job's files.
fn clear_out() {
    let _ = fs::remove_dir_all(place::target().join("lab/out"));
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
