//! Frames to bytes and back, without knowing where the bytes come from.

use crate::MAX_FRAME;
use crate::frame::{Frame, FrameError};

/// Longest encoded frame without its end: COBS adds one byte in 254, and one.
pub(crate) const MAX_ENCODED: usize = MAX_FRAME + MAX_FRAME / 254 + 2;

/// Appends `frame`, ready to send.
///
/// A [`Frame::Hello`] is preceded by a zero byte: it ends whatever an earlier session of this side
/// left half sent on the same byte stream, which would otherwise swallow the hello.
///
/// # Errors
/// [`FrameError::TooLong`] or [`FrameError::TooMuchData`]; nothing is appended then.
pub fn encode(frame: &Frame, out: &mut Vec<u8>) -> Result<(), FrameError> {
    let plain = frame.to_bytes()?;
    if matches!(frame, Frame::Hello(_)) {
        out.push(0);
    }
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
    /// Bytes from there on in which there is no end of a frame: they are looked through once, in however small pieces
    /// a long frame comes.
    searched: usize,
    /// Inside a frame that is too long: drop everything up to its end.
    skipping: bool,
    frame_len: usize,
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
            let searched = std::mem::replace(&mut self.searched, pending.len());
            let Some(end) = pending[searched..].iter().position(|&byte| byte == 0) else {
                if pending.len() > MAX_ENCODED && !self.skipping {
                    self.skipping = true;
                    (self.read, self.searched) = (self.buffer.len(), 0);
                    return Some(Err(FrameError::TooLong));
                }
                if self.skipping {
                    (self.read, self.searched) = (self.buffer.len(), 0);
                }
                return None;
            };
            let end = searched + end;
            (self.read, self.searched) = (self.read + end + 1, 0);
            if std::mem::take(&mut self.skipping) || end == 0 {
                continue; // the rest of a frame already reported, or an empty one
            }
            if end > MAX_ENCODED {
                return Some(Err(FrameError::TooLong));
            }
            self.frame_len = end + 1;
            let frame = &mut pending[..end];
            return Some(match cobs::decode_in_place(frame) {
                Ok(length) => Frame::from_bytes(&frame[..length]),
                Err(_) => Err(FrameError::Encoding),
            });
        }
    }

    /// Bytes received and not decoded.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn held(&self) -> usize {
        self.buffer.len() - self.read
    }

    /// Bytes that the last frame took on the link.
    #[must_use]
    pub fn frame_len(&self) -> usize {
        self.frame_len
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::arbitrary;
    use crate::{Channel, Hello};
    use proptest::prelude::*;

    fn encoded(frame: &Frame) -> Vec<u8> {
        let mut out = Vec::new();
        encode(frame, &mut out).unwrap();
        out
    }

    fn hello(session: u64) -> Frame {
        Frame::Hello(Hello { version: 1, session, resume: None })
    }

    /// Feeds in pieces of `piece` bytes; checks on the way that the buffer stays within its bound.
    fn decode(decoder: &mut Decoder, bytes: &[u8], piece: usize) -> Vec<Result<Frame, FrameError>> {
        let mut frames = Vec::new();
        for chunk in bytes.chunks(piece) {
            decoder.feed(chunk);
            frames.extend(std::iter::from_fn(|| decoder.next_frame()));
            assert!(decoder.held() <= MAX_ENCODED, "holds more than one frame");
        }
        frames
    }

    proptest! {
        #[test]
        fn frames_survive_any_chunking(
            frames in prop::collection::vec(arbitrary::frame(), 0..6),
            piece in 1_usize..5000,
        ) {
            let bytes: Vec<u8> = frames.iter().flat_map(encoded).collect();
            let got = decode(&mut Decoder::new(), &bytes, piece);
            prop_assert_eq!(got.into_iter().map(Result::unwrap).collect::<Vec<_>>(), frames);
        }

        #[test]
        fn a_hello_after_a_frame_cut_anywhere_is_received(
            frame in arbitrary::frame(),
            cut in any::<prop::sample::Index>(),
            piece in 1_usize..5000,
        ) {
            let mut bytes = encoded(&frame);
            bytes.truncate(cut.index(bytes.len()));
            bytes.extend(encoded(&hello(7)));
            bytes.extend(encoded(&frame));
            let mut got = decode(&mut Decoder::new(), &bytes, piece);
            prop_assert_eq!(got.pop().unwrap().unwrap(), frame);
            prop_assert_eq!(got.pop().unwrap().unwrap(), hello(7));
            prop_assert!(got.len() <= 1);
        }

        #[test]
        fn garbage_is_survived(
            garbage in prop::collection::vec(prop_oneof![1 => Just(0_u8), 20 => any::<u8>()], 0..4096),
            piece in 1_usize..300,
        ) {
            let mut decoder = Decoder::new();
            decode(&mut decoder, &garbage, piece);
            let got = decode(&mut decoder, &encoded(&hello(9)), piece);
            prop_assert_eq!(got.into_iter().next_back().unwrap().unwrap(), hello(9));
        }
    }

    #[test]
    fn an_endless_frame_is_reported_once_and_skipped() {
        let mut decoder = Decoder::new();
        let endless = vec![b'x'; 5 * MAX_ENCODED];
        let errors = decode(&mut decoder, &endless, 4096);
        assert!(matches!(errors.as_slice(), [Err(FrameError::TooLong)]), "{errors:?}");
        assert!(decoder.buffer.capacity() < 3 * MAX_ENCODED, "the buffer grew");
        let got = decode(&mut decoder, &[&[0], encoded(&hello(1)).as_slice()].concat(), 4096);
        assert_eq!(got.into_iter().map(Result::unwrap).collect::<Vec<_>>(), [hello(1)]);
    }

    #[test]
    fn a_long_frame_in_small_pieces_is_looked_through_once() {
        let mut decoder = Decoder::new();
        for fed in 1..=MAX_ENCODED {
            decoder.feed(b"x");
            assert!(decoder.next_frame().is_none());
            assert_eq!(decoder.searched, fed);
        }
        decoder.feed(&[0]);
        assert!(decoder.next_frame().is_some());
        assert_eq!(decoder.searched, 0);
    }

    #[test]
    fn an_over_long_frame_fed_whole_does_not_hide_the_next() {
        let mut bytes = vec![b'x'; MAX_ENCODED + 1];
        bytes.push(0);
        bytes.extend(encoded(&Frame::Cancel { id: 3 }));
        let mut decoder = Decoder::new();
        decoder.feed(&bytes);
        assert!(matches!(decoder.next_frame(), Some(Err(FrameError::TooLong))));
        assert_eq!(decoder.next_frame().unwrap().unwrap(), Frame::Cancel { id: 3 });
        assert!(decoder.next_frame().is_none());
    }

    #[test]
    fn a_frame_that_cannot_be_sent_leaves_no_bytes() {
        let mut out = vec![1];
        let data = Frame::Data { id: 1, channel: Channel::Stdout, bytes: vec![0; crate::MAX_DATA + 1] };
        assert!(matches!(encode(&data, &mut out), Err(FrameError::TooMuchData(_))));
        let request = crate::Request::Exec(crate::Exec {
            program: crate::Program::Shell("x".repeat(MAX_FRAME)),
            cwd: None,
            env: Vec::new(),
            timeout_ms: 1,
            output_limit: 1,
            stdin: false,
        });
        assert!(matches!(encode(&Frame::Request { id: 1, request }, &mut out), Err(FrameError::TooLong)));
        assert_eq!(out, [1]);
    }
}
