//! `cargo xtask fuzz`: the fuzz targets of `fuzz/`, each for a while. What they assert is with the code that it is
//! about; what they are is in docs/fuzzing.md.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::packages::{self, Purpose};
use crate::place;
use crate::process::{Event, Group, run};
use crate::progress::Step;

/// Long enough for what a small corpus leads to; a target is done with only after ten minutes.
const SECONDS: u64 = 20;
/// Longest input, bytes, unless it is already longer in the corpus.
const MOST: usize = 4096;
/// No input takes this long, seconds, unless something has no bound;
const INPUT_SECONDS: u64 = 30;
/// nor this much memory, MiB.
const INPUT_MIB: u64 = 1024;
/// Beyond its time, for a target to start, to end, and for its last input.
const GRACE: Duration = Duration::from_secs(90);
/// For which `fuzz/.cargo/config.toml` builds.
const TRIPLE: &str = "x86_64-unknown-linux-gnu";

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Run each target for this long
    #[arg(long, default_value_t = SECONDS)]
    seconds: u64,
    /// Only this target
    target: Option<String>,
}

impl Default for Options {
    fn default() -> Self {
        Self { seconds: SECONDS, target: None }
    }
}

/// Builds the targets and runs them, as many at once as there are processors.
///
/// # Errors
/// The first target that fails, with the input that it failed for.
pub(crate) fn run_targets(options: &Options) -> Result<()> {
    packages::ensure(Purpose::Fuzz)?;
    let mut targets = targets()?;
    if let Some(wanted) = &options.target {
        if !targets.contains(wanted) {
            bail!("no such target; there are: {}", targets.join(" "));
        }
        targets.retain(|target| target == wanted);
    }
    build()?;
    let workers = thread::available_parallelism().map_or(1, usize::from).min(targets.len());
    let step = Step::begin_talking(
        "fuzzing",
        format_args!("{} targets, {workers} at a time, {} s each", targets.len(), options.seconds),
    );
    let left = Mutex::new(targets.into_iter());
    let next = || left.lock().ok()?.next();
    let work = || -> Result<()> {
        while let Some(target) = next() {
            let found = run_one(&target, options.seconds)?;
            step.say(format_args!("{target}: {found}"));
        }
        Ok(())
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        workers
            .into_iter()
            .try_for_each(|worker| worker.join().unwrap_or_else(|_| bail!("a worker panicked")))
    })?;
    step.done("nothing found");
    Ok(())
}

/// Their names, in order.
fn targets() -> Result<Vec<String>> {
    let dir = fuzz_dir().join("targets");
    let entries = fs::read_dir(&dir).with_context(|| format!("cannot list {}", dir.display()))?;
    let mut names: Vec<String> =
        entries.filter_map(|entry| Some(entry.ok()?.path().file_stem()?.to_str()?.to_owned())).collect();
    names.sort_unstable();
    Ok(names)
}

fn build() -> Result<()> {
    let step = Step::begin_talking("fuzz targets", "cargo build, in fuzz/");
    let mut cargo = place::cargo();
    // Its flags are those of fuzz/.cargo/config.toml, which the variable would replace.
    cargo.current_dir(fuzz_dir()).args(["build", "--release", "--locked"]).env_remove("RUSTFLAGS");
    run(cargo.env("CARGO_TARGET_DIR", target_dir()))?;
    step.done("built");
    Ok(())
}

