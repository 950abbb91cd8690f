//! Ids from outside, parsed once at the edge. What parses is safe as a path component.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;
use utoipa::ToSchema;

const DIGITS: usize = 20;

/// Why a text is not an id.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("not a {kind} id: expected \"{prefix}\" and {DIGITS} lower-case hexadecimal digits")]
pub struct IdError {
    kind: &'static str,
    prefix: &'static str,
}

/// Defines an id: its prefix and 80 random bits.
macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $prefix:literal, $pattern:literal, $example:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
        #[serde(try_from = "String", into = "String")]
        #[schema(value_type = String, pattern = $pattern, example = $example)]
        pub struct $name(String);

        impl $name {
            /// An id from random bytes.
            #[must_use]
            pub fn from_random(bytes: [u8; DIGITS / 2]) -> Self {
                let mut id = String::from($prefix);
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

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                let digits = text.strip_prefix($prefix).unwrap_or_default();
                let hex = digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
                if digits.len() == DIGITS && hex {
                    Ok(Self(text.to_owned()))
                } else {
                    Err(IdError { kind: $kind, prefix: $prefix })
                }
            }
        }

        impl TryFrom<String> for $name {
            type Error = IdError;

            fn try_from(text: String) -> Result<Self, IdError> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

id! {
    /// A sandbox: `sb-` and 20 lower-case hexadecimal digits (80 random bits).
    SandboxId, "sandbox", "sb-", "^sb-[0-9a-f]{20}$", "sb-0123456789abcdef0123"
}

id! {
    /// A snapshot: `snap-` and 20 lower-case hexadecimal digits (80 random bits).
    SnapshotId, "snapshot", "snap-", "^snap-[0-9a-f]{20}$", "snap-0123456789abcdef0123"
}
