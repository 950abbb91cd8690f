//! The emulated KVM host: QEMU emulates a machine *with* AMD virtualization, in which a stock Debian kernel
//! offers a real /dev/kvm to real Firecracker. [`image`] makes the host once, [`payload`] what is carried
//! in for one run, [`boot`] runs it, [`terminal`] is the shell of `--keep`.

mod boot;
mod image;
mod payload;
mod terminal;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::Args;

use crate::packages::{self, Purpose};
use crate::{artifacts, firecracker};

pub(crate) use payload::Job;

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Afterwards open a shell in there; without a terminal, keep it running until Ctrl-C
    #[arg(long)]
    keep: bool,
    /// The command may take this long, seconds
    #[arg(long, default_value_t = 1800)]
    limit_s: u64,
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
    let job = match options.command.as_slice() {
        [] if options.keep => Job::Nothing,
        [] => Job::SystemTests,
        command => Job::Command(command.to_vec()),
    };
    let status = run_job(&job, options.keep, Duration::from_secs(options.limit_s), |_| {})?;
    Ok(ExitCode::from(status))
}

/// Runs a job in the lab; `look` sees every line of its standard output. Returns its exit status.
pub(crate) fn run_job(job: &Job, keep: bool, limit: Duration, look: impl FnMut(&str) + Send) -> Result<u8> {
    let firecracker = firecracker::ensure()?;
    let image = image::ensure()?;
    let payload = payload::make(job, keep, &firecracker)?;
    boot::run(&image, &payload, keep, limit, look)
}
