//! Some iterations, one after another or several at once, and what they gave.

use std::panic::resume_unwind;
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::task::JoinSet;

use crate::Failure;
use crate::iteration::{Lap, Plan, iterate};
use crate::load::Load;
use crate::session::Session;

/// Why a run stopped before its last iteration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum EndedEarly {
    /// Ctrl-C or SIGTERM.
    Interrupted,
    /// Nobody listens at the endpoint any more.
    ServerUnreachable,
}

/// What the iterations gave, in the order they were launched.
pub(crate) struct Phase {
    pub(crate) laps: Vec<Lap>,
    pub(crate) failures: Vec<Failure>,
    /// From the first launch to the end of the last iteration.
    pub(crate) wall: Duration,
    pub(crate) ended_early: Option<EndedEarly>,
}

impl Phase {
    /// Launches them as `load` says. An interrupt, or a server that is gone, ends the launching; what is
    /// under way is waited for in any case, since each iteration removes its own sandbox.
    pub(crate) async fn run(
        session: &Session<'_>,
        name: &'static str,
        plan: &Plan,
        iterations: u32,
        load: Load,
    ) -> Self {
        let Session { client, interrupt, progress, .. } = session;
        progress.phase(name, iterations);
        let mut phase =
            Self { laps: Vec::new(), failures: Vec::new(), wall: Duration::ZERO, ended_early: None };
        let begun = Instant::now();
        let (mut under_way, mut pace, mut launched) = (JoinSet::new(), load.pace(), 0);
        loop {
            let is_place = under_way.len() < load.concurrency as usize;
            let may_launch = is_place && launched < iterations && phase.ended_early.is_none();
            tokio::select! {
                biased;
                due = interrupt.unless(1, pace.due()), if may_launch => match due {
                    Some(()) => {
                        launched += 1;
                        let (client, plan, interrupt) = (client.clone(), plan.clone(), (*interrupt).clone());
                        let iteration = launched;
                        under_way.spawn(async move {
                            iterate(&client, &plan, iteration, begun, &interrupt).await
                        });
                    }
                    None => phase.ended_early = Some(EndedEarly::Interrupted),
                },
                Some(ended) = under_way.join_next() => {
                    let ended = ended.unwrap_or_else(|error| resume_unwind(error.into_panic()));
                    phase.take(session, name, ended);
                }
                else => break,
            }
        }
        phase.wall = begun.elapsed();
        phase.laps.sort_by_key(|lap| lap.iteration);
        phase.failures.sort_by_key(|failure| failure.iteration);
        phase
    }

    fn take(&mut self, session: &Session<'_>, name: &str, ended: Result<Option<Lap>, Vec<Failure>>) {
        let Session { interrupt, progress, .. } = session;
        let mut ends = None;
        match ended {
            Ok(Some(lap)) => self.laps.push(lap),
            Ok(None) => ends = Some(EndedEarly::Interrupted),
            Err(failures) => {
                progress.failed(name, &failures);
                if interrupt.is_set() {
                    ends = Some(EndedEarly::Interrupted);
                } else if failures.iter().any(|failure| failure.unreachable) {
                    ends = Some(EndedEarly::ServerUnreachable);
                }
                self.failures.extend(failures);
            }
        }
        if ends.is_none() {
            progress.step();
        }
        self.ended_early = self.ended_early.or(ends);
    }
}
