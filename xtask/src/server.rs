//! A server as a child process: up when it says where it listens, down when all of its sandboxes are.

use std::io::{self, Read};
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::http::request;
use crate::process::{Event, Group};
use crate::progress::Step;

const START_LIMIT: Duration = Duration::from_secs(120);
const STOP_LIMIT: Duration = Duration::from_secs(60);
const REQUEST_LIMIT: Duration = Duration::from_secs(60);
/// What the server prints, before its address, when it is ready.
const READY: &str = "manta: listening on http://";

/// Starts the server and waits until it says where it listens.
pub(crate) fn start(command: &mut Command) -> Result<(Group, SocketAddr)> {
    let step = Step::begin_talking("server", "manta server");
    let mut server = Group::spawn(command.stdin(Stdio::null()).stdout(Stdio::piped()))?;
    let mut stdout = server.stdout().context("no standard output")?;
    let deadline = Instant::now() + START_LIMIT;
    let mut line = Vec::new();
    while line.last() != Some(&b'\n') {
        match server.await_event(Some(stdout.as_fd()), Some(deadline))? {
            Event::Readable => {}
            Event::Exited => {
                bail!("the server ended as it started; its log is above, and `manta doctor` may say more")
            }
            Event::TimedOut => {
                bail!("the server did not come up in {} s; its log is above", START_LIMIT.as_secs())
            }
        }
        let mut byte = [0];
        if stdout.read(&mut byte).context("the server's standard output")? == 0 {
            bail!("the server closed its standard output before it listened; its log is above");
        }
        line.extend(byte);
    }
    thread::spawn(move || io::copy(&mut stdout, &mut io::stdout()));
    let line = String::from_utf8_lossy(&line);
    let address = line.trim_end().strip_prefix(READY).and_then(|address| address.parse().ok());
    let address = address.with_context(|| format!("the server said {line:?}, not where it listens"))?;
    let health = request(address, "GET", "/healthz", None, REQUEST_LIMIT)?;
    let word = |name: &str| health["vmm"][name].as_str().unwrap_or("?").to_owned();
    let (name, version, accelerator) = (word("name"), word("version"), word("accelerator"));
    step.done(format_args!("http://{address}, sandboxes on {name} {version} ({accelerator})"));
    Ok((server, address))
}

/// Ends it, and with it every sandbox.
pub(crate) fn stop(server: Group) -> Result<()> {
    let step = Step::begin("server", "stopping");
    let status = server.stop(STOP_LIMIT)?;
    if !status.success() {
        bail!("the server ended with {status}; its log is above");
    }
    step.done("stopped, with all its sandboxes");
    Ok(())
}
