//! A Firecracker that its guest has taken over, played from bytes: what must hold whatever it answers. Called by the
//! fuzz target `firecracker`, and in tests.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, copy, sink};
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::api::{Api, ApiError};
use super::requests::{pause, start};
use super::vsock::agreed;

/// Of Firecracker's words, how much may get into a message or a log: bytes.
const PASSED_ON: usize = 4096;
const FOR_EVER: Duration = Duration::from_secs(3600);

/// Makes two requests to a Firecracker that answers this, and hangs up if the first byte is even. The clock must be
/// paused.
///
/// # Panics
/// When they are not over in time, or much of its words is passed on.
pub async fn firecracker(input: &[u8]) {
    let Some((&first, answers)) = input.split_first() else { return };
    let (ours, mut theirs) = UnixStream::pair().expect("a pair of sockets");
    let firecracker = async {
        theirs.read_u8().await?;
        theirs.write_all(answers).await?;
        if first % 2 == 1 {
            copy(&mut theirs, &mut sink()).await?;
        }
        drop(theirs);
        Ok::<_, std::io::Error>(())
    };
    let host = async {
        let mut api = Api::new(ours).await?;
        api.send(&start()).await?;
        api.send(&pause()).await.map(drop)
    };
    let both = async { tokio::join!(host, firecracker).0 };
    let ended: Result<(), ApiError> = timeout(FOR_EVER, both).await.expect("requests end");
    if let Err(error) = ended {
        assert!(error.to_string().len() <= PASSED_ON, "much of Firecracker's words");
    }
}

/// Asks for a connection to the guest, and is answered this: what follows the first line is left to be read.
///
/// # Panics
/// When it is not.
pub async fn connect(answer: &[u8]) {
    let (ours, mut theirs) = UnixStream::pair().expect("a pair of sockets");
    let sent = &answer[..answer.len().min(4096)];
    theirs.write_all(sent).await.expect("room for little");
    drop(theirs);
    let Ok(mut stream) = agreed(ours).await else { return };
    let line = sent.iter().position(|byte| *byte == b'\n').expect("a line");
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).await.expect("what was sent");
    assert_eq!(rest, &sent[line + 1..]);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn play<T>(input: impl Future<Output = T>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
        runtime.unwrap().block_on(input);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn any_answer_is_survived(
            first: u8,
            head in "(HTTP/1\\.[01] [0-9]{3}( |\r\n|OK|Content-Length: [0-9]{1,20}|Transfer-Encoding: chunked)*)?",
            body in prop::collection::vec(any::<u8>(), 0..300),
        ) {
            play(firecracker(&[&[first], head.as_bytes(), b"\r\n\r\n", &body].concat()));
        }

        #[test]
        fn any_consent_is_the_first_line(answer in "(OK )?[0-9]{0,40}\n?\\PC*") {
            play(connect(answer.as_bytes()));
        }
    }

    #[test]
    fn long_words_are_not_passed_on() {
        let fault = format!("{{\"fault_message\": \"{}\"}}", "x".repeat(60_000));
        for body in [fault, "y".repeat(60_000)] {
            let head = format!("HTTP/1.1 400 Bad Request\r\nContent-Length: {}\r\n\r\n", body.len());
            play(firecracker(&[b"\x01", head.as_bytes(), body.as_bytes()].concat()));
        }
    }
}
