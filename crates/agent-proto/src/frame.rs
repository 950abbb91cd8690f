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
    /// The sender has received this many frames of the session, which need not be kept any longer. Hellos and
    /// acknowledgements do not count.
    Ack {
        /// Since the session began, over all its links.
        frames: u64,
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
    /// A message that is malformed or that this version does not know. The agent answers such a
    /// request with [`Reply::Failed`].
    #[error("message of stream {id} is not understood")]
    Message {
        /// The stream, so that it can be answered.
        id: u32,
        /// What is wrong with the JSON.
        source: serde_json::Error,
    },
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
            Self::Ack { .. } => (7, 0),
        };
        let mut out = Vec::with_capacity(64);
        out.push(kind);
        out.extend(id.to_le_bytes());
        match self {
            Self::Hello(hello) => json(id, &mut out, hello)?,
            Self::Request { request, .. } => json(id, &mut out, request)?,
            Self::Reply { reply, .. } => json(id, &mut out, reply)?,
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
            Self::Ack { frames } => out.extend(frames.to_le_bytes()),
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
            0 => Self::Hello(parse(id, payload)?),
            1 => Self::Request { id, request: parse(id, payload)? },
            2 => Self::Reply { id, reply: parse(id, payload)? },
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
            7 => Self::Ack { frames: u64::from_le_bytes(payload.try_into().map_err(|_| short())?) },
            kind => return Err(FrameError::Kind(kind)),
        })
    }
}

fn json(id: u32, out: &mut Vec<u8>, message: &impl serde::Serialize) -> Result<(), FrameError> {
    serde_json::to_writer(out, message).map_err(|source| FrameError::Message { id, source })
}

fn parse<T: serde::de::DeserializeOwned>(id: u32, payload: &[u8]) -> Result<T, FrameError> {
    serde_json::from_slice(payload).map_err(|source| FrameError::Message { id, source })
}

/// Any frame, for property tests.
#[cfg(test)]
pub(crate) mod arbitrary {
    use super::{Channel, Frame};
    use crate::message::arbitrary::{reply, request};
    use crate::{Hello, MAX_DATA, Resume};
    use proptest::prelude::*;

    fn channel() -> impl Strategy<Value = Channel> {
        prop::sample::select(vec![Channel::Stdin, Channel::Stdout, Channel::Stderr])
    }

    fn bytes() -> impl Strategy<Value = Vec<u8>> {
        prop_oneof![
            prop::collection::vec(any::<u8>(), 0..600),
            (any::<u8>(), 0..=MAX_DATA).prop_map(|(byte, length)| vec![byte; length]),
        ]
    }

    pub(crate) fn frame() -> impl Strategy<Value = Frame> {
        let id = any::<u32>();
        prop_oneof![
            any::<(u32, u64, Option<(u64, u64)>)>().prop_map(|(version, session, resume)| {
                let resume = resume.map(|(session, received)| Resume { session, received });
                Frame::Hello(Hello { version, session, resume })
            }),
            any::<u64>().prop_map(|frames| Frame::Ack { frames }),
            (id, request()).prop_map(|(id, request)| Frame::Request { id, request }),
            (id, reply()).prop_map(|(id, reply)| Frame::Reply { id, reply }),
            (id, channel(), bytes()).prop_map(|(id, channel, bytes)| Frame::Data { id, channel, bytes }),
            (id, channel()).prop_map(|(id, channel)| Frame::Eof { id, channel }),
            (id, channel(), any::<u32>()).prop_map(|(id, channel, bytes)| Frame::Credit {
                id,
                channel,
                bytes
            }),
            id.prop_map(|id| Frame::Cancel { id }),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Adopt, Resume};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn bytes_and_back(frame in arbitrary::frame()) {
            prop_assert_eq!(Frame::from_bytes(&frame.to_bytes().unwrap()).unwrap(), frame);
        }

        #[test]
        fn any_bytes_are_a_frame_or_an_error(kind in 0_u8..10, rest in prop::collection::vec(any::<u8>(), 0..40)) {
            let _ = Frame::from_bytes(&[&[kind], rest.as_slice()].concat());
        }
    }

    #[test]
    fn each_malformation_has_its_error() {
        let parse = |bytes: &[u8]| Frame::from_bytes(bytes).unwrap_err();
        assert!(matches!(parse(&[]), FrameError::TooShort(0)));
        assert!(matches!(parse(&[6, 0, 0, 0]), FrameError::TooShort(4)));
        assert!(matches!(parse(&[3, 0, 0, 0, 0]), FrameError::TooShort(5)));
        assert!(matches!(parse(&[5, 0, 0, 0, 0, 1, 9, 9]), FrameError::TooShort(8)));
        assert!(matches!(parse(&[7, 0, 0, 0, 0, 1, 9, 9]), FrameError::TooShort(8)));
        assert!(matches!(parse(&[4, 0, 0, 0, 0, 3]), FrameError::Channel(3)));
        assert!(matches!(parse(&[8, 0, 0, 0, 0]), FrameError::Kind(8)));
        assert!(matches!(parse(&[1, 5, 0, 0, 0, b'{']), FrameError::Message { id: 5, .. }));
        let too_much = [&[3, 0, 0, 0, 0, 1], vec![0; MAX_DATA + 1].as_slice()].concat();
        assert!(matches!(parse(&too_much), FrameError::TooMuchData(_)));
    }

    #[test]
    fn the_wire_format_is_stable() {
        let cancel = Frame::Cancel { id: 0x0403_0201 };
        assert_eq!(cancel.to_bytes().unwrap(), [6, 1, 2, 3, 4]);
        let credit = Frame::Credit { id: 1, channel: Channel::Stderr, bytes: 258 };
        assert_eq!(credit.to_bytes().unwrap(), [5, 1, 0, 0, 0, 2, 2, 1, 0, 0]);
        let ping = Frame::Request { id: 2, request: Request::Ping };
        assert_eq!(ping.to_bytes().unwrap(), b"\x01\x02\0\0\0\"ping\"");
        let park = Frame::Request { id: 2, request: Request::Park };
        assert_eq!(park.to_bytes().unwrap(), b"\x01\x02\0\0\0\"park\"");
        let adopt = Adopt { entropy: vec![1, 255], unix_ns: 3, identity: None };
        let adopt = Frame::Request { id: 2, request: Request::Adopt(adopt) };
        let bytes = b"\x01\x02\0\0\0{\"adopt\":{\"entropy\":[1,255],\"unix_ns\":3}}";
        assert_eq!(adopt.to_bytes().unwrap(), bytes);
        let ack = Frame::Ack { frames: 258 };
        assert_eq!(ack.to_bytes().unwrap(), [7, 0, 0, 0, 0, 2, 1, 0, 0, 0, 0, 0, 0]);
        let hello = |resume| Frame::Hello(Hello { version: 3, session: 1, resume }).to_bytes().unwrap();
        assert_eq!(hello(None), b"\0\0\0\0\0{\"version\":3,\"session\":1}");
        let bytes = b"\0\0\0\0\0{\"version\":3,\"session\":1,\"resume\":{\"session\":7,\"received\":9}}";
        assert_eq!(hello(Some(Resume { session: 7, received: 9 })), bytes);
        let from_a_newer_host = b"\x01\x02\0\0\0{\"exec\":{\"program\":{\"argv\":[\"ls\"]},\"timeout_ms\":1,\"output_limit\":2,\"new\":3}}";
        assert!(matches!(
            Frame::from_bytes(from_a_newer_host).unwrap(),
            Frame::Request { id: 2, request: Request::Exec(exec) } if !exec.stdin && exec.env.is_empty()
        ));
    }
}
