//! The guest's vsock, as Firecracker shows it to the host: Unix sockets in the VM's directory
//! (`docs/vsock.md` of Firecracker). Waits for the agent and connects to it.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::OnceCell;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::dir::VmDir;
use crate::error::VmmError;

/// Where the host asks Firecracker for connections to the guest.
pub(super) const SOCKET: &str = "v.sock";

/// Up to 1.15, a connection can be reset by the guest before it knows that it has a new transport; the next one
/// works.
const ATTEMPTS: usize = 3;

/// A request for a connection can get lost in a guest that was just restored: nobody ever answers it, and up to 1.16
/// Firecracker looks whether one is overdue only when it gets the next (`sweep_killq` in its `muxer.rs`). After this
/// long another is made beside it.
const PATIENCE: Duration = Duration::from_millis(100);
const MOST_PATIENCE: Duration = Duration::from_secs(2);

/// Longest answer to CONNECT: `OK 4294967295\n`.
const MAX_ANSWER: usize = 32;

#[derive(Debug)]
pub(super) struct Vsock {
    port: u32,
    /// Where the guest's first call to the host arrives, which the agent makes when it has booted. None after
    /// that: nobody would answer more of them.
    calls: Mutex<Option<Arc<UnixListener>>>,
    /// Filled by that call; the stream is given to the first who asks.
    called: OnceCell<Mutex<Option<UnixStream>>>,
}

impl Vsock {
    /// Prepares for the agent's call, before the guest runs. `uid` is Firecracker's, which forwards the call.
    pub(super) fn listen(dir: &VmDir, port: u32, uid: u32) -> Result<Self, VmmError> {
        let calls = dir.listen_here(&format!("{SOCKET}_{port}"), Some(uid))?;
        Ok(Self { port, calls: Mutex::new(Some(Arc::new(calls))), called: OnceCell::new() })
    }

    /// For a guest that was restored: its agent is up, and calls no more.
    pub(super) fn of_restored(port: u32) -> Self {
        Self { port, calls: Mutex::new(None), called: OnceCell::new() }
    }

    /// A stream to the agent, as soon as it is up. Safe to cancel.
    pub(super) async fn connect(&self, dir: &Arc<VmDir>) -> Result<UnixStream, VmmError> {
        let called = self.called.get_or_try_init(|| self.call()).await.map_err(VmmError::AgentLink)?;
        if let Some(stream) = lock(called).take() {
            return Ok(stream);
        }
        let mut asked = JoinSet::new();
        let (mut refusals, mut patience) = (0, PATIENCE);
        loop {
            asked.spawn(ask(Arc::clone(dir), self.port));
            match timeout(patience, first(&mut asked)).await {
                Ok(Ok(stream)) => {
                    answered_late(asked);
                    return Ok(stream);
                }
                Ok(Err(error)) => {
                    refusals += 1;
                    if refusals == ATTEMPTS {
                        return Err(VmmError::AgentLink(error));
                    }
                    tracing::debug!(%error, refusals, "no link to the agent");
                }
                Err(_) => {
                    tracing::debug!(
                        asked = asked.len(),
                        ?patience,
                        "no answer: asking for another link to the agent"
                    );
                    patience = (patience * 3 / 2).min(MOST_PATIENCE);
                    refusals = 0;
                }
            }
        }
    }

    async fn call(&self) -> io::Result<Mutex<Option<UnixStream>>> {
        let Some(calls) = lock(&self.calls).clone() else { return Ok(Mutex::new(None)) };
        let (stream, _) = calls.accept().await?;
        *lock(&self.calls) = None;
        Ok(Mutex::new(Some(stream)))
    }
}

/// The first of them that is granted, or when none is, why the last was not. Safe to cancel.
async fn first(asked: &mut JoinSet<io::Result<UnixStream>>) -> io::Result<UnixStream> {
    loop {
        match asked.join_next().await {
            Some(Ok(Err(_)) | Err(_)) if !asked.is_empty() => {}
            Some(Ok(granted)) => return granted,
            Some(Err(broken)) => return Err(broken.into()),
            None => return Err(io::ErrorKind::NotConnected.into()), // nobody asks for that
        }
    }
}

/// Hears those that still may be answered: Firecracker's word on one that is closed would raise a SIGPIPE there.
fn answered_late(mut asked: JoinSet<io::Result<UnixStream>>) {
    if !asked.is_empty() {
        let heard = async move { while asked.join_next().await.is_some() {} };
        drop(tokio::spawn(timeout(MOST_PATIENCE, heard)));
    }
}

async fn ask(dir: Arc<VmDir>, port: u32) -> io::Result<UnixStream> {
    let mut stream = dir.connect(SOCKET).await?;
    stream.write_all(format!("CONNECT {port}\n").as_bytes()).await?;
    agreed(stream).await
}

/// The stream that follows Firecracker's consent, if it gives that. The deadline is the caller's.
pub(super) async fn agreed(mut stream: UnixStream) -> io::Result<UnixStream> {
    let mut answer = Vec::with_capacity(MAX_ANSWER);
    // Byte by byte: what follows the line is the agent's.
    while answer.last() != Some(&b'\n') && answer.len() < MAX_ANSWER {
        answer.push(stream.read_u8().await?);
    }
    if answer.starts_with(b"OK ") && answer.ends_with(b"\n") {
        return Ok(stream);
    }
    let answer = String::from_utf8_lossy(&answer).into_owned();
    Err(io::Error::new(io::ErrorKind::InvalidData, format!("Firecracker answered {answer:?}")))
}

/// Nothing that holds these locks can panic.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
