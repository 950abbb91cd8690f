//! Frames to bytes and back, without knowing where the bytes come from.

use crate::MAX_FRAME;
use crate::frame::{Frame, FrameError};

/// Longest encoded frame without its end: COBS adds one byte in 254, and one.
const MAX_ENCODED: usize = MAX_FRAME + MAX_FRAME / 254 + 2;

/// Appends `frame`, ready to send.
///
/// # Errors
/// [`FrameError::TooLong`] or [`FrameError::TooMuchData`]; nothing is appended then.
pub fn encode(frame: &Frame, out: &mut Vec<u8>) -> Result<(), FrameError> {
    let plain = frame.to_bytes()?;
    let start = out.len();
    out.resize(start + cobs::max_encoding_length(plain.len()), 0);
    let encoded = cobs::encode(&plain, &mut out[start..]);
    out.truncate(start + encoded);
    out.push(0);
    Ok(())
}

/// Turns received bytes into frames. Never holds more than one frame and the last bytes fed.
#[derive(Debug, Default)]
pub struct Decoder {
    /// Received, not yet decoded; bytes before `read` are used up.
    buffer: Vec<u8>,
    read: usize,
    /// Inside a frame that is too long: drop everything up to its end.
    skipping: bool,
}

impl Decoder {
    /// A decoder at the start of a stream.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes in received bytes. Call [`Self::next_frame`] until it is empty before feeding more.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.read);
        self.read = 0;
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole frame, or none until more is fed. An error concerns one frame only: the
    /// decoder goes on with the one after it.
    pub fn next_frame(&mut self) -> Option<Result<Frame, FrameError>> {
        loop {
            let pending = &mut self.buffer[self.read..];
            let Some(end) = pending.iter().position(|&byte| byte == 0) else {
                if pending.len() > MAX_ENCODED && !self.skipping {
                    self.skipping = true;
                    self.read = self.buffer.len();
                    return Some(Err(FrameError::TooLong));
                }
                if self.skipping {
                    self.read = self.buffer.len();
                }
                return None;
            };
            self.read += end + 1;
            if std::mem::take(&mut self.skipping) || end == 0 {
                continue; // the rest of a frame already reported, or an empty one
            }
            if end > MAX_ENCODED {
                return Some(Err(FrameError::TooLong));
            }
            let frame = &mut pending[..end];
            return Some(match cobs::decode_in_place(frame) {
                Ok(length) => Frame::from_bytes(&frame[..length]),
                Err(_) => Err(FrameError::Encoding),
            });
        }
    }
}
