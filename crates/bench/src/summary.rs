//! The table on standard error: the percentiles as durations, and what does not look right.

use std::fmt;
use std::time::Duration;

use manta_api::VmmInfo;

use crate::{EndedEarly, Failure, Percentiles, PoolReport};

/// An outcome for people.
pub(crate) struct Summary<'a> {
    pub(crate) requested: u32,
    pub(crate) success: u32,
    pub(crate) failed: u32,
    pub(crate) vmm: &'a VmmInfo,
    pub(crate) rows: &'a [(&'a str, Percentiles)],
    /// What else there is to say of the run, on a line of its own.
    pub(crate) more: Option<String>,
    /// With `--pool-aware`.
    pub(crate) pool: Option<&'a PoolReport>,
    /// With the name the list has in JSON.
    pub(crate) failures: (&'a str, &'a [Failure]),
    pub(crate) warmup_failures: &'a [Failure],
    pub(crate) ended_early: Option<EndedEarly>,
}

impl fmt::Display for Summary<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { requested, success, vmm, .. } = self;
        writeln!(
            f,
            "{success} of {requested} iterations succeeded ({} {}, {})\n",
            vmm.name, vmm.version, vmm.accelerator
        )?;
        let mut rows: Vec<_> = self.rows.iter().map(|(name, of)| ((*name).to_owned(), *of)).collect();
        rows.extend(self.pool.map(PoolReport::rows).into_iter().flatten());
        table(f, &rows)?;
        if let Some(more) = &self.more {
            writeln!(f, "\n{more}")?;
        }
        if let Some(pool) = self.pool {
            pool.lines().iter().try_for_each(|line| writeln!(f, "\n{line}"))?;
        }
        self.warnings(f)
    }
}

fn table(f: &mut fmt::Formatter<'_>, rows: &[(String, Percentiles)]) -> fmt::Result {
    let width = rows.iter().map(|(name, _)| name.len() + 1).max().unwrap_or_default();
    writeln!(f, "{:width$}{:>12}{:>12}{:>12}{:>12}{:>12}", "", "min", "p50", "p95", "p99", "max")?;
    for (name, of) in rows {
        write!(f, "{name:width$}")?;
        for (_, ns) in of.named() {
            match ns.map(Duration::from_nanos) {
                Some(duration) => write!(f, "{duration:>12.2?}")?,
                None => write!(f, "{:>12}", "-")?,
            }
        }
        writeln!(f)?;
    }
    Ok(())
}

