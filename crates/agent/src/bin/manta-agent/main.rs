//! `manta-agent`. In a guest it is PID 1: boot, open the ways to the host, serve. Anywhere else it
//! serves the connection that is its standard input, or whoever connects to the socket that is, with the
//! same code: for tests, and for trying a host against a real agent without a microVM. It changes nothing
//! of the machine it runs on.
#![no_main]

mod sys;

use std::time::Duration;

use manta_agent::channel::{self, Channels};
use manta_agent::kmsg::{self, Level, chain};
use manta_agent::{Agent, Machine, boot};
use manta_agent_proto::LINK_PATIENCE;
use rustix::fs::{Mode, OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::{Errno, fcntl_dupfd_cloexec};
use rustix::net::sockopt::socket_acceptconn;
use rustix::process::{Pid, Signal, WaitOptions, getpid, kill_process, set_child_subreaper, wait};

/// How long commands run on when the way to their host is lost, beside a guest; milliseconds.
const PATIENCE_MS: &str = "MANTA_AGENT_PATIENCE_MS";

/// The process's exit status; PID 1 does not return.
fn run() -> i32 {
    if getpid() == Pid::INIT {
        std::panic::set_hook(Box::new(|panic| boot::give_up(&panic.to_string())));
        let why = guest().map_or_else(|error| chain(&*error), |()| "no way to the host is left".to_owned());
        boot::give_up(&why)
    }
    match beside_a_guest() {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("manta-agent: {}", chain(&*error));
            1
        }
    }
}

fn guest() -> Result<(), Box<dyn std::error::Error>> {
    let machine = Machine::guest(boot::run()?)?;
    let mut agent = Agent::new(channel::open()?, machine, LINK_PATIENCE)?;
    kmsg::log(Level::Info, "ready");
    Ok(agent.run()?)
}

fn beside_a_guest() -> Result<(), Box<dyn std::error::Error>> {
    let connection = fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?;
    fcntl_setfl(&connection, fcntl_getfl(&connection)? | OFlags::NONBLOCK)?;
    let null: Result<_, Errno> = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
    rustix::stdio::dup2_stdin(null?)?;
    set_child_subreaper(Some(getpid()))?; // orphans come here, as they do to PID 1
    let channels = if socket_acceptconn(&connection).unwrap_or(false) {
        Channels { listener: Some(connection), ..Channels::default() }
    } else {
        Channels { connection: Some(connection), ..Channels::default() }
    };
    // Tests have less.
    let patience = std::env::var(PATIENCE_MS).ok().and_then(|millis| millis.parse().ok());
    let patience = patience.map_or(LINK_PATIENCE, Duration::from_millis);
    let mut agent = Agent::new(channels, Machine::foreign(), patience)?;
    let result = agent.run();
    kill_and_reap_all();
    Ok(result?)
}

/// Nothing it started outlives it, as nothing outlives a guest.
fn kill_and_reap_all() {
    loop {
        let children = std::fs::read_to_string("/proc/thread-self/children").unwrap_or_default();
        for child in children.split_whitespace().filter_map(|pid| Pid::from_raw(pid.parse().ok()?)) {
            let _ = kill_process(child, Signal::KILL);
        }
        // The death of one may bring us its children; without any left it fails.
        if wait(WaitOptions::empty()).is_err() {
            return;
        }
    }
}
