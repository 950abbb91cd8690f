//! The run book of docs/benchmark-results.md: each measurement on a server of its own. [`host`] is that server in
//! its namespace, [`proc`] what it takes of the machine, [`table`] what is printed of it all. What a measurement
//! is, is `manta bench`'s.

mod host;
mod proc;
mod table;

use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use self::host::{Host, Server, Settings};
use self::proc::{Family, Held, available_mib};
use self::table::Table;
use crate::packages::{self, Purpose};
use crate::process::Interrupted;
use crate::progress::Step;
use crate::{artifacts, place};

/// Sandboxes that wait, where nothing else is measured.
const POOL: u32 = 64;
/// For a pool to be full.
const FILL_LIMIT: Duration = Duration::from_secs(600);
/// Iterations, where nothing else is said.
const RUNS: u32 = 50;
/// Sandboxes beside the measured ones.
const OTHERS: u32 = 200;
/// What a sandbox has in memory for itself, with room to spare: 43 MiB after `node -v`, on QEMU.
const RESIDENT_MIB: u64 = 64;
/// Runs of the soak, each of so many iterations.
const SOAK: (u32, u32) = (10, 50);
/// Sandboxes that wait while nobody asks.
const RESTING: u32 = 50;
const SETTLE: Duration = Duration::from_secs(10);
/// Each that waits is woken once in this time (`FRESHEN` of the engine): only whole ones measure what that takes.
const ROUND: Duration = Duration::from_secs(60);
/// How many of these are measured.
const ROUNDS: u32 = 2;
/// With more, a server would have to keep more network slots ready than its 4096.
const MAX_SCALE: f64 = 16.0;

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Only these; all if none is named
    #[arg(value_enum)]
    parts: Vec<Part>,
    /// Of iterations, of sandboxes beside them, and of minutes at rest so many times the usual number; at most 16
    #[arg(long, default_value_t = 1.0)]
    scale: f64,
    /// Where the results go, from the checkout
    #[arg(long, value_name = "DIR", default_value = "results")]
    out: PathBuf,
    /// How their names begin
    #[arg(long, default_value = "stage3")]
    prefix: String,
    /// The program to measure, instead of a release build of the checkout
    #[arg(long, value_name = "FILE")]
    manta: Option<PathBuf>,
    /// Where the servers' work directory is made: its file system is measured too
    #[arg(long, value_name = "DIR", default_value = "/var/tmp")]
    work_in: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// One by one
    Sequential,
    /// The same with `node -v`
    Node,
    /// One by one without a pool
    NoPool,
    /// One each 200 ms, with and without a pool
    Staggered,
    /// 100 at once, and as many wait
    Burst,
    /// 100 at once, and 8 wait
    ShortPool,
    /// One by one, beside none and beside 200 others
    Live,
    /// 500 in a row, and what the server holds every 50
    Soak,
    /// What a server and 50 waiting sandboxes take while nobody asks
    Rest,
}

/// Takes the measurements, one after another. One that fails does not end the others.
pub(crate) fn run(options: &Options) -> Result<()> {
    if !(options.scale > 0.0 && options.scale <= MAX_SCALE) {
        bail!("--scale is more than 0 and at most {MAX_SCALE}");
    }
    packages::ensure(Purpose::Test)?;
    let manta = match &options.manta {
        Some(manta) => fs::canonicalize(manta).with_context(|| manta.display().to_string())?,
        None => {
            artifacts::build_release()?;
            artifacts::build_image()?;
            place::release("manta")
        }
    };
    let work_dir = tempfile::tempdir_in(&options.work_in).context("cannot make a work directory")?;
    // VMMs run as users of their own and must be able to pass through.
    fs::set_permissions(work_dir.path(), Permissions::from_mode(0o755))?;
    let host = Host {
        manta,
        work_dir: work_dir.path().join("work"),
        logs: place::ensure_dir(place::target().join("bench"))?,
    };
    let out = place::ensure_dir(place::root().join(&options.out))?;
    let book = Book { host, out, prefix: options.prefix.clone(), scale: options.scale };
    let parts = if options.parts.is_empty() { Part::value_variants() } else { &options.parts };
    let (mut table, mut failed) = (Table::default(), 0);
    for part in parts {
        match book.take(*part, &mut table) {
            Ok(()) => {}
            Err(error) if error.is::<Interrupted>() => return Err(error),
            Err(error) => {
                failed += 1;
                eprintln!("bench: {part:?} failed: {error:#}");
            }
        }
    }
    println!("\n{table}");
    if failed > 0 { bail!("{failed} of {} measurements failed", parts.len()) } else { Ok(()) }
}

struct Book {
    host: Host,
    out: PathBuf,
    prefix: String,
    scale: f64,
}

impl Book {
    fn take(&self, part: Part, table: &mut Table) -> Result<()> {
        match part {
            Part::Sequential => self.measure(table, "sequential", POOL, RUNS, &[]),
            Part::Node => self.measure(table, "sequential-node", POOL, RUNS, &["--cmd", "node -v"]),
            Part::NoPool => self.measure(table, "sequential-no-pool", 0, RUNS, &[]),
            Part::Staggered => {
                self.measure(table, "staggered", POOL, RUNS, &["--mode", "staggered"])?;
                self.measure(table, "staggered-no-pool", 0, RUNS, &["--mode", "staggered"])
            }
            Part::Burst => self.measure(table, "burst-pool-100", 100, 100, &["--mode", "burst"]),
            Part::ShortPool => self.measure(table, "burst-pool-8", 8, 100, &["--mode", "burst"]),
            Part::Live => {
                self.live(table, 0)?;
                self.live(table, self.scaled(OTHERS))
            }
            Part::Soak => self.soak(table),
            Part::Rest => self.rest(table),
        }
    }