impl Summary<'_> {
    fn warnings(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { failed, failures: (list, failures), .. } = self;
        if self.success == 0 {
            writeln!(f, "\nWARNING: no iteration succeeded: there is no measurement.")?;
        }
        if *failed > 0 {
            writeln!(f, "\nWARNING: failed iterations, in none of these numbers: {failed}; see {list:?}.")?;
        }
        if !self.warmup_failures.is_empty() {
            writeln!(f, "\nWARNING: warm-up iterations failed; see \"warmup_failures\".")?;
        }
        match self.ended_early {
            Some(EndedEarly::Interrupted) => {
                writeln!(f, "\nWARNING: interrupted before the last iteration.")?
            }
            Some(EndedEarly::ServerUnreachable) => {
                writeln!(f, "\nWARNING: ended early: the server went away.")?
            }
            None => {}
        }
        let failures = self.warmup_failures.iter().chain(*failures);
        for failure in failures.filter(|failure| failure.may_leave_a_sandbox) {
            match &failure.sandbox_id {
                Some(id) => writeln!(f, "\nWARNING: sandbox {id} may be left behind: POST /destroy it.")?,
                None => writeln!(f, "\nWARNING: a sandbox may be left behind: see GET /sandboxes.")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use insta::assert_snapshot;
    use manta_api::{Health, HealthStatus, HostConditions, VmmInfo};

    use super::*;
    use crate::args::CommonArgs;
    use crate::iteration::Lap;
    use crate::load::{Load, Mode};
    use crate::session::Measured;
    use crate::{Conditions, Outcome, PoolArgs, PoolUse, Stage, StageTimes};

    fn measured(laps: Vec<Lap>) -> Measured {
        let args = CommonArgs {
            api_key: None,
            ca_cert: None,
            endpoint: "http://localhost:8080".to_owned(),
            iterations: 3,
            warmup: 1,
            timeout: Duration::from_secs(90),
            pool: PoolArgs { pool_aware: false, pool_wait_s: 60 },
        };
        let text = String::new;
        let vmm = VmmInfo {
            name: "qemu".to_owned(),
            version: "10.0.2".to_owned(),
            accelerator: "tcg".to_owned(),
            reason: text(),
        };
        let host = HostConditions {
            cpu: text(),
            cpus: 2,
            mem_mib: 1,
            kernel: text(),
            filesystem: text(),
            storage: text(),
        };
        let health = Health {
            status: HealthStatus::Ok,
            degraded: Vec::new(),
            version: text(),
            vmm,
            sandboxes: 0,
            max_sandboxes: 1,
            pools: None,
            host,
            settings: Default::default(),
        };
        Measured {
            requested: 9,
            laps,
            failures: Vec::new(),
            warmup_failures: Vec::new(),
            wall_ns: 2_950_000_000,
            ended_early: None,
            conditions: Conditions::now(&args, "true", health),
            pool: None,
        }
    }

    fn lap(iteration: u32, begin_ns: u64, exec_ns: u64) -> Lap {
        let (destroy_ns, pool) = (31_000_000, PoolUse::Unknown);
        Lap { iteration, started_ns: 0, begin_ns, exec_ns, destroy_ns, pool, server_timing: None }
    }

    #[test]
    fn durations_are_readable_at_every_scale() {
        let laps =
            vec![lap(1, 812_345_678, 4_500_000), lap(2, 798_000_000, 950_999), lap(3, 1_204_000_000, 0)];
        let outcome = Outcome::new(Measured { requested: 3, ..measured(laps) }, Load::ONE_BY_ONE);
        assert_snapshot!(outcome.summary());
    }

    #[test]
    fn hits_and_misses_are_told_apart_when_asked_for() {
        let from = |pool, stages: &[(&str, u64)], lap| {
            let stages = stages.iter().map(|(name, ns)| ((*name).to_owned(), *ns)).collect();
            Lap { pool, server_timing: Some(StageTimes(stages)), ..lap }
        };
        let laps = vec![
            from(PoolUse::Hit, &[("claim", 31_000), ("total", 2_600_000)], lap(1, 3_000_000, 8_000_000)),
            from(PoolUse::Hit, &[("claim", 35_000), ("total", 2_400_000)], lap(2, 2_900_000, 8_100_000)),
            from(PoolUse::Miss, &[("spawn", 27_000_000)], lap(3, 90_000_000, 150_000_000)),
            lap(4, 5, 5),
        ];
        let pool = Some(PoolReport::of(&laps));
        let outcome = Outcome::new(Measured { requested: 4, pool, ..measured(laps) }, Load::ONE_BY_ONE);
        assert_snapshot!(outcome.summary());
    }

    #[test]
    fn what_went_wrong_is_said_loudly() {
        let id = "sb-0123456789abcdef0123".parse().unwrap();
        let failure = |iteration, stage| Failure::new(iteration, stage, Some(&id), "broken".to_owned());
        let some = Measured {
            failures: vec![failure(2, Stage::Exec), failure(2, Stage::Destroy), failure(3, Stage::Exec)],
            ended_early: Some(EndedEarly::Interrupted),
            ..measured(vec![lap(1, 5, 5)])
        };
        let none = Measured {
            warmup_failures: vec![Failure::new(1, Stage::Create, None, "broken".to_owned())],
            ended_early: Some(EndedEarly::ServerUnreachable),
            ..measured(Vec::new())
        };
        let load = Load { mode: Mode::Burst, concurrency: 9 };
        let some =
            Outcome { live: 4, live_failures: vec!["one died".to_owned()], ..Outcome::new(some, load) };
        let none = Outcome::new(none, load);
        assert_snapshot!(format!("{}\n{}", some.summary(), none.summary()));
    }
}
