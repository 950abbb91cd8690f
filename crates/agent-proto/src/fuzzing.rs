//! What must hold for any bytes on a link; called by the fuzz target `frames`, and in tests with its seeds.

use crate::codec::MAX_ENCODED;
use crate::{Decoder, Frame, encode};

/// `x` in front of the bytes, for each unit of the first byte: 255 of them are more than a frame may have.
const PADDING: usize = 1100;

/// Decodes the same bytes whole and cut into pieces: with the same outcome, holding no more than one frame; and what
/// is a frame comes back from its encoding. The first byte says how much padding goes before them, the second and
/// third how long the pieces are, in turn.
///
/// # Panics
/// When one of that does not hold.
pub fn frames(input: &[u8]) {
    let Some((&[padding, one, other], bytes)) = input.split_first_chunk() else { return };
    let bytes = [&vec![b'x'; usize::from(padding) * PADDING], bytes].concat();
    let whole = decode([bytes.as_slice()]);
    // Long pieces for long inputs, or each would take ages.
    let least = 1 + bytes.len() / 4096;
    let mut sizes = [one, other].map(|size| least + usize::from(size)).into_iter().cycle();
    let mut rest = bytes.as_slice();
    let pieces = std::iter::from_fn(|| {
        let (piece, after) = rest.split_at(sizes.next()?.min(rest.len()));
        rest = after;
        (!piece.is_empty()).then_some(piece)
    });
    assert_eq!(whole, decode(pieces), "pieces of another size give other frames");
    for frame in whole.into_iter().flatten() {
        let mut again = Vec::new();
        // What was left out of a message may make it too long when it is spelled out.
        if encode(&frame, &mut again).is_ok() {
            assert_eq!(decode([again.as_slice()]), [Ok(frame)]);
        }
    }
}

/// The frames, and the errors as text.
fn decode<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Vec<Result<Frame, String>> {
    let mut decoder = Decoder::new();
    let mut decoded = Vec::new();
    for piece in pieces {
        decoder.feed(piece);
        while let Some(frame) = decoder.next_frame() {
            decoded.push(frame.map_err(|error| error.to_string()));
        }
        assert!(decoder.held() <= MAX_ENCODED, "{} bytes are held", decoder.held());
    }
    decoded
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        // Of up to 280 KB each.
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn any_bytes_hold_it(input in prop::collection::vec(prop_oneof![1 => Just(0_u8), 8 => any::<u8>()], 0..3000)) {
            frames(&input);
        }
    }

    #[test]
    fn so_do_the_seeds() {
        let seeds = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/seeds/frames");
        let mut inputs = 0;
        for seed in std::fs::read_dir(seeds).unwrap() {
            frames(&std::fs::read(seed.unwrap().path()).unwrap());
            inputs += 1;
        }
        assert_ne!(inputs, 0);
    }
}
