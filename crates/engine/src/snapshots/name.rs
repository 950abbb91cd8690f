//! Names that people give to snapshots.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

const LENGTH_MAX: usize = 64;

/// A snapshot's name: 1 to 64 letters, digits, `.`, `_` and `-`, beginning with a letter or digit.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct SnapshotName(String);

/// Why a text is not a name.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "a snapshot's name is 1 to {LENGTH_MAX} letters (a-z, A-Z), digits, \".\", \"_\" and \"-\", \
     beginning with a letter or digit"
)]
pub(crate) struct BadName;

impl FromStr for SnapshotName {
    type Err = BadName;

    fn from_str(text: &str) -> Result<Self, BadName> {
        let begins_well = text.starts_with(|first: char| first.is_ascii_alphanumeric());
        let all_allowed =
            text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'));
        if begins_well && all_allowed && text.len() <= LENGTH_MAX {
            Ok(Self(text.to_owned()))
        } else {
            Err(BadName)
        }
    }
}

impl TryFrom<String> for SnapshotName {
    type Error = BadName;

    fn try_from(text: String) -> Result<Self, BadName> {
        text.parse()
    }
}

impl From<SnapshotName> for String {
    fn from(name: SnapshotName) -> Self {
        name.0
    }
}

impl fmt::Display for SnapshotName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rule_for_names_holds() {
        let longest = "x".repeat(LENGTH_MAX);
        for good in ["a", "0", "py3.12_ready-2", "A..b", &longest] {
            assert_eq!(good.parse::<SnapshotName>().unwrap().to_string(), good);
        }
        let too_long = "x".repeat(LENGTH_MAX + 1);
        for bad in ["", ".", "-a", "_a", "a b", "a/b", "a\n", "ä", "aä", "a\0", &too_long] {
            assert_eq!(bad.parse::<SnapshotName>(), Err(BadName), "{bad:?}");
        }
        assert!(serde_json::from_str::<SnapshotName>("\"../x\"").is_err());
    }
}
