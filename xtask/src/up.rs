//! `cargo xtask up`: from a fresh machine to a first sandbox, and on to a server that serves.

use std::env;
use std::net::{SocketAddr, TcpListener};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use serde_json::{Value, json};

use crate::http::request;
use crate::packages::{self, Purpose};
use crate::process::{Interrupted, check_interrupted};
use crate::progress::skipped;
use crate::server::{start, stop};
use crate::{artifacts, firecracker, place};

const LISTEN: &str = "MANTA_LISTEN_ADDR";
const LISTEN_DEFAULT: &str = "127.0.0.1:8080";
const FIRECRACKER: &str = "MANTA_FIRECRACKER_BIN";
const REQUEST_LIMIT: Duration = Duration::from_secs(60);
/// For the pool of sandboxes to fill.
const WARM_LIMIT: Duration = Duration::from_secs(30);
const FIRST_COMMAND: &str = "uname -srm; . /etc/os-release; echo \"$PRETTY_NAME\"; uptime";

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Stop the server and exit after the first sandbox
    #[arg(long)]
    no_serve: bool,
}

/// Runs all steps.
pub(crate) fn run(options: &Options) -> Result<()> {
    let address = listen_address()?;
    require_free(address)?;
    packages::ensure(Purpose::Run)?;
    artifacts::build_release()?;
    artifacts::build_image()?;
    let mut server = Command::new(place::release("manta"));
    server.arg("server").env(LISTEN, address.to_string()).current_dir(place::root());
    if let Some(firecracker) = firecracker_if_sensible()? {
        server.env(FIRECRACKER, firecracker.program("firecracker"));
    }
    let (server, address) = start(&mut server)?;
    let sandbox = first_sandbox(address)?;
    second_sandbox(address)?;
    if options.no_serve {
        destroy(address, &sandbox)?;
        return stop(server);
    }
    print_next(address, &sandbox);
    match server.await_event(None, None) {
        Ok(_) => bail!("the server ended by itself; its log is above"),
        // The usual end.
        Err(error) if error.is::<Interrupted>() => stop(server),
        Err(error) => Err(error),
    }
}

fn listen_address() -> Result<SocketAddr> {
    let text = env::var(LISTEN).unwrap_or_else(|_| LISTEN_DEFAULT.into());
    text.parse()
        .with_context(|| format!("{LISTEN}={text} is not an address and a port, as in {LISTEN_DEFAULT}"))
}

/// Before the minutes of building, not after.
fn require_free(address: SocketAddr) -> Result<()> {
    TcpListener::bind(address).map(drop).with_context(|| {
        format!("cannot listen on {address}; stop what does, or choose another port: {LISTEN}=127.0.0.1:8081 cargo xtask up")
    })
}

/// Firecracker is of use only where KVM is; somebody's own is left alone.
fn firecracker_if_sensible() -> Result<Option<firecracker::Firecracker>> {
    if env::var_os(FIRECRACKER).is_some() {
        skipped("firecracker", format_args!("{FIRECRACKER} is set"));
        return Ok(None);
    }
    // It fails when the server could not work as things are: perhaps for want of Firecracker.
    let doctor =
        Command::new(place::release("manta")).args(["doctor", "--json"]).output().context("manta doctor")?;
    let report: Value = serde_json::from_slice(&doctor.stdout).context("manta doctor --json")?;
    if report["kvm"]["verdict"] != "usable" {
        skipped("firecracker", "not needed: KVM is not usable here (`manta doctor` says why); QEMU emulates");
        return Ok(None);
    }
    firecracker::ensure().map(Some)
}

/// A sandbox that has run a command.
struct Tried {
    id: String,
    stdout: String,
    tti_ms: f64,
}

/// Creates a sandbox and runs a command in it.
fn try_sandbox(address: SocketAddr, cmd: &str) -> Result<Tried> {
    check_interrupted()?;
    let started = Instant::now();
    let created =
        request(address, "POST", "/create", Some(&json!({})), REQUEST_LIMIT).context("a new sandbox")?;
    let id = created["sandbox_id"].as_str().context("the server named no sandbox")?.to_owned();
    let exec = json!({ "sandbox_id": id, "cmd": cmd });
    let answer = request(address, "POST", "/exec", Some(&exec), REQUEST_LIMIT).context("its command")?;
    let tti_ms = started.elapsed().as_secs_f64() * 1000.0;
    if answer["exit_code"] != 0 {
        bail!("the command failed in the sandbox: {answer}");
    }
    Ok(Tried { id, stdout: answer["stdout"].as_str().unwrap_or_default().to_owned(), tti_ms })
}

/// Shows what a command prints in a sandbox; returns the sandbox's id.
fn first_sandbox(address: SocketAddr) -> Result<String> {
    let Tried { id, stdout, tti_ms } = try_sandbox(address, FIRST_COMMAND)?;
    println!("\n{}", stdout.trim_end());
    println!("\nfirst sandbox: {id}; from asking for it to this output (TTI): {tti_ms:.0} ms");
    Ok(id)
}

/// The first was asked for before the server had made any ahead of time; this is what those after it are like.
fn second_sandbox(address: SocketAddr) -> Result<()> {
    let waited = Instant::now();
    loop {
        check_interrupted()?;
        let warm = &request(address, "GET", "/healthz", None, REQUEST_LIMIT)?["pools"]["warm"];
        if warm["target"] == 0 || waited.elapsed() > WARM_LIMIT {
            println!("no sandbox waits to be claimed: see pools.warm of http://{address}/healthz\n");
            return Ok(());
        }
        if warm["depth"] == warm["target"] {
            break;
        }
        std::thread::park_timeout(Duration::from_millis(50));
    }
    let Tried { id, tti_ms, .. } = try_sandbox(address, "echo ready")?;
    println!("second sandbox: one that waited, restored and exercised, to be claimed: {tti_ms:.1} ms\n");
    destroy(address, &id)
}

fn destroy(address: SocketAddr, sandbox: &str) -> Result<()> {
    request(address, "POST", "/destroy", Some(&json!({ "sandbox_id": sandbox })), REQUEST_LIMIT).map(drop)
}

fn print_next(address: SocketAddr, sandbox: &str) {
    let curl = |route: &str, body: Value| {
        println!("  curl -s http://{address}{route} -H 'content-type: application/json' -d '{body}'");
    };
    println!("try next, from another terminal:");
    curl("/create", json!({}));
    curl("/exec", json!({ "sandbox_id": sandbox, "cmd": "python3 -c 'print(6 * 7)'".replace('\'', "\"") }));
    curl("/destroy", json!({ "sandbox_id": sandbox }));
    println!("\nserving on http://{address}; Ctrl-C ends the server and every sandbox");
}
