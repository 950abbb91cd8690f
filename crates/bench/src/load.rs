//! When the iterations of a run are launched, and how many may be under way at once.

use std::fmt;
use std::time::Duration;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use tokio::time::{Interval, MissedTickBehavior, interval};

/// Between two launches of [`Mode::Staggered`]: that of the ComputeSDK benchmarks.
const STAGGER: Duration = Duration::from_millis(200);

/// When iterations are launched.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Each when the one before has ended
    #[default]
    Sequential,
    /// One each 200 ms
    Staggered,
    /// All at once
    Burst,
}

/// The order of a run. A launch for which there is no place waits for one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Load {
    pub(crate) mode: Mode,
    /// Iterations under way at once, at most.
    pub(crate) concurrency: u32,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sequential => "sequential",
            Self::Staggered => "staggered",
            Self::Burst => "burst",
        })
    }
}

/// Tells when the next launch is due.
pub(crate) struct Pace(Option<Interval>);

impl Load {
    pub(crate) const ONE_BY_ONE: Self = Self { mode: Mode::Sequential, concurrency: 1 };

    /// From the first launch on.
    pub(crate) fn pace(self) -> Pace {
        Pace((self.mode == Mode::Staggered).then(|| {
            let mut pace = interval(STAGGER);
            // Launches that waited for a place do not make up a burst afterwards.
            pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
            pace
        }))
    }
}

impl Pace {
    pub(crate) async fn due(&mut self) {
        if let Some(pace) = &mut self.0 {
            pace.tick().await;
        }
    }
}
