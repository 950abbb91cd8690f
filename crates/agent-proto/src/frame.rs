//! One frame: a kind, a stream id, and what belongs to that kind.
//!
//! Before encoding: kind (1 byte), stream id (4, little endian), payload. Messages are JSON; data
//! and credit start with a channel byte.

use thiserror::Error;

use crate::message::{Hello, Reply, Request};
use crate::{MAX_DATA, MAX_FRAME};

const HEADER: usize = 5;

/// A unit on the wire.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// Begins a session.
    Hello(Hello),
    /// Host to agent: opens stream `id`.
    Request {
        /// Chosen by the host; not in use by another stream of the session.
        id: u32,
        /// What is asked.
        request: Request,
    },
    /// Agent to host: ends stream `id`.
    Reply {
        /// The request's stream.
        id: u32,
        /// The answer.
        reply: Reply,
    },
    /// Bytes of a channel, in order, within the credit granted.
    Data {
        /// The stream.
        id: u32,
        /// Whose bytes.
        channel: Channel,
        /// At most [`MAX_DATA`].
        bytes: Vec<u8>,
    },
    /// No more data on this channel.
    Eof {
        /// The stream.
        id: u32,
        /// The channel that ended.
        channel: Channel,
    },
    /// The receiver of a channel allows its sender this many more bytes.
    Credit {
        /// The stream.
        id: u32,
        /// The channel.
        channel: Channel,
        /// How many more.
        bytes: u32,
    },
    /// Host to agent: kill what runs on the stream. It still ends with a [`Reply`].
    Cancel {
        /// The stream.
        id: u32,
    },
}

/// The byte channels of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Channel {
    /// Host to agent.
    Stdin = 0,
    /// Agent to host.
    Stdout = 1,
    /// Agent to host.
    Stderr = 2,
}

/// Why bytes are not a frame.
#[derive(Debug, Error)]
pub enum FrameError {
    /// Longer than [`MAX_FRAME`].
    #[error("frame longer than {MAX_FRAME} bytes")]
    TooLong,
    /// Not COBS: cut off by a vanished sender, or garbage.
    #[error("frame is not valid COBS")]
    Encoding,
    /// Shorter than its kind needs.
    #[error("frame of {0} bytes is too short for its kind")]
    TooShort(usize),
    /// A kind this version does not know.
    #[error("unknown frame kind {0}")]
    Kind(u8),
    /// A channel this version does not know.
    #[error("unknown channel {0}")]
    Channel(u8),
    /// More data bytes than allowed.
    #[error("data frame carries {0} bytes, more than {MAX_DATA}")]
    TooMuchData(usize),
    /// A message that is not what its kind says.
    #[error("malformed message in frame")]
    Message(#[source] serde_json::Error),
}

impl TryFrom<u8> for Channel {
    type Error = FrameError;

    fn try_from(byte: u8) -> Result<Self, FrameError> {
        match byte {
            0 => Ok(Self::Stdin),
            1 => Ok(Self::Stdout),
            2 => Ok(Self::Stderr),
            other => Err(FrameError::Channel(other)),
        }
    }
}

impl Frame {
    /// The frame before encoding. Fails when a message is longer than [`MAX_FRAME`].
    pub(crate) fn to_bytes(&self) -> Result<Vec<u8>, FrameError> {
        let (kind, id) = match self {
            Self::Hello(_) => (0, 0),
            Self::Request { id, .. } => (1, *id),
            Self::Reply { id, .. } => (2, *id),
            Self::Data { id, .. } => (3, *id),
            Self::Eof { id, .. } => (4, *id),
            Self::Credit { id, .. } => (5, *id),
            Self::Cancel { id } => (6, *id),
        };
        let mut out = Vec::with_capacity(64);
        out.push(kind);
        out.extend(id.to_le_bytes());
        match self {
            Self::Hello(hello) => json(&mut out, hello)?,
            Self::Request { request, .. } => json(&mut out, request)?,
            Self::Reply { reply, .. } => json(&mut out, reply)?,
            Self::Data { channel, bytes, .. } => {
                if bytes.len() > MAX_DATA {
                    return Err(FrameError::TooMuchData(bytes.len()));
                }
                out.push(*channel as u8);
                out.extend_from_slice(bytes);
            }
            Self::Eof { channel, .. } => out.push(*channel as u8),
            Self::Credit { channel, bytes, .. } => {
                out.push(*channel as u8);
                out.extend(bytes.to_le_bytes());
            }
            Self::Cancel { .. } => {}
        }
        if out.len() > MAX_FRAME { Err(FrameError::TooLong) } else { Ok(out) }
    }

    /// Reads what [`Self::to_bytes`] wrote.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Result<Self, FrameError> {
        let short = || FrameError::TooShort(bytes.len());
        let (header, payload) = bytes.split_at_checked(HEADER).ok_or_else(short)?;
        let id = u32::from_le_bytes([header[1], header[2], header[3], header[4]]);
        let channel = || payload.first().copied().ok_or_else(short).and_then(Channel::try_from);
        Ok(match header[0] {
            0 => Self::Hello(parse(payload)?),
            1 => Self::Request { id, request: parse(payload)? },
            2 => Self::Reply { id, reply: parse(payload)? },
            3 => {
                let channel = channel()?;
                let bytes = &payload[1..];
                if bytes.len() > MAX_DATA {
                    return Err(FrameError::TooMuchData(bytes.len()));
                }
                Self::Data { id, channel, bytes: bytes.to_vec() }
            }
            4 => Self::Eof { id, channel: channel()? },
            5 => {
                let channel = channel()?;
                let bytes = payload[1..].try_into().map_err(|_| short())?;
                Self::Credit { id, channel, bytes: u32::from_le_bytes(bytes) }
            }
            6 => Self::Cancel { id },
            kind => return Err(FrameError::Kind(kind)),
        })
    }
}

fn json(out: &mut Vec<u8>, message: &impl serde::Serialize) -> Result<(), FrameError> {
    serde_json::to_writer(out, message).map_err(FrameError::Message)
}

fn parse<T: serde::de::DeserializeOwned>(payload: &[u8]) -> Result<T, FrameError> {
    serde_json::from_slice(payload).map_err(FrameError::Message)
}
