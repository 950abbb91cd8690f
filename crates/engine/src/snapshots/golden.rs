//! The golden snapshot: one freshly booted sandbox whose paths were walked once, saved as what every new sandbox
//! begins with.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use manta_agent_proto::Program;
use tracing::info;

use super::{Order, Store, Stored};
use crate::caller::Caller;
use crate::error::EngineError;
use crate::exec::ExecSpec;
use crate::sandbox::Handle;
use crate::timing::Clock;

/// For one of the commands below, on a slow host.
const LIMIT: Duration = Duration::from_secs(60);

/// What a guest runs before it is saved, so that the programs and what the kernel keeps of them are in memory, and
/// the agent has done once what it will do for every sandbox. A program that the image lacks is no error.
const WALKED: [&str; 3] = [
    "cat /etc/hostname | grep -c . > /dev/null; ls -l / > /dev/null; id > /dev/null; date > /dev/null",
    "for program in python3 node git; do command -v $program && $program --version; done > /dev/null 2>&1",
    "echo benchmark",
];

/// Makes one of a running sandbox that nobody has used.
pub(crate) async fn make(sandbox: &Handle, store: Store) -> Result<Arc<Stored>, EngineError> {
    let started = Instant::now();
    for line in WALKED.into_iter().chain(WALKED.last().copied()) {
        let spec = ExecSpec {
            program: Program::Shell(line.to_owned()),
            cwd: None,
            env: Vec::new(),
            stdin: Bytes::new(),
            timeout: Some(LIMIT),
        };
        sandbox.exec(Caller::Server, spec, Clock::start()).await?;
    }
    let order = Order { caller: Caller::Server, store, name: None, clock: Clock::start() };
    let stored = sandbox.snapshot(order).await?;
    info!(took = ?started.elapsed(), "golden snapshot made");
    Ok(stored)
}
