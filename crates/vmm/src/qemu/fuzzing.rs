//! A QEMU that its guest has taken over, played from bytes: what must hold whatever it says. Called by the fuzz target
//! `qmp`, and in tests.

use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy, sink};
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::qmp::{COMMAND_TIMEOUT, Qmp, QmpError};

/// Of QEMU's words, how much may get into a message or a log: bytes.
const PASSED_ON: usize = 4096;

/// Gives commands to a QEMU that says this: as many bytes as the first one counts at once, the rest when it has been
/// told something; and then hangs up if that number is even. The clock must be paused.
///
/// # Panics
/// When the conversation does not end, or much of QEMU's words is passed on.
pub async fn qmp(input: &[u8]) {
    let Some((&first, input)) = input.split_first() else { return };
    let (greeting, rest) = input.split_at(usize::from(first).min(input.len()));
    let (ours, mut theirs) = UnixStream::pair().expect("a pair of sockets");
    let qemu = async {
        theirs.write_all(greeting).await?;
        theirs.read_u8().await?;
        theirs.write_all(rest).await?;
        if first % 2 == 1 {
            copy(&mut theirs, &mut sink()).await?;
        }
        drop(theirs);
        Ok::<_, std::io::Error>(())
    };
    let host = async {
        // The greeting's deadline is the caller's.
        let qmp = timeout(COMMAND_TIMEOUT, Qmp::start(ours)).await.unwrap_or(Err(QmpError::Closed))?;
        for command in ["stop", "cont"] {
            if let Err(error) = qmp.execute(command, json!({})).await {
                judge(&error);
            }
        }
        let told = timeout(COMMAND_TIMEOUT, qmp.told(|told| told.migration.is_some())).await;
        told.unwrap_or(Err(QmpError::Closed))
    };
    let both = async { tokio::join!(host, qemu).0 };
    match timeout(Duration::from_secs(3600), both).await.expect("a conversation ends") {
        Ok(told) => assert!(format!("{told:?}").len() <= PASSED_ON, "much was told"),
        Err(error) => judge(&error),
    }
}

fn judge(error: &QmpError) {
    let words = error.to_string();
    assert!(words.len() <= PASSED_ON, "{} bytes of QEMU's words", words.len());
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GREETING: &str = "{\"QMP\": {}}\r\n{\"return\": {}}\r\n";

    fn play(input: &[u8]) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
        runtime.unwrap().block_on(qmp(input));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn any_words_are_survived(first: u8, greeted: bool, words in "([{}\\[\\]:,\"\n]|return|error|desc|event|\\PC)*") {
            let greeting = if greeted { GREETING } else { "" };
            play(&[&[first], greeting.as_bytes(), words.as_bytes()].concat());
        }
    }

    #[test]
    fn long_words_are_not_passed_on() {
        let long = "x".repeat(100_000);
        for rest in [
            format!("{{\"error\": {{\"desc\": \"{long}\"}}}}\n"),
            format!("{{\"{long}\": 1, \"data\": \"{long}\"}}\n"),
            format!("{{\"event\": \"MIGRATION\", \"data\": {{\"status\": \"{long}\"}}}}\n"),
        ] {
            play(format!("{}{GREETING}{rest}", char::from(14)).as_bytes());
        }
    }
}
