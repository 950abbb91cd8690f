//! `manta bench compare`: a table of medians, and whether they differ.

use std::fmt::Write as _;
use std::path::PathBuf;

use clap::Args;

use super::ResultsError;
use super::bootstrap::{Estimate, RESAMPLES};
use super::difference::{Difference, ENOUGH, Part, Verdict};
use super::recorded::Recorded;

/// What has to be alike for a difference to mean anything, by its place in the conditions.
const CONDITIONS: [&str; 10] = [
    "/cmd",
    "/server/version",
    "/server/vmm/name",
    "/server/vmm/version",
    "/server/vmm/accelerator",
    "/server/host/cpu",
    "/server/host/cpus",
    "/server/host/mem_mib",
    "/server/host/kernel",
    "/server/host/filesystem",
];

/// Compare the medians of results: each with the first.
///
/// Intervals are at 95 %, by bootstrap with a fixed seed. A difference counts as shown if its interval does
/// not contain 0.
#[derive(Debug, Clone, Args)]
pub struct CompareArgs {
    /// Results of `manta bench` or `manta bench-restore`.
    #[arg(value_name = "FILE.json", required = true, num_args = 2..=26)]
    pub files: Vec<PathBuf>,
}

/// The table.
///
/// # Errors
/// [`ResultsError`], but `Write`.
pub fn compare(args: &CompareArgs) -> Result<String, ResultsError> {
    let runs: Vec<Recorded> = args.files.iter().map(|path| Recorded::read(path)).collect::<Result<_, _>>()?;
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = write_all(&mut text, &runs);
    Ok(text)
}

fn write_all(text: &mut String, runs: &[Recorded]) -> std::fmt::Result {
    for (letter, run) in lettered(runs) {
        write!(text, "{letter}  {}: {}", run.name, run.description())?;
        let vmm = ["name", "version", "accelerator"].map(|key| run.condition(&format!("/server/vmm/{key}")));
        write!(text, "; {} {}, {}", vmm[0], vmm[1], vmm[2])?;
        match run.score {
            Some(score) => writeln!(text, "; score {score:.2}")?,
            None => writeln!(text)?,
        }
    }
    let begin = match runs.iter().filter(|run| run.is_restore()).count() {
        0 => "create",
        restores if restores == runs.len() => "restore",
        _ => "create or restore",
    };
    let parts: [(&str, Part); 4] = [
        ("TTI", |sample| sample.tti_ns),
        (begin, |sample| sample.create_ns),
        ("exec", |sample| sample.exec_ns),
        ("destroy", |sample| sample.destroy_ns),
    ];
    let (median, interval, against) = ("median ms", "95 % interval", "against A ms");
    writeln!(text, "\n     {median:>12}  {interval:>24}  {against:>12} {:>9}  {interval:>24}", "%")?;
    let mut of_tti = Vec::new();
    for (name, part) in parts {
        writeln!(text, "{name}")?;
        for (letter, run) in lettered(runs) {
            let Estimate { value, low, high } = Estimate::of_median(&run.of(part));
            write!(text, "  {letter}  {:>12.2}  {:>11.2}{}", ms(value), ms(low), to(high))?;
            if letter != 'A' {
                let difference = Difference::between(&runs[0], run, part);
                if name == "TTI" {
                    of_tti.push(difference);
                }
                let Difference { estimate, percent, verdict } = difference;
                let Estimate { value, low, high } = estimate;
                write!(text, "  {:>+12.2} {percent:>+8.1} %", ms(value))?;
                write!(text, "  {:>+11.2} to {:>+9.2}  {}", ms(low), ms(high), verdict.text())?;
            }
            writeln!(text)?;
        }
    }
    writeln!(text)?;
    for ((letter, run), difference) in lettered(runs).skip(1).zip(of_tti) {
        let Difference { estimate, percent, verdict } = difference;
        let (by, percent) = (ms(estimate.value.abs()), percent.abs());
        match verdict {
            Verdict::Faster | Verdict::Slower => {
                let how = verdict.text();
                writeln!(text, "{letter} was {how} than A: its median TTI by {by:.2} ms ({percent:.1} %).")?;
            }
            Verdict::NotShown => writeln!(text, "{letter} and A: no difference of the median TTI shown.")?,
            Verdict::TooFew => {
                writeln!(
                    text,
                    "{letter} and A: too few samples to tell, at least {ENOUGH} each are needed."
                )?;
            }
        }
        write_conditions(text, letter, &runs[0], run)?;
    }
    writeln!(
        text,
        "\nIntervals by bootstrap ({RESAMPLES} resamples, fixed seed) of the successful iterations.\n\
         A difference is shown if its interval does not contain 0; of equals, one pair in about 20 shows one.\n\
         All this holds for these runs: what changes from one run to the next, on the same build too, is in\n\
         no interval. Repeat runs in turn, A B A B, before you believe a small difference."
    )
}

/// How the runs differ otherwise.
fn write_conditions(text: &mut String, letter: char, a: &Recorded, b: &Recorded) -> std::fmt::Result {
    let incomplete = |run: &Recorded| run.samples.len() < run.iterations_requested as usize;
    if incomplete(a) || incomplete(b) {
        writeln!(text, "   WARNING: iterations failed; their times are not in these numbers.")?;
    }
    let accelerator = "/server/vmm/accelerator";
    if a.condition(accelerator) != b.condition(accelerator) {
        writeln!(text, "   WARNING: never compare across accelerators.")?;
    }
    let mut differ = |what: &str, of_a: &str, of_b: &str| match of_a == of_b {
        true => Ok(()),
        false => writeln!(text, "   differs: {what}: A {of_a:?}, {letter} {of_b:?}"),
    };
    differ("mode", &a.mode.to_string(), &b.mode.to_string())?;
    differ("concurrency", &a.concurrency.to_string(), &b.concurrency.to_string())?;
    differ("live", &a.live.to_string(), &b.live.to_string())?;
    for pointer in CONDITIONS {
        differ(pointer.trim_start_matches('/'), &a.condition(pointer), &b.condition(pointer))?;
    }
    let settings = |run: &Recorded| run.conditions.pointer("/server/settings")?.as_object().cloned();
    let (of_a, of_b) = (settings(a).unwrap_or_default(), settings(b).unwrap_or_default());
    let mut names: Vec<_> = of_a.keys().chain(of_b.keys()).collect();
    names.sort_unstable();
    names.dedup();
    for name in names {
        let pointer = format!("/server/settings/{name}");
        differ(name, &a.condition(&pointer), &b.condition(&pointer))?;
    }
    Ok(())
}

fn lettered(runs: &[Recorded]) -> impl Iterator<Item = (char, &Recorded)> {
    ('A'..='Z').zip(runs)
}

fn to(high: f64) -> String {
    format!(" to {:>9.2}", ms(high))
}

fn ms(ns: f64) -> f64 {
    ns / 1e6
}
