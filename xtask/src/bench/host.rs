//! A server of one measurement, alone in a network namespace that is gone with it, and what it may be asked
//! there.

use std::fs::File;
use std::io::Read;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::Value;

use crate::http::request;
use crate::place;
use crate::process::{Event, Group, run_into_within};
use crate::server::{start, stop};

const NAMESPACE_LIMIT: Duration = Duration::from_secs(10);
const REQUEST_LIMIT: Duration = Duration::from_secs(10);
/// For one run of `manta bench`.
const RUN_LIMIT: Duration = Duration::from_secs(1800);
/// Between two questions whether the pool is full.
const ASK_INTERVAL: Duration = Duration::from_millis(500);

/// What a server is told.
#[derive(Debug, Clone, Copy)]
pub(super) struct Settings {
    /// Sandboxes that wait.
    pub(super) pool: u32,
    /// Sandboxes beside those, at most.
    pub(super) others: u32,
}

/// Where programs and files are.
pub(super) struct Host {
    pub(super) manta: PathBuf,
    /// The servers', one after another: the first makes the golden snapshot.
    pub(super) work_dir: PathBuf,
    pub(super) logs: PathBuf,
}

/// A server that runs in the calling thread's namespace.
pub(super) struct Server<'a> {
    host: &'a Host,
    group: Group,
    address: SocketAddr,
}

impl Host {
    /// Does `work` with a server of its own. Whatever comes of it, the server is ended.
    pub(super) fn serve<T: Send>(
        &self,
        name: &str,
        settings: Settings,
        work: impl FnOnce(&Server<'_>) -> Result<T> + Send,
    ) -> Result<T> {
        let serve = || {
            enter_namespace().context("no network namespace of its own")?;
            let log = self.logs.join(format!("{name}.log"));
            let (group, address) = start(&mut self.command(settings, &log)?)
                .with_context(|| format!("the server's log is {}", log.display()))?;
            let server = Server { host: self, group, address };
            let done = work(&server).with_context(|| format!("the server's log is {}", log.display()))?;
            stop(server.group)?;
            Ok(done)
        };
        // The namespace is the thread's, and that of what it starts.
        let joined = thread::scope(|scope| scope.spawn(serve).join());
        joined.unwrap_or_else(|_| Err(anyhow!("the measurement panicked")))
    }

    fn command(&self, settings: Settings, log: &Path) -> Result<Command> {
        let Settings { pool, others } = settings;
        let log = File::create(log).with_context(|| format!("cannot make {}", log.display()))?;
        let mut command = Command::new(&self.manta);
        command.arg("server").current_dir(place::root()).stderr(log);
        command.env("MANTA_LISTEN_ADDR", "127.0.0.1:0").env("MANTA_WORK_DIR", &self.work_dir);
        command.env("MANTA_WARM_POOL_SIZE", pool.to_string());
        // As many as may be asked for at once, and not fewer than by default.
        command.env("MANTA_NETNS_POOL_SIZE", others.max(64).to_string());
        command.env("MANTA_MAX_SANDBOXES", (pool + others).to_string());
        // They share most of their memory: more of them fit than would if each used all of its own.
        command.env("MANTA_MAX_MEMORY_MIB", (1_u64 << 30).to_string());
        Ok(command)
    }
}

impl Server<'_> {
    pub(super) fn pid(&self) -> i32 {
        self.group.pid()
    }

    /// `GET /healthz`.
    pub(super) fn health(&self) -> Result<Value> {
        request(self.address, "GET", "/healthz", None, REQUEST_LIMIT)
    }

    /// `manta bench`, with `more` arguments, its JSON into `target`.
    pub(super) fn bench(&self, runs: u32, wait: Duration, more: &[&str], target: File) -> Result<()> {
        let mut bench = Command::new(&self.host.manta);
        bench.args(["bench", "--pool-aware", "--endpoint", &format!("http://{}", self.address)]);
        let (runs, wait_s) = (runs.to_string(), wait.as_secs().to_string());
        bench.args(["--iterations", &runs, "--pool-wait-s", &wait_s]).args(more);
        run_into_within(&mut bench, target, RUN_LIMIT)
    }

    /// Lets the server be for a while.
    pub(super) fn rest(&self, time: Duration) -> Result<()> {
        match self.group.await_event(None, Some(Instant::now() + time))? {
            Event::TimedOut => Ok(()),
            _ => bail!("the server ended by itself"),
        }
    }

    /// Waits until as many sandboxes wait as it wants; at once, if it has no such pool.
    pub(super) fn fill(&self, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        loop {
            let health = self.health()?;
            let warm = &health["pools"]["warm"];
            match (warm["depth"].as_u64(), warm["target"].as_u64()) {
                (Some(depth), Some(target)) if depth < target => {
                    if Instant::now() >= deadline {
                        let waited = limit.as_secs();
                        let degraded = &health["degraded"];
                        bail!("{depth} of {target} sandboxes wait after {waited} s; degraded: {degraded}");
                    }
                }
                _ => return Ok(()),
            }
            self.rest(ASK_INTERVAL)?;
        }
    }
}

/// Moves the calling thread into a new network namespace with nothing but a loopback.
fn enter_namespace() -> Result<()> {
    // Made by a child that ends when its standard input does: at the latest with xtask, however that ends.
    let mut command = Command::new("unshare");
    command.args(["--net", "sh", "-c", "ip link set lo up && echo && exec cat"]);
    let mut child = Group::spawn(command.stdin(Stdio::piped()).stdout(Stdio::piped()))?;
    let mut stdout = child.stdout().context("no standard output")?;
    let ready = child.await_event(Some(stdout.as_fd()), Some(Instant::now() + NAMESPACE_LIMIT))?;
    if ready != Event::Readable || stdout.read(&mut [0])? == 0 {
        bail!("`unshare --net` or `ip link set lo up` failed");
    }
    let namespace = File::open(format!("/proc/{}/ns/net", child.pid()))?;
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).context("setns")
}
