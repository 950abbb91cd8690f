//! Sessions with a real agent process, over links that are cut; and with scripted ones.
#![allow(clippy::unwrap_used)] // in the helpers too

mod cuts;
mod hostile;
mod idle;
mod offences;
mod proxy;
mod scripted;

use std::time::Duration;

use manta_agent_proto::{Adopt, Exec, Program};

/// No wait of any test is longer.
const DEADLINE: Duration = Duration::from_secs(30);

fn adopt() -> Adopt {
    Adopt { entropy: vec![7; 32], unix_ns: 1, identity: None }
}

fn sh(script: &str) -> Exec {
    let words = ["sh", "-c", script].map(str::to_owned);
    Exec {
        program: Program::Argv(words.into()),
        cwd: None,
        env: Vec::new(),
        timeout_ms: 20_000,
        output_limit: 16 << 20,
        stdin: false,
    }
}
