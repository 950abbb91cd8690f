//! A real agent process, and links to it that carry so many bytes and no more.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, OnceLock};

use rustix::net::{Shutdown, shutdown};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use super::super::{Redial, Session};
use super::{DEADLINE, adopt};

/// How a link ends.
#[derive(Debug, Clone, Copy)]
pub(super) enum Cut {
    /// After so many bytes to the agent, or from it.
    After {
        up: usize,
        down: usize,
    },
    /// As the first, and the host is not told before it sends something: what it hears is silence.
    HalfOpen {
        up: usize,
        down: usize,
    },
    Never,
}

impl Cut {
    fn budgets(self) -> (usize, usize) {
        match self {
            Self::After { up, down } | Self::HalfOpen { up, down } => (up, down),
            Self::Never => (usize::MAX, usize::MAX),
        }
    }
}

/// An agent that listens; its process ends with this.
pub(super) struct Agent {
    process: Child,
    listener: UnixListener,
    dir: tempfile::TempDir,
}

impl Agent {
    pub(super) fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("agent")).unwrap();
        let stdin: OwnedFd = listener.try_clone().unwrap().into();
        let process = Command::new(program()).stdin(Stdio::from(stdin)).spawn().unwrap();
        Self { process, listener, dir }
    }

    pub(super) fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Where commands leave their traces.
    pub(super) fn dir(&self) -> &std::path::Path {
        self.dir.path()
    }

    /// A session whose links end like this, one after the other; the first is not cut before the session is open.
    pub(super) async fn session(&self, cuts: impl IntoIterator<Item = Cut>) -> Session {
        let mut cuts: VecDeque<Cut> = cuts.into_iter().collect();
        let first = Arc::new(Mutex::new(Cut::Never.budgets()));
        let path = self.dir.path().join("agent");
        let cut = cuts.pop_front().unwrap_or(Cut::Never);
        let stream = link(path.clone(), cut, first.clone()).await.unwrap();
        let cuts = Mutex::new(cuts);
        let dial = move || {
            let cut = cuts.lock().unwrap().pop_front().unwrap_or(Cut::Never);
            let path = path.clone();
            Box::pin(async move {
                let link = link(path, cut, Arc::new(Mutex::new(cut.budgets()))).await;
                link.map_err(|error| error.to_string())
            }) as _
        };
        let redial = Redial { dial: Box::new(dial), limit: DEADLINE, vmm_pid: 0 };
        let (session, _) = Session::open(stream, 1 << 40, adopt(), redial).await.unwrap();
        *first.lock().unwrap() = cut.budgets();
        session
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // With no way to be reached and no link left it ends, and what it runs ends before.
        let _ = shutdown(&self.listener, Shutdown::Both);
        let _ = self.process.wait();
    }
}

/// Named by whoever tests everything, or built now.
fn program() -> &'static PathBuf {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        if let Some(named) = std::env::var_os("MANTA_AGENT_PATH") {
            return named.into();
        }
        let built =
            Command::new(env!("CARGO")).args(["build", "--quiet", "--package", "manta-agent"]).status();
        assert!(built.unwrap().success());
        // Of target/debug/deps/manta_engine-….
        let profile = std::env::current_exe().unwrap().parent().unwrap().parent().unwrap().to_owned();
        profile.join("manta-agent")
    })
}

/// The host's end of a link that carries no more than its budgets, up and down.
async fn link(path: PathBuf, cut: Cut, budgets: Arc<Mutex<(usize, usize)>>) -> std::io::Result<UnixStream> {
    let agent = UnixStream::connect(path).await?;
    let (ours, theirs) = UnixStream::pair()?;
    tokio::spawn(async move {
        let mut host = theirs;
        carry(&mut host, agent, &budgets).await;
        if matches!(cut, Cut::HalfOpen { .. }) {
            let _ = host.read(&mut [0; 1]).await;
        }
    });
    Ok(ours)
}

/// Until either end closes or a budget is used up; then the agent's end is closed.
async fn carry(host: &mut UnixStream, mut agent: UnixStream, budgets: &Mutex<(usize, usize)>) {
    let (mut up, mut down) = ([0; 3000], [0; 3000]);
    loop {
        let (from_host, length) = tokio::select! {
            read = host.read(&mut up) => (true, read.unwrap_or(0)),
            read = agent.read(&mut down) => (false, read.unwrap_or(0)),
        };
        let granted = {
            let mut budgets = budgets.lock().unwrap();
            let budget = if from_host { &mut budgets.0 } else { &mut budgets.1 };
            let granted = length.min(*budget);
            *budget -= granted;
            granted
        };
        let written = if from_host {
            agent.write_all(&up[..granted]).await
        } else {
            host.write_all(&down[..granted]).await
        };
        if length == 0 || granted < length || written.is_err() {
            return;
        }
    }
}
