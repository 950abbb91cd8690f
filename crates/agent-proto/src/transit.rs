//! What lets a session outlive its links: each end counts the frames that it receives, and keeps those that it
//! sent until the other end has said that it received them. Used by both ends; knows no links.

use std::collections::VecDeque;

use thiserror::Error;

use crate::Frame;

/// A receiver acknowledges at the latest after this many frames: a short command costs no acknowledgement.
const ACK_FRAMES: u64 = 32;

/// And at the latest after this many bytes. A sender that holds this much and [`crate::MAX_FRAME`] on top may
/// wait for an acknowledgement before it sends more.
const ACK_BYTES: usize = 64 * 1024;

/// A count of received frames that cannot be true.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("a count of {claimed} received frames, with {acknowledged} acknowledged before and {sent} sent")]
pub struct BogusCount {
    claimed: u64,
    acknowledged: u64,
    sent: u64,
}

/// Frames for the other end, in order, until it has received them.
#[derive(Debug, Default)]
pub struct Outbox {
    /// Encoded, not acknowledged.
    frames: VecDeque<Vec<u8>>,
    /// How many of these were taken for the present link.
    taken: usize,
    /// How many frames of this session were acknowledged; they are forgotten.
    acknowledged: u64,
    /// Bytes of all frames kept.
    held: usize,
    /// Bytes of those not taken.
    waiting: usize,
}

impl Outbox {
    /// Adds a frame that was encoded. It must be one that is counted: neither a hello nor an acknowledgement.
    pub fn push(&mut self, encoded: Vec<u8>) {
        self.held += encoded.len();
        self.waiting += encoded.len();
        self.frames.push_back(encoded);
    }

    /// Appends the next frames to what is sent over the present link: whole ones, until there is nothing more or
    /// `out` has `most` bytes.
    pub fn take(&mut self, out: &mut Vec<u8>, most: usize) {
        while out.len() < most
            && let Some(frame) = self.frames.get(self.taken)
        {
            out.extend_from_slice(frame);
            self.taken += 1;
            self.waiting -= frame.len();
        }
    }

    /// Forgets the first `received` frames of the session, which the other end has.
    ///
    /// # Errors
    /// When that is more than what went over the links, or less than it was.
    pub fn acknowledge(&mut self, received: u64) -> Result<(), BogusCount> {
        let sent = self.acknowledged + self.taken as u64;
        if !(self.acknowledged..=sent).contains(&received) {
            return Err(BogusCount { claimed: received, acknowledged: self.acknowledged, sent });
        }
        let forgotten = (received - self.acknowledged) as usize; // at most `taken`
        self.held -= self.frames.drain(..forgotten).map(|frame| frame.len()).sum::<usize>();
        self.taken -= forgotten;
        self.acknowledged = received;
        Ok(())
    }

    /// Goes on over another link, at whose other end that many frames of the session have arrived.
    ///
    /// # Errors
    /// As [`Self::acknowledge`].
    pub fn resume(&mut self, received: u64) -> Result<(), BogusCount> {
        self.acknowledge(received)?;
        self.taken = 0;
        self.waiting = self.held;
        Ok(())
    }

    /// Bytes of all frames that are kept, sent or not.
    #[must_use]
    pub fn held(&self) -> usize {
        self.held
    }

    /// Bytes of those frames that were not taken for the present link.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.waiting
    }
}

/// Counts the frames from the other end.
#[derive(Debug, Default)]
pub struct Inbox {
    received: u64,
    acknowledged: u64,
    /// Bytes since the last acknowledgement.
    bytes: usize,
}

impl Inbox {
    /// Counts a frame that is neither a hello nor an acknowledgement, and took `bytes` on the link; gives the
    /// acknowledgement if one is due.
    #[must_use]
    pub fn count(&mut self, bytes: usize) -> Option<Frame> {
        self.received += 1;
        self.bytes += bytes;
        let due = self.received - self.acknowledged >= ACK_FRAMES || self.bytes >= ACK_BYTES;
        due.then(|| {
            (self.acknowledged, self.bytes) = (self.received, 0);
            Frame::Ack { frames: self.received }
        })
    }

    /// Frames received in this session, over all its links.
    #[must_use]
    pub fn received(&self) -> u64 {
        self.received
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Channel, Decoder, encode};
    use proptest::prelude::*;

    fn data(number: u32, length: usize) -> Frame {
        Frame::Data { id: number, channel: Channel::Stdout, bytes: vec![b'x'; length] }
    }

    fn encoded(frame: &Frame) -> Vec<u8> {
        let mut bytes = Vec::new();
        encode(frame, &mut bytes).unwrap();
        bytes
    }

    proptest! {
        #[test]
        fn every_frame_arrives_once_and_in_order_over_links_cut_anywhere(
            lengths in prop::collection::vec(0_usize..4000, 1..120),
            links in prop::collection::vec((0_usize..20_000, any::<bool>()), 0..40),
        ) {
            let (mut outbox, mut inbox) = (Outbox::default(), Inbox::default());
            for (number, length) in (0..).zip(&lengths) {
                outbox.push(encoded(&data(number, *length)));
            }
            let mut arrived = Vec::new();
            for (bytes, ack_arrives) in links.into_iter().chain([(usize::MAX, true)]) {
                outbox.resume(inbox.received()).unwrap();
                let (mut link, mut decoder) = (Vec::new(), Decoder::new());
                outbox.take(&mut link, bytes);
                link.truncate(bytes); // all that the link carries before it is lost
                decoder.feed(&link);
                while let Some(frame) = decoder.next_frame() {
                    arrived.push(frame.unwrap());
                    if let Some(Frame::Ack { frames }) = inbox.count(decoder.frame_len()) && ack_arrives {
                        outbox.acknowledge(frames).unwrap();
                    }
                }
            }
            let sent: Vec<Frame> = (0..).zip(lengths).map(|(number, length)| data(number, length)).collect();
            prop_assert_eq!(arrived, sent);
            outbox.resume(inbox.received()).unwrap();
            prop_assert_eq!((outbox.held(), outbox.waiting()), (0, 0));
        }
    }

    #[test]
    fn counts_that_cannot_be_true_are_told() {
        let mut outbox = Outbox::default();
        (0..4).for_each(|number| outbox.push(encoded(&data(number, 10))));
        let one = outbox.held() / 4;
        outbox.take(&mut Vec::new(), 3 * one);
        assert_eq!((outbox.held(), outbox.waiting()), (4 * one, one));
        assert!(outbox.acknowledge(4).is_err(), "it was not sent");
        outbox.acknowledge(2).unwrap();
        outbox.acknowledge(2).unwrap();
        assert!(outbox.acknowledge(1).is_err(), "it went backwards");
        assert!(outbox.acknowledge(u64::MAX).is_err());
        assert!(outbox.resume(1).is_err());
        outbox.resume(2).unwrap();
        assert_eq!((outbox.held(), outbox.waiting()), (2 * one, 2 * one));
        assert!(outbox.acknowledge(3).is_err(), "it was not sent over this link");
    }

    #[test]
    fn few_and_short_frames_are_not_acknowledged() {
        let mut inbox = Inbox::default();
        assert!((1..ACK_FRAMES).all(|_| inbox.count(100).is_none()));
        assert_eq!(inbox.count(100), Some(Frame::Ack { frames: ACK_FRAMES }));
        assert_eq!(inbox.count(ACK_BYTES - 1), None);
        assert_eq!(inbox.count(1), Some(Frame::Ack { frames: ACK_FRAMES + 2 }));
        assert_eq!(inbox.count(1), None);
    }
}