    /// One run of `manta bench` on a server of its own, which begins with a full pool.
    fn measure(&self, table: &mut Table, name: &str, pool: u32, runs: u32, more: &[&str]) -> Result<()> {
        let runs = self.scaled(runs);
        let settings = Settings { pool, others: runs };
        let outcome = self.host.serve(name, settings, |server| {
            server.fill(FILL_LIMIT)?;
            self.bench(server, name, runs, FILL_LIMIT, more)
        })?;
        table.run(name, &outcome);
        Ok(())
    }

    /// Beside as many others as there is memory for, up to `most`.
    fn live(&self, table: &mut Table, most: u32) -> Result<()> {
        let (name, runs) = (format!("live-{most}"), self.scaled(RUNS));
        let settings = Settings { pool: POOL, others: most + runs };
        let outcome = self.host.serve(&name, settings, |server| {
            server.fill(FILL_LIMIT)?;
            let room = u32::try_from(available_mib()? / RESIDENT_MIB).unwrap_or(u32::MAX);
            let others = most.min(room);
            if others < most {
                eprintln!("bench: there is memory for {others} others, not for {most}");
            }
            self.bench(server, &name, runs, FILL_LIMIT, &["--live", &others.to_string()])
        })?;
        table.run(&name, &outcome);
        Ok(())
    }

    /// Many in a row; between the runs the server is looked at, and nothing is waited for.
    fn soak(&self, table: &mut Table) -> Result<()> {
        let (times, runs) = (SOAK.0, self.scaled(SOAK.1));
        let settings = Settings { pool: POOL, others: runs };
        self.host.serve("soak", settings, |server| {
            server.fill(FILL_LIMIT)?;
            let health = server.health()?;
            let mut held = vec![(0, Held::by(server.pid())?)];
            for time in 1..=times {
                let name = format!("soak-{time}");
                let outcome = self.bench(server, &name, runs, Duration::ZERO, &["--warmup", "0"])?;
                held.push((time * runs, Held::by(server.pid())?));
                table.run(&name, &outcome);
            }
            table.held(&held);
            let samples = held.iter().map(|(after, held)| json!({"after": after, "server": held.json()}));
            self.write("soak", &json!({"samples": samples.collect::<Vec<_>>(), "health": health}))
        })
    }

    /// Nobody asks for anything.
    fn rest(&self, table: &mut Table) -> Result<()> {
        let settings = Settings { pool: RESTING, others: 1 };
        self.host.serve("rest", settings, |server| {
            let step = Step::begin("bench", "rest");
            server.fill(FILL_LIMIT)?;
            server.rest(SETTLE)?;
            let (health, before, began) = (server.health()?, Family::of(server.pid())?, Instant::now());
            server.rest(ROUND * self.scaled(ROUNDS))?;
            let (after, seconds) = (Family::of(server.pid())?, began.elapsed().as_secs_f64());
            let held = Held::by(server.pid())?;
            let cpu_s = after.cpu_s_since(before);
            let percent = 100.0 * cpu_s / seconds;
            table.rest(after.children, seconds, cpu_s, percent);
            step.done(format_args!("rest: {percent:.2} % of a processor"));
            self.write(
                "rest",
                &json!({
                    "processes": after.children, "seconds": seconds, "cpu_s": cpu_s,
                    "percent_of_a_processor": percent, "server": held.json(), "health": health,
                }),
            )
        })
    }

    /// One run of `manta bench`, which waits for a full pool at most so long; gives what it wrote.
    fn bench(
        &self,
        server: &Server<'_>,
        name: &str,
        runs: u32,
        wait: Duration,
        more: &[&str],
    ) -> Result<Value> {
        let step = Step::begin("bench", name);
        let path = self.put(name, |file| server.bench(runs, wait, more, file))?;
        let outcome = serde_json::from_slice(&fs::read(&path)?).context("the result of manta bench")?;
        step.done(name);
        Ok(outcome)
    }

    fn write(&self, name: &str, value: &Value) -> Result<()> {
        self.put(name, |file| Ok(serde_json::to_writer_pretty(file, value)?)).map(drop)
    }

    /// Makes a result file. An older one stays if the new one is not complete.
    fn put(&self, name: &str, write: impl FnOnce(File) -> Result<()>) -> Result<PathBuf> {
        let path = self.out.join(format!("{}-{name}.json", self.prefix));
        let readable = Permissions::from_mode(0o644);
        let file = tempfile::Builder::new().permissions(readable).tempfile_in(&self.out)?;
        write(file.reopen()?)?;
        file.persist(&path).with_context(|| path.display().to_string())?;
        Ok(path)
    }

    fn scaled(&self, runs: u32) -> u32 {
        scaled(runs, self.scale)
    }
}

fn scaled(runs: u32, scale: f64) -> u32 {
    ((f64::from(runs) * scale).round() as u32).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_takes_its_settings_at_any_scale() {
        // `live` asks for the most.
        let others = scaled(OTHERS, MAX_SCALE) + scaled(RUNS, MAX_SCALE);
        assert!(others <= 4096, "MANTA_NETNS_POOL_SIZE");
        assert!(POOL + others <= 16_000, "MANTA_MAX_SANDBOXES");
        assert_eq!(scaled(ROUNDS, 0.01), 1);
    }
}
