//! What a session has for its host: frames, kept until the host has received them, whatever becomes of the link.

use manta_agent_proto::{BogusCount, Frame, FrameError, encode};

use crate::kmsg::{Level, log};

/// Most bytes of output of commands to hold for a host that is slower than they are.
const FULL: usize = 256 * 1024;

/// A host that neither reads nor stops asking is not listened to beyond this many bytes.
const OVERFULL: usize = 1024 * 1024;

#[derive(Debug, Default)]
pub(crate) struct Outbox(manta_agent_proto::Outbox);

impl Outbox {
    pub(crate) fn push(&mut self, frame: &Frame) {
        match encoded(frame) {
            Ok(bytes) => self.0.push(bytes),
            Err(error) => log(Level::Critical, &format!("a frame for the host was dropped: {error}")), // a defect of ours
        }
    }

    /// Whether output has to wait: frames that the host may lack after a loss of the link count, too.
    pub(crate) fn is_full(&self) -> bool {
        self.0.held() >= FULL
    }

    /// Whether requests have to wait. What was sent does not count: the host's acknowledgement must be read.
    pub(crate) fn is_overfull(&self) -> bool {
        self.0.waiting() >= OVERFULL
    }

    /// Appends the next frames, as [`manta_agent_proto::Outbox::take`].
    pub(crate) fn take(&mut self, out: &mut Vec<u8>, most: usize) {
        self.0.take(out, most);
    }

    /// The host has received that many frames.
    pub(crate) fn acknowledge(&mut self, received: u64) -> Result<(), BogusCount> {
        self.0.acknowledge(received)
    }

    /// Goes on over another link, for a host that has received that many frames.
    pub(crate) fn resume(&mut self, received: u64) -> Result<(), BogusCount> {
        self.0.resume(received)
    }
}

fn encoded(frame: &Frame) -> Result<Vec<u8>, FrameError> {
    let mut bytes = Vec::new();
    encode(frame, &mut bytes)?;
    Ok(bytes)
}
