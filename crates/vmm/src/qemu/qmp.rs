//! A client of QEMU's control protocol (QMP: `docs/interop/qmp-spec.rst` of QEMU). One task owns the
//! connection; it ends with the connection or with the last [`Qmp`]. Knows few commands.

use std::collections::VecDeque;
use std::io;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::OwnedReadHalf;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;

use crate::console::excerpt;

/// QEMU answers in well under a millisecond unless the host is overloaded.
pub(super) const COMMAND_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest line taken, bytes. The longest asked for is a console of 64 KiB in base64.
const MAX_LINE: usize = 256 * 1024;
/// Commands under way that nobody waited for before another is held back.
const QUEUE: usize = 16;

/// Why QEMU did not do what it was told.
#[derive(Debug, thiserror::Error)]
pub enum QmpError {
    /// The connection ended, which it does with QEMU.
    #[error("QEMU closed the connection")]
    Closed,
    /// No answer.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    /// QEMU said no.
    #[error("QEMU refused: {0}")]
    Refused(String),
    /// What came back is not QMP.
    #[error("unexpected answer: {0}")]
    Answer(String),
}

/// A connection in command mode.
#[derive(Debug, Clone)]
pub(super) struct Qmp {
    calls: mpsc::Sender<Call>,
    told: watch::Receiver<Told>,
}

/// What QEMU has told in events, as far as someone here wants to know.
#[derive(Debug, Clone, Default)]
pub(super) struct Told {
    /// How the guest has ended itself: `guest-reset`, `guest-panic`, …
    pub(super) shutdown: Option<String>,
    /// How far a migration is: `completed`, `failed`, …
    pub(super) migration: Option<String>,
}

#[derive(Debug)]
struct Call {
    line: String,
    reply: oneshot::Sender<Result<Value, QmpError>>,
}

/// Anything QEMU says: a greeting, an answer, or an event.
#[derive(Debug, Deserialize)]
struct Message {
    #[serde(rename = "QMP")]
    greeting: Option<Value>,
    // A present null would read as absent; QMP returns objects.
    #[serde(rename = "return")]
    returned: Option<Value>,
    error: Option<Refusal>,
    event: Option<String>,
    #[serde(default)]
    data: Value,
}

#[derive(Debug, Deserialize)]
struct Refusal {
    desc: String,
}

impl Qmp {
    /// Waits for QEMU's greeting, however long it takes, and enters command mode.
    pub(super) async fn start(stream: UnixStream) -> Result<Self, QmpError> {
        let (read, write) = stream.into_split();
        let mut lines = Lines { reader: BufReader::new(read), line: Vec::new() };
        let first = lines.next().await.map_err(closed)?;
        if first.greeting.is_none() {
            return Err(QmpError::Answer(excerpt(&format!("{first:?} instead of a greeting"))));
        }
        let (calls, queue) = mpsc::channel(QUEUE);
        let (tell, told) = watch::channel(Told::default());
        tokio::spawn(converse(lines, write, queue, tell));
        let qmp = Self { calls, told };
        qmp.execute("qmp_capabilities", json!({})).await?;
        Ok(qmp)
    }

    /// Runs a command and gives back what it returns.
    pub(super) async fn execute(&self, command: &str, arguments: Value) -> Result<Value, QmpError> {
        let (reply, answer) = oneshot::channel();
        let mut line = json!({ "execute": command });
        // QEMU reads byte by byte, at several system calls each.
        if arguments != json!({}) {
            line["arguments"] = arguments;
        }
        let line = format!("{line}\n");
        let call = async {
            self.calls.send(Call { line, reply }).await.map_err(|_| QmpError::Closed)?;
            answer.await.unwrap_or(Err(QmpError::Closed))
        };
        timeout(COMMAND_TIMEOUT, call).await.unwrap_or(Err(QmpError::Timeout(COMMAND_TIMEOUT)))
    }

    /// Completes when what QEMU has told, now or earlier, is as `wanted`; fails when the connection ends
    /// first.
    pub(super) async fn told(&self, wanted: impl FnMut(&Told) -> bool) -> Result<Told, QmpError> {
        let mut told = self.told.clone();
        told.wait_for(wanted).await.map(|told| told.clone()).map_err(|_| QmpError::Closed)
    }

    /// How the guest has ended itself, if it has.
    pub(super) fn shutdown_reason(&self) -> Option<String> {
        self.told.borrow().shutdown.clone()
    }
}

impl Told {
    /// Takes note of an event.
    fn hear(&mut self, event: &str, data: &Value) {
        let text = |key: &str| excerpt(data[key].as_str().unwrap_or("unknown"));
        match event {
            // Only the first says how it began: telling QEMU to quit is one more.
            "SHUTDOWN" => drop(self.shutdown.get_or_insert_with(|| text("reason"))),
            "MIGRATION" => self.migration = Some(text("status")),
            _ => {}
        }
    }
}

