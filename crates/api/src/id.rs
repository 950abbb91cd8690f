//! Ids from outside, parsed once at the edge. What parses is safe as a path component.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;
use utoipa::ToSchema;

const PREFIX: &str = "sb-";
const DIGITS: usize = 20;

/// A sandbox: `sb-` and 20 lower-case hexadecimal digits (80 random bits).
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(try_from = "String", into = "String")]
#[schema(value_type = String, pattern = "^sb-[0-9a-f]{20}$", example = "sb-0123456789abcdef0123")]
pub struct SandboxId(String);

/// Why a text is not an id.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("not a sandbox id: expected \"{PREFIX}\" and {DIGITS} lower-case hexadecimal digits")]
pub struct IdError;

impl SandboxId {
    /// An id from random bytes.
    #[must_use]
    pub fn from_random(bytes: [u8; DIGITS / 2]) -> Self {
        let mut id = String::from(PREFIX);
        for byte in bytes {
            id.push_str(&format!("{byte:02x}"));
        }
        Self(id)
    }

    /// The id as it is written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for SandboxId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let digits = text.strip_prefix(PREFIX).ok_or(IdError)?;
        let hex = digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        if digits.len() == DIGITS && hex { Ok(Self(text.to_owned())) } else { Err(IdError) }
    }
}

impl TryFrom<String> for SandboxId {
    type Error = IdError;

    fn try_from(text: String) -> Result<Self, IdError> {
        text.parse()
    }
}

impl From<SandboxId> for String {
    fn from(id: SandboxId) -> Self {
        id.0
    }
}

impl fmt::Display for SandboxId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for SandboxId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
