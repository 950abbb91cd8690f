//! What the guest printed on its serial port. QEMU keeps it in a ring until it is read; here it is kept after.

use std::sync::{Mutex, PoisonError};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::json;

use super::command::{CONSOLE, CONSOLE_SIZE};
use super::qmp::{Qmp, QmpError};

/// The last of a console.
#[derive(Debug, Default)]
pub(super) struct Console {
    read: Mutex<Vec<u8>>,
}

impl Console {
    /// Takes over what QEMU has.
    pub(super) async fn fetch(&self, qmp: &Qmp) -> Result<(), QmpError> {
        // As base64, since the guest need not print UTF-8.
        let arguments = json!({ "device": CONSOLE, "size": CONSOLE_SIZE, "format": "base64" });
        let answer = qmp.execute("ringbuf-read", arguments).await?;
        let text = answer.as_str().unwrap_or_default();
        let bytes = BASE64_STANDARD.decode(text).map_err(|error| QmpError::Answer(error.to_string()))?;
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        read.extend(bytes);
        let surplus = read.len().saturating_sub(CONSOLE_SIZE);
        read.drain(..surplus);
        Ok(())
    }

    pub(super) fn text(&self) -> String {
        String::from_utf8_lossy(&self.read.lock().unwrap_or_else(PoisonError::into_inner)).into_owned()
    }
}
