//! What a run came to: the JSON object on standard output, and the exit status.

use serde::ser::SerializeMap as _;
use serde::{Serialize, Serializer};

use super::Fixture;
use super::fixture::Removal;
use crate::iteration::Lap;
use crate::session::{Measured, exit_status};
use crate::summary::Summary;
use crate::{Conditions, EndedEarly, Failure, Percentiles, PoolReport, PoolUse, Stage, StageTimes};

/// What one successful iteration took.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RestoreSample {
    /// Which one, from 1.
    pub iteration: u32,
    /// From sending `POST /snapshot/restore` to having the answer of `POST /exec`;
    /// `restore_only_ns + exec_ns`.
    pub restore_tti_ns: u64,
    /// From sending `POST /snapshot/restore` to having its answer.
    pub restore_only_ns: u64,
    /// From then to having the answer of `POST /exec`.
    pub exec_ns: u64,
    /// `POST /destroy`; no part of the TTI.
    pub destroy_ns: u64,
    /// Where the sandbox came from; without `--pool-aware` only if the server says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pool: Option<PoolUse>,
    /// The server's account of `POST /snapshot/restore`, if it gave one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server_timing: Option<StageTimes>,
}

/// How many calls failed in measured iterations, and what could not be removed after them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct FailureCounts {
    /// `POST /snapshot/restore` gave no sandbox.
    pub restore_api: u32,
    /// `POST /exec` failed, or the command did, or it printed something else.
    pub sanity_exec: u32,
    /// `POST /destroy` failed.
    pub destroy: u32,
    /// Calls given up at a second interrupt, and the entries of `cleanup_failures`.
    pub other: u32,
}

/// The result file. The first thirteen fields are the specified ones.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RestoreOutcome {
    /// `--iterations`
    pub iterations_requested: u32,
    /// Those with a sample. The others, failed or not begun, are in no percentile.
    pub iterations_success: u32,
    /// `POST /snapshot/restore` alone.
    #[serde(flatten, serialize_with = "restore_only")]
    pub restore_only: Percentiles,
    /// From `POST /snapshot/restore` to the answer of `POST /exec`.
    #[serde(flatten, serialize_with = "restore_tti")]
    pub restore_tti: Percentiles,
    /// By class.
    pub failures: FailureCounts,
    /// Those with at least one entry in `failure_details`.
    pub iterations_failed: u32,
    /// Why not all requested iterations were begun and ended, if so.
    pub ended_early: Option<EndedEarly>,
    /// `POST /exec` alone, of the same iterations.
    pub exec: Percentiles,
    /// `POST /destroy`, of the same iterations; no part of TTI.
    pub destroy: Percentiles,
    /// What went wrong in measured iterations, in order.
    pub failure_details: Vec<Failure>,
    /// What went wrong in warm-up iterations, in order.
    pub warmup_failures: Vec<Failure>,
    /// What may be left of the snapshot and of the sandboxes, and why.
    pub cleanup_failures: Vec<String>,
    /// Raw, in the order they were taken.
    pub samples: Vec<RestoreSample>,
    /// What was restored.
    pub fixture: Fixture,
    /// Where and when.
    pub conditions: Conditions,
    /// With `--pool-aware`: hits and misses apart.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pool: Option<PoolReport>,
}

impl RestoreOutcome {
    pub(crate) fn new(fixture: Fixture, mut measured: Measured, removal: Removal) -> Self {
        if removal.no_sandbox_is_left {
            let failures = measured.failures.iter_mut().chain(&mut measured.warmup_failures);
            failures.for_each(|failure| failure.may_leave_a_sandbox = false);
        }
        let of = |part: fn(&Lap) -> u64| Percentiles::of(measured.laps.iter().map(part));
        Self {
            iterations_requested: measured.requested,
            iterations_success: measured.success(),
            restore_only: of(|lap| lap.begin_ns),
            restore_tti: of(Lap::tti_ns),
            failures: FailureCounts::of(&measured.failures, &removal.failures),
            iterations_failed: measured.failed(),
            ended_early: measured.ended_early,
            exec: of(|lap| lap.exec_ns),
            destroy: of(|lap| lap.destroy_ns),
            samples: measured
                .laps
                .iter()
                .map(|lap| RestoreSample::of(lap, measured.pool.is_some()))
                .collect(),
            failure_details: measured.failures,
            warmup_failures: measured.warmup_failures,
            cleanup_failures: removal.failures,
            fixture,
            conditions: measured.conditions,
            pool: measured.pool,
        }
    }

    /// As [`Outcome::exit_status`](crate::Outcome::exit_status).
    #[must_use]
    pub fn exit_status(&self) -> u8 {
        exit_status(self.ended_early, self.iterations_success)
    }

    pub(crate) fn summary(&self) -> String {
        let summary = Summary {
            requested: self.iterations_requested,
            success: self.iterations_success,
            failed: self.iterations_failed,
            vmm: &self.conditions.server.vmm,
            rows: &[
                ("restore TTI", self.restore_tti),
                ("restore only", self.restore_only),
                ("exec", self.exec),
                ("destroy", self.destroy),
            ],
            more: None,
            pool: self.pool.as_ref(),
            failures: ("failure_details", &self.failure_details),
            warmup_failures: &self.warmup_failures,
            ended_early: self.ended_early,
        };
        summary.to_string()
    }
}

impl FailureCounts {
    fn of(failures: &[Failure], cleanup_failures: &[String]) -> Self {
        let mut counts = Self::default();
        for failure in failures {
            let class = match failure.stage {
                _ if failure.given_up => &mut counts.other,
                Stage::Create | Stage::Restore => &mut counts.restore_api,
                Stage::Exec => &mut counts.sanity_exec,
                Stage::Destroy => &mut counts.destroy,
            };
            *class += 1;
        }
        counts.other += u32::try_from(cleanup_failures.len()).unwrap_or(u32::MAX);
        counts
    }
}

impl RestoreSample {
    fn of(lap: &Lap, pool_aware: bool) -> Self {
        Self {
            iteration: lap.iteration,
            restore_tti_ns: lap.tti_ns(),
            restore_only_ns: lap.begin_ns,
            exec_ns: lap.exec_ns,
            destroy_ns: lap.destroy_ns,
            pool: lap.pool.told(pool_aware),
            server_timing: lap.server_timing.clone(),
        }
    }
}

fn restore_only<S: Serializer>(of: &Percentiles, serializer: S) -> Result<S::Ok, S::Error> {
    prefixed("restore_only", of, serializer)
}

fn restore_tti<S: Serializer>(of: &Percentiles, serializer: S) -> Result<S::Ok, S::Error> {
    prefixed("restore_tti", of, serializer)
}

fn prefixed<S: Serializer>(prefix: &str, of: &Percentiles, serializer: S) -> Result<S::Ok, S::Error> {
    let mut map = serializer.serialize_map(None)?;
    for (name, ns) in of.named() {
        map.serialize_entry(&format!("{prefix}_{name}"), &ns)?;
    }
    map.end()
}
