//! What a run came to: the JSON object on standard output, and the exit status.

use serde::Serialize;

use crate::{Conditions, Failure, Percentiles, Sample};

/// The result file. The first seven fields are the specified ones and describe TTI.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Outcome {
    /// `--iterations`
    pub iterations_requested: u32,
    /// Those with a sample. The others, failed or not begun, are in no percentile.
    pub iterations_success: u32,
    /// TTI.
    #[serde(flatten)]
    pub tti: Percentiles,
    /// Those with at least one entry in `failures`.
    pub iterations_failed: u32,
    /// Why not all requested iterations were begun and ended, if so.
    pub ended_early: Option<EndedEarly>,
    /// `POST /create` alone, of the same iterations.
    pub create: Percentiles,
    /// `POST /exec` alone, of the same iterations.
    pub exec: Percentiles,
    /// `POST /destroy`, of the same iterations; no part of TTI.
    pub destroy: Percentiles,
    /// What went wrong in measured iterations, in order.
    pub failures: Vec<Failure>,
    /// What went wrong in warm-up iterations, in order.
    pub warmup_failures: Vec<Failure>,
    /// Raw, in the order they were taken.
    pub samples: Vec<Sample>,
    /// Where and when.
    pub conditions: Conditions,
}

/// Why a run stopped before its last iteration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum EndedEarly {
    /// Ctrl-C or SIGTERM.
    Interrupted,
    /// Nobody listens at the endpoint any more.
    ServerUnreachable,
}

impl Outcome {
    pub(crate) fn new(
        iterations_requested: u32,
        samples: Vec<Sample>,
        failures: Vec<Failure>,
        warmup_failures: Vec<Failure>,
        ended_early: Option<EndedEarly>,
        conditions: Conditions,
    ) -> Self {
        // An iteration's failures follow one another.
        let failed = failures.chunk_by(|one, next| one.iteration == next.iteration).count();
        let of = |part: fn(&Sample) -> u64| Percentiles::of(samples.iter().map(part));
        Self {
            iterations_requested,
            iterations_success: count(samples.len()),
            tti: of(|sample| sample.tti_ns),
            iterations_failed: count(failed),
            ended_early,
            create: of(|sample| sample.create_ns),
            exec: of(|sample| sample.exec_ns),
            destroy: of(|sample| sample.destroy_ns),
            failures,
            warmup_failures,
            samples,
            conditions,
        }
    }

    /// 130 after an interrupt; 1 if no iteration succeeded or the server went away; else 0, also
    /// when some iterations failed: the numbers are those of the others, and the file says so.
    #[must_use]
    pub fn exit_status(&self) -> u8 {
        match self.ended_early {
            Some(EndedEarly::Interrupted) => 130,
            Some(EndedEarly::ServerUnreachable) => 1,
            None => u8::from(self.iterations_success == 0),
        }
    }
}

fn count(items: usize) -> u32 {
    u32::try_from(items).unwrap_or(u32::MAX)
}