async fn converse(
    mut lines: Lines,
    mut write: impl AsyncWriteExt + Unpin,
    mut queue: mpsc::Receiver<Call>,
    told: watch::Sender<Told>,
) {
    // QEMU answers in order. Those not answered when this returns learn it from their dropped sender.
    let mut waiting: VecDeque<oneshot::Sender<Result<Value, QmpError>>> = VecDeque::new();
    loop {
        tokio::select! {
            call = queue.recv() => {
                let Some(call) = call else { return };
                waiting.push_back(call.reply);
                if write.write_all(call.line.as_bytes()).await.is_err() {
                    return;
                }
            }
            message = lines.next() => {
                let answer = match message {
                    Ok(Message { event: Some(event), data, .. }) => {
                        told.send_modify(|told| told.hear(&event, &data));
                        continue;
                    }
                    Ok(Message { error: Some(refusal), .. }) => Err(QmpError::Refused(excerpt(&refusal.desc))),
                    Ok(Message { returned: Some(value), .. }) => Ok(value),
                    Ok(other) => Err(QmpError::Answer(excerpt(&format!("{other:?}")))),
                    Err(error) => {
                        tracing::debug!(%error, "QMP connection ended");
                        return;
                    }
                };
                // Who gave up waiting has dropped the receiver.
                let _ = waiting.pop_front().map(|reply| reply.send(answer));
            }
        }
    }
}

struct Lines {
    reader: BufReader<OwnedReadHalf>,
    line: Vec<u8>,
}

impl Lines {
    /// The next message. Safe to cancel: a line begun is kept.
    async fn next(&mut self) -> io::Result<Message> {
        let room = MAX_LINE - self.line.len();
        (&mut self.reader).take(room as u64).read_until(b'\n', &mut self.line).await?;
        let complete = self.line.ends_with(b"\n");
        let line = std::mem::take(&mut self.line);
        if !complete {
            let cut = line.len() >= MAX_LINE;
            return Err(if cut { io::ErrorKind::InvalidData } else { io::ErrorKind::UnexpectedEof }.into());
        }
        Ok(serde_json::from_slice(&line)?)
    }
}

fn closed(error: io::Error) -> QmpError {
    match error.kind() {
        io::ErrorKind::InvalidData => QmpError::Answer(error.to_string()),
        _ => QmpError::Closed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Plays QEMU: greets, then answers each line with the next of `answers`.
    async fn play(stream: UnixStream, answers: &[&str]) {
        let (read, mut write) = stream.into_split();
        let mut lines = BufReader::new(read).lines();
        write.write_all(b"{\"QMP\": {\"version\": {}, \"capabilities\": []}}\r\n").await.unwrap();
        for answer in answers {
            lines.next_line().await.unwrap().unwrap();
            write.write_all(answer.as_bytes()).await.unwrap();
        }
    }

    #[tokio::test]
    async fn answers_find_their_commands_between_events() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let event = r#"{"event": "RESUME", "data": {}, "timestamp": {}}"#;
        let cont = format!("{event}\r\n{{\"return\": {{\"n\": 1}}}}\r\n{event}\r\n");
        let refused = "{\"error\": {\"class\": \"GenericError\", \"desc\": \"no such thing\"}}\r\n";
        let answers = ["{\"return\": {}}\r\n", &cont, refused];
        let (qmp, ()) = tokio::join!(Qmp::start(ours), async {
            play(theirs, &answers[..1]).await;
        });
        assert!(matches!(qmp.unwrap().execute("cont", json!({})).await, Err(QmpError::Closed)));

        let (ours, theirs) = UnixStream::pair().unwrap();
        tokio::join!(play(theirs, &answers), async {
            let qmp = Qmp::start(ours).await.unwrap();
            assert_eq!(qmp.execute("cont", json!({})).await.unwrap(), json!({ "n": 1 }));
            let error = qmp.execute("jump", json!({})).await.unwrap_err();
            assert!(matches!(error, QmpError::Refused(desc) if desc == "no such thing"));
        });
    }

    #[tokio::test]
    async fn the_guests_own_end_is_noticed() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let reset = r#"{"event": "SHUTDOWN", "data": {"guest": true, "reason": "guest-reset"}}"#;
        let quit = r#"{"event": "SHUTDOWN", "data": {"guest": false, "reason": "host-qmp-quit"}}"#;
        let answer = format!("{{\"return\": {{}}}}\r\n{reset}\r\n{quit}\r\n");
        let answers = [answer.as_str()];
        let qmp = tokio::join!(Qmp::start(ours), play(theirs, &answers)).0.unwrap();
        qmp.calls.closed().await;
        let told = qmp.told(|told| told.shutdown.is_some()).await.unwrap();
        assert_eq!(told.shutdown.as_deref(), Some("guest-reset"));
        assert!(matches!(qmp.told(|told| told.migration.is_some()).await, Err(QmpError::Closed)));
    }

    #[tokio::test]
    async fn an_endless_line_ends_the_connection() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let babble = tokio::spawn(async move { while theirs.write_all(&[b'x'; 4096]).await.is_ok() {} });
        assert!(matches!(Qmp::start(ours).await, Err(QmpError::Answer(_))));
        babble.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_qemu_is_not_waited_for() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut theirs = BufReader::new(theirs);
        theirs.write_all(b"{\"QMP\": {}}\r\n").await.unwrap();
        assert!(matches!(Qmp::start(ours).await, Err(QmpError::Timeout(_))));
    }
}
