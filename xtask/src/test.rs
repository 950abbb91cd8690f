//! `cargo xtask test`: everything there is to test, on a machine with nothing but Debian and Rust.

use std::time::Instant;

use anyhow::{Result, bail};
use clap::Args;

use crate::lab::{self, SystemTests};
use crate::packages::{self, Purpose};
use crate::process::run_watching;
use crate::progress::Step;
use crate::{artifacts, check, firecracker, fuzz, place};

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Leave the emulated KVM host out
    #[arg(long)]
    native_only: bool,
    /// Of the native tests only those whose names contain this
    filter: Option<String>,
}

/// Runs all steps; the first that fails ends it.
pub(crate) fn run(options: &Options) -> Result<()> {
    let started = Instant::now();
    packages::ensure(Purpose::Test)?;
    check::run_all()?;
    artifacts::build_release()?;
    artifacts::build_image()?;
    let native = native(options.filter.as_deref())?;
    if options.filter.is_none() {
        fuzz::run_targets(&fuzz::Options::default())?;
    }
    let lab = if options.native_only { None } else { Some(in_lab()?) };
    let total = lab.iter().fold(native, |total, (lab, _)| total.plus(*lab));
    println!("\nnative (QEMU): {native}");
    match lab {
        Some((lab, repeated)) => {
            println!("lab (Firecracker): {lab}");
            for name in repeated {
                println!("repeated: {name}, because the emulated processor shut down a guest");
            }
        }
        None => println!("lab (Firecracker): left out"),
    }
    println!("took {:.0} s\n{total}", started.elapsed().as_secs_f64());
    if total.passed == 0 { bail!("no test ran") } else { Ok(()) }
}

fn native(filter: Option<&str>) -> Result<Count> {
    let firecracker = firecracker::ensure()?;
    let step = Step::begin_talking("native tests", "cargo test --workspace");
    let mut count = Count::default();
    let mut cargo = place::cargo();
    // The tests are built without optimization, which takes a third of the time; what they test is not.
    cargo.args(["test", "--workspace", "--no-fail-fast"]).args(filter);
    cargo.env("MANTA_TEST_BIN", place::release("manta"));
    // Named, so that a test that needs one fails without it.
    for (name, file) in [
        ("MANTA_KERNEL_PATH", "vmlinux"),
        ("MANTA_ROOTFS_PATH", "rootfs.ext4"),
        ("MANTA_AGENT_PATH", "manta-agent"),
    ] {
        cargo.env(name, place::artifact(file));
    }
    // Its jail needs no KVM. Not by the server's own setting: natively the whole system runs on QEMU.
    cargo.env("MANTA_TEST_FIRECRACKER_BIN", firecracker.program("firecracker"));
    let status = run_watching(&mut cargo, |line| count.look(line))?;
    if !status.success() {
        bail!("native tests failed ({count}); one of them again: cargo test -p CRATE NAME -- --nocapture");
    }
    step.done(count);
    Ok(count)
}

/// Also names the tests that were repeated.
fn in_lab() -> Result<(Count, Vec<String>)> {
    let step = Step::begin_talking("lab tests", "the whole-system tests on Firecracker");
    let mut count = Count::default();
    let SystemTests { status, repeated } =
        lab::run_system_tests(lab::PROCESSORS, lab::LIMIT, |line| count.look(line))?;
    // What counts of these is the second time.
    count.failed = count.failed.saturating_sub(u64::try_from(repeated.len())?);
    if status != 0 || count.passed == 0 {
        bail!(
            "the lab's job failed with status {status} ({count}); one test again: \
             cargo xtask lab -- ./system --test-threads=1 NAME"
        );
    }
    step.done(count);
    Ok((count, repeated))
}

/// Tests that ran.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Count {
    passed: u64,
    failed: u64,
}

impl Count {
    /// Adds a line of the test harness, as in `test result: ok. 3 passed; 0 failed; 0 ignored; …`.
    fn look(&mut self, line: &str) {
        let Some(result) = line.strip_prefix("test result: ") else { return };
        let number = |word: &str| {
            let mut words = result.split([' ', ';', '.']).filter(|word| !word.is_empty()).peekable();
            let mut before = None;
            words.find_map(|this| {
                if this == word {
                    before
                } else {
                    before = this.parse().ok();
                    None
                }
            })
        };
        self.passed += number("passed").unwrap_or(0);
        self.failed += number("failed").unwrap_or(0);
    }

    fn plus(self, other: Self) -> Self {
        Self { passed: self.passed + other.passed, failed: self.failed + other.failed }
    }
}

impl std::fmt::Display for Count {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} passed, {} failed", self.passed, self.failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_of_several_executables_add_up() {
        let mut count = Count::default();
        count.look("running 3 tests");
        count.look(
            "test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s",
        );
        count.look("test result: FAILED. 10 passed; 2 failed; 0 ignored; 0 measured; 1 filtered out");
        assert_eq!(count, Count { passed: 13, failed: 2 });
        assert_eq!(count.to_string(), "13 passed, 2 failed");
    }
}