/// Runs a target until its time is over; says in short what it did.
fn run_one(target: &str, seconds: u64) -> Result<String> {
    let corpus = place::ensure_dir(target_dir().join("corpus").join(target))?;
    let artifacts = place::ensure_dir(target_dir().join("artifacts"))?.join(format!("{target}-"));
    let log = target_dir().join(format!("{target}.log"));
    let program = target_dir().join(TRIPLE).join("release").join(target);
    let mut command = Command::new(&program);
    command
        .args([format!("-max_total_time={seconds}"), format!("-max_len={MOST}")])
        .args([format!("-timeout={INPUT_SECONDS}"), format!("-rss_limit_mb={INPUT_MIB}")])
        .arg(format!("-artifact_prefix={}", artifacts.display()))
        .arg(corpus)
        .arg(fuzz_dir().join("seeds").join(target))
        .current_dir(target_dir())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(File::create(&log).with_context(|| format!("cannot make {}", log.display()))?);
    let dictionary = fuzz_dir().join("dictionaries").join(target);
    if dictionary.exists() {
        command.arg(format!("-dict={}", dictionary.display()));
    }
    let mut group = Group::spawn(&mut command)?;
    let deadline = Instant::now() + Duration::from_secs(seconds) + GRACE;
    let over = group.await_event(None, Some(deadline))? == Event::TimedOut;
    if over {
        bail!("{target} does not end; {} has what it says", log.display());
    }
    let status = group.wait()?;
    let said = String::from_utf8_lossy(&fs::read(&log)?).into_owned();
    if !status.success() {
        bail!("{}", failure(target, &said, &program, &log));
    }
    summary(&said).with_context(|| format!("{target} ended without a word; see {}", log.display()))
}

/// Of libFuzzer's last line, as in `#9034 DONE cov: 967 ft: 2715 corp: 308/80Kb lim: 428 exec/s: 1290 rss: 29Mb`.
fn summary(said: &str) -> Option<String> {
    let line = said.lines().rev().find(|line| line.contains("DONE "))?;
    let inputs = line.strip_prefix('#')?.split_whitespace().next()?;
    let after = |word: &str| line.split_whitespace().skip_while(|this| *this != word).nth(1);
    Some(format!("{inputs} inputs, {} a second, {} edges", after("exec/s:")?, after("cov:")?))
}

/// What failed, and how to see it again.
fn failure(target: &str, said: &str, program: &Path, log: &Path) -> String {
    let what = said.lines().find(|line| line.contains("panicked at") || line.contains("ERROR:"));
    let why = said.lines().skip_while(|line| !line.contains("panicked at")).nth(1);
    let input = said.lines().rev().find_map(|line| line.split_once("Test unit written to "));
    let mut text = format!("{target}: {} {}", what.unwrap_or("it failed"), why.unwrap_or_default());
    if let Some((_, input)) = input {
        text += &format!("\n  once more: {} {input}", program.display());
        text += &format!("\n  when it is mended, keep the input in fuzz/seeds/{target}/");
    }
    text + &format!("\n  all it said: {}", log.display())
}

fn fuzz_dir() -> PathBuf {
    place::root().join("fuzz")
}

/// Not that of the workspace: everything in it has other flags.
fn target_dir() -> PathBuf {
    place::target().join("fuzz")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_target_did_is_read_from_its_last_line() {
        let said = "INFO: Seed: 1\n#9034\tDONE   cov: 967 ft: 2715 corp: 308/80Kb lim: 428 exec/s: 1290 rss: 29Mb\n\
            ###### Recommended dictionary. ######\nDone 9034 runs in 7 second(s)\n";
        assert_eq!(summary(said).unwrap(), "9034 inputs, 1290 a second, 967 edges");
        assert_eq!(summary("INFO: Seed: 1\n"), None);
    }

    #[test]
    fn a_failure_says_what_with_which_input_and_how_to_see_it_again() {
        let said = "thread '<unnamed>' (7) panicked at a.rs:1:2:\nit is wrong\n==7== ERROR: libFuzzer: deadly signal\n\
            artifact_prefix='x/names-'; Test unit written to x/names-crash-12\n";
        let text = failure("names", said, Path::new("x/names"), Path::new("x/names.log"));
        for part in
            ["a.rs:1:2", "it is wrong", "x/names x/names-crash-12", "fuzz/seeds/names/", "x/names.log"]
        {
            assert!(text.contains(part), "{text}");
        }
    }

    #[test]
    fn every_target_is_built_and_has_seeds() {
        let manifest = fs::read_to_string(fuzz_dir().join("Cargo.toml")).unwrap();
        for target in targets().unwrap() {
            assert!(manifest.contains(&format!("path = \"targets/{target}.rs\"")), "{target}");
            assert_ne!(fs::read_dir(fuzz_dir().join("seeds").join(&target)).unwrap().count(), 0, "{target}");
        }
    }
}
