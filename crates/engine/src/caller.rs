//! On whose behalf something is done: for the owner of a sandbox, for the events, and for the limits that somebody has.

use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What the server itself is called where a key's name would stand; no key is to have this name.
pub const SERVER: &str = "server";

/// Who wants something done. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub enum Caller {
    /// Whoever got in without a key.
    #[default]
    Anyone,
    /// The server, of its own accord; no limit holds for it.
    Server,
    /// The holder of a key.
    Key(Arc<KeyHolder>),
}

/// The holder of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyHolder {
    /// The key's name.
    pub name: String,
    /// What they may have.
    pub limits: KeyLimits,
}

/// What the holder of one key may have; none: as much as there is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyLimits {
    /// Sandboxes at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_sandboxes: Option<NonZeroU32>,
    /// How fast they are made, restored ones included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub creates_per_s: Option<Rate>,
}

impl Caller {
    /// Whose a sandbox is that is made for this caller: a key's name.
    pub(crate) fn owner(&self) -> Option<&str> {
        match self {
            Self::Key(holder) => Some(&holder.name),
            Self::Anyone | Self::Server => None,
        }
    }

    /// For the events.
    pub(crate) fn who(&self) -> Option<String> {
        match self {
            Self::Anyone => None,
            Self::Server => Some(SERVER.to_owned()),
            Self::Key(holder) => Some(holder.name.clone()),
        }
    }

    /// Whoever made a sandbox that an earlier server had; what its key allows it now is not known, and not asked.
    pub(crate) fn found(owner: Option<String>) -> Self {
        owner.map_or(Self::Anyone, |name| {
            Self::Key(Arc::new(KeyHolder { name, limits: KeyLimits::default() }))
        })
    }

    pub(crate) fn limits(&self) -> KeyLimits {
        match self {
            Self::Key(holder) => holder.limits,
            Self::Anyone | Self::Server => KeyLimits::default(),
        }
    }
}

/// How often something may be done: so many times a second on average, and so many at once after a pause.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Rate {
    /// Times in a thousand seconds.
    per_1000_s: NonZeroU32,
    burst: NonZeroU32,
}

impl Rate {
    /// After this long, one more.
    pub(crate) fn interval(self) -> Duration {
        Duration::from_secs(1000) / self.per_1000_s.get()
    }

    pub(crate) fn burst(self) -> u32 {
        self.burst.get()
    }
}

/// As `10`, `0.5` or `10:100`: times a second, and, after a colon, how many at once; without it, as many as a second
/// brings, and at least one.
impl FromStr for Rate {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const WRONG: &str = "write it like 10, 0.5 or 10:100: creates per second, from 0.001 to 100000, and how many \
            of them may come at once, from 1 to 100000";
        const MOST: u32 = 100_000;
        let number = |text: &str| {
            let digits =
                !text.is_empty() && text.len() <= 6 && text.bytes().all(|byte| byte.is_ascii_digit());
            digits.then(|| text.parse::<u32>().ok()).flatten()
        };
        let parse = || {
            let (rate, burst) =
                text.split_once(':').map_or((text, None), |(rate, burst)| (rate, Some(burst)));
            let (whole, part) = rate.split_once('.').unwrap_or((rate, "0"));
            let thousandths = number(&format!("{part:0<3}")).filter(|_| (1..=3).contains(&part.len()))?;
            let per_1000_s = number(whole)?.checked_mul(1000)?.checked_add(thousandths)?;
            let burst = burst.map_or(Some(per_1000_s.div_ceil(1000)), number)?;
            let in_range = per_1000_s <= MOST * 1000 && burst <= MOST;
            let (per_1000_s, burst) = (NonZeroU32::new(per_1000_s)?, NonZeroU32::new(burst)?);
            in_range.then_some(Self { per_1000_s, burst })
        };
        parse().ok_or(WRONG)
    }
}

impl From<Rate> for String {
    fn from(rate: Rate) -> Self {
        rate.to_string()
    }
}

impl TryFrom<String> for Rate {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

/// As it is parsed.
impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, part) = (self.per_1000_s.get() / 1000, self.per_1000_s.get() % 1000);
        let part = format!("{part:03}");
        match part.trim_end_matches('0') {
            "" => write!(f, "{whole}:{}", self.burst),
            part => write!(f, "{whole}.{part}:{}", self.burst),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_rate_is_a_number_and_perhaps_a_burst() {
        for (text, expected) in [
            ("10", "10:10"),
            ("0.5", "0.5:1"),
            ("10:100", "10:100"),
            ("0.001:1", "0.001:1"),
            ("2.50:1", "2.5:1"),
            ("100000:100000", "100000:100000"),
        ] {
            assert_eq!(text.parse::<Rate>().unwrap().to_string(), expected, "{text}");
        }
        for wrong in [
            "",
            "0",
            "1.",
            "0:1",
            "1:0",
            "-1",
            "1:",
            ":1",
            ".5",
            "1e3",
            "0.0001",
            "0.1234",
            "1:1:1",
            "1 ",
            "+1",
            "100001",
            "100000.001",
            "1:100001",
        ] {
            assert!(wrong.parse::<Rate>().is_err(), "{wrong:?}");
        }
        assert_eq!("0.5".parse::<Rate>().unwrap().interval(), Duration::from_secs(2));
        assert_eq!("100000".parse::<Rate>().unwrap().interval(), Duration::from_micros(10));
    }

    proptest! {
        #[test]
        fn any_text_is_parsed_or_refused_and_what_is_printed_is_parsed(text in "[0-9.:]{0,12}|\\PC{0,10}") {
            if let Ok(rate) = text.parse::<Rate>() {
                prop_assert_eq!(rate.to_string().parse::<Rate>(), Ok(rate));
            }
        }
    }
}
