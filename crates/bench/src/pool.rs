//! Where the server had its sandboxes from, and what it said of its own time: `--pool-aware`. Waiting for a
//! pool to be full is `session`'s.

use std::time::Duration;

use clap::Args;
use manta_api::Pools;
use manta_client::ServerTiming;
use serde::{Serialize, Serializer};

use crate::Percentiles;
use crate::iteration::{Lap, nanoseconds};

/// The name in `Server-Timing` whose description says where a sandbox came from.
const POOL: &str = "pool";

/// The flags that are about the server's pools.
#[derive(Debug, Clone, Copy, Args)]
pub struct PoolArgs {
    /// Tell sandboxes that waited ready from those made on the way. Before the measured runs, not between
    /// them, it is waited until the server's pool is full
    #[arg(long)]
    pub pool_aware: bool,
    /// How long at most, seconds
    #[arg(long, value_name = "S", default_value_t = 60, requires = "pool_aware")]
    pub pool_wait_s: u32,
}

/// Where a sandbox came from, by the server's account.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PoolUse {
    /// It waited, ready to be handed out.
    Hit,
    /// Its VMM process waited; it was restored on the way.
    Prepared,
    /// All of it was made on the way.
    Miss,
    /// The server does not say.
    Unknown,
}

/// The times of the server's stages, nanoseconds, in its order; a map in JSON. What a stage took twice, as after
/// a sandbox that was lost, is one sum.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StageTimes(pub Vec<(String, u64)>);

/// The iterations apart by where their sandboxes came from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PoolReport {
    /// Of sandboxes that waited.
    pub hits: PoolGroup,
    /// Of sandboxes whose VMM waited.
    pub prepared: PoolGroup,
    /// Of sandboxes made on the way.
    pub misses: PoolGroup,
    /// Iterations of which the server did not say; in none of these.
    pub unknown: u32,
}

/// Iterations with something in common.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct PoolGroup {
    /// How many.
    pub count: u32,
    /// Up to the answer of `POST /exec`.
    pub tti: Percentiles,
    /// The create, or the restore, alone.
    pub begin: Percentiles,
    /// `POST /exec` alone.
    pub exec: Percentiles,
    /// The median of each of the server's stages, over the iterations that have it.
    pub server_timing_p50_ns: StageTimes,
}

impl PoolUse {
    pub(crate) fn of(timing: Option<&ServerTiming>) -> Self {
        match timing.and_then(|timing| timing.description(POOL)) {
            Some("hit") => Self::Hit,
            Some("prepared") => Self::Prepared,
            Some("miss") => Self::Miss,
            _ => Self::Unknown,
        }
    }

    /// As a sample has it: that the server does not say is worth saying only to who wants to know.
    pub(crate) fn told(self, pool_aware: bool) -> Option<Self> {
        (pool_aware || self != Self::Unknown).then_some(self)
    }
}

impl StageTimes {
    pub(crate) fn of(timing: &ServerTiming) -> Self {
        let mut times: Vec<(String, u64)> = Vec::new();
        for (name, took) in timing.stages() {
            match times.iter_mut().find(|(known, _)| known == name) {
                Some((_, ns)) => *ns = ns.saturating_add(nanoseconds(took)),
                None => times.push((name.to_owned(), nanoseconds(took))),
            }
        }
        Self(times)
    }

    fn medians<'a>(all: impl Iterator<Item = &'a Self>) -> Self {
        let mut stages: Vec<(String, Vec<u64>)> = Vec::new();
        for (name, ns) in all.flat_map(|times| &times.0) {
            match stages.iter_mut().find(|(known, _)| known == name) {
                Some((_, samples)) => samples.push(*ns),
                None => stages.push((name.clone(), vec![*ns])),
            }
        }
        let median = |(name, samples): (_, Vec<u64>)| Some((name, Percentiles::of(samples).p50_ns?));
        Self(stages.into_iter().filter_map(median).collect())
    }
}

impl Serialize for StageTimes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, ns)| (name, ns)))
    }
}

impl PoolReport {
    pub(crate) fn of(laps: &[Lap]) -> Self {
        let group = |pool| PoolGroup::of(&laps.iter().filter(|lap| lap.pool == pool).collect::<Vec<_>>());
        Self {
            hits: group(PoolUse::Hit),
            prepared: group(PoolUse::Prepared),
            misses: group(PoolUse::Miss),
            unknown: group(PoolUse::Unknown).count,
        }
    }

    /// The rows of a table, for the groups that there are.
    pub(crate) fn rows(&self) -> Vec<(String, Percentiles)> {
        let rows = |(name, group): (&str, &PoolGroup)| {
            let row = |what, of| (format!("{name}: {what}"), of);
            [row("TTI", group.tti), row("begin", group.begin), row("exec", group.exec)]
        };
        self.groups().flat_map(rows).collect()
    }

    /// How many of each, and what the server said of its time.
    pub(crate) fn lines(&self) -> Vec<String> {
        let Self { hits, prepared, misses, unknown } = self;
        let mut lines = vec![format!(
            "pool: {} hits, {} prepared, {} misses, {unknown} unknown",
            hits.count, prepared.count, misses.count
        )];
        if *unknown > 0 {
            lines.push(format!(
                "WARNING: of {unknown} iterations the server did not say where their sandboxes came from."
            ));
        }
        for (name, group) in self.groups() {
            let stage = |(stage, ns): &(String, u64)| format!("{stage} {:.2?}", Duration::from_nanos(*ns));
            let stages: Vec<_> = group.server_timing_p50_ns.0.iter().map(stage).collect();
            if !stages.is_empty() {
                lines.push(format!("{name}: medians of the server's stages: {}", stages.join(", ")));
            }
        }
        lines
    }

    fn groups(&self) -> impl Iterator<Item = (&'static str, &PoolGroup)> {
        let named = [("hits", &self.hits), ("prepared", &self.prepared), ("misses", &self.misses)];
        named.into_iter().filter(|(_, group)| group.count > 0)
    }
}

impl PoolGroup {
    fn of(laps: &[&Lap]) -> Self {
        let of = |part: fn(&Lap) -> u64| Percentiles::of(laps.iter().map(|lap| part(lap)));
        Self {
            count: u32::try_from(laps.len()).unwrap_or(u32::MAX),
            tti: of(Lap::tti_ns),
            begin: of(|lap| lap.begin_ns),
            exec: of(|lap| lap.exec_ns),
            server_timing_p50_ns: StageTimes::medians(
                laps.iter().filter_map(|lap| lap.server_timing.as_ref()),
            ),
        }
    }
}

/// Whether as many sandboxes wait as the server wants to have waiting.
pub(crate) fn is_full(pools: &Pools) -> bool {
    pools.warm.depth >= pools.warm.target
}
