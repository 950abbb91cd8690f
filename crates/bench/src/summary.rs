//! The table on standard error: the percentiles as durations, and what does not look right.

use std::fmt;
use std::time::Duration;

use crate::{EndedEarly, Outcome, Percentiles};

/// An outcome for people.
pub(crate) struct Summary<'a>(pub(crate) &'a Outcome);

impl fmt::Display for Summary<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Outcome { iterations_requested: requested, iterations_success: success, .. } = *self.0;
        let vmm = &self.0.conditions.server.vmm;
        writeln!(
            f,
            "{success} of {requested} iterations succeeded ({} {}, {})\n",
            vmm.name, vmm.version, vmm.accelerator
        )?;
        writeln!(f, "{:8}{:>12}{:>12}{:>12}{:>12}{:>12}", "", "min", "p50", "p95", "p99", "max")?;
        for (name, of) in [
            ("TTI", &self.0.tti),
            ("create", &self.0.create),
            ("exec", &self.0.exec),
            ("destroy", &self.0.destroy),
        ] {
            row(f, name, of)?;
        }
        self.warnings(f)
    }
}

impl Summary<'_> {
    fn warnings(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let outcome = self.0;
        if outcome.iterations_success == 0 {
            writeln!(f, "\nWARNING: no iteration succeeded: there is no measurement.")?;
        }
        if outcome.iterations_failed > 0 {
            let failed = outcome.iterations_failed;
            writeln!(
                f,
                "\nWARNING: failed iterations, in none of these numbers: {failed}; see \"failures\"."
            )?;
        }
        if !outcome.warmup_failures.is_empty() {
            writeln!(f, "\nWARNING: warm-up iterations failed; see \"warmup_failures\".")?;
        }
        match outcome.ended_early {
            Some(EndedEarly::Interrupted) => {
                writeln!(f, "\nWARNING: interrupted before the last iteration.")?
            }
            Some(EndedEarly::ServerUnreachable) => {
                writeln!(f, "\nWARNING: ended early: the server went away.")?
            }
            None => {}
        }
        let failures = outcome.warmup_failures.iter().chain(&outcome.failures);
        for failure in failures.filter(|failure| failure.may_leave_a_sandbox) {
            match &failure.sandbox_id {
                Some(id) => writeln!(f, "\nWARNING: sandbox {id} may be left behind: POST /destroy it.")?,
                None => writeln!(f, "\nWARNING: a sandbox may be left behind: see GET /sandboxes.")?,
            }
        }
        Ok(())
    }
}

fn row(f: &mut fmt::Formatter<'_>, name: &str, of: &Percentiles) -> fmt::Result {
    write!(f, "{name:8}")?;
    for ns in [of.min_ns, of.p50_ns, of.p95_ns, of.p99_ns, of.max_ns] {
        match ns.map(Duration::from_nanos) {
            Some(duration) => write!(f, "{duration:>12.2?}")?,
            None => write!(f, "{:>12}", "-")?,
        }
    }
    writeln!(f)
}

#[cfg(test)]
mod tests {
    use insta::assert_snapshot;
    use manta_api::{Health, HealthStatus, HostConditions, VmmInfo};

    use super::*;
    use crate::{BenchArgs, Conditions, Failure, Sample, Stage};

    fn conditions() -> Conditions {
        let args = BenchArgs {
            endpoint: "http://localhost:8080".to_owned(),
            iterations: 3,
            warmup: 1,
            cmd: "true".to_owned(),
            timeout: Duration::from_secs(90),
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
            host,
            settings: Default::default(),
        };
        Conditions::now(&args, health)
    }

    fn sample(iteration: u32, create_ns: u64, exec_ns: u64) -> Sample {
        Sample { iteration, tti_ns: create_ns + exec_ns, create_ns, exec_ns, destroy_ns: 31_000_000 }
    }

    #[test]
    fn durations_are_readable_at_every_scale() {
        let samples = vec![
            sample(1, 812_345_678, 4_500_000),
            sample(2, 798_000_000, 950_999),
            sample(3, 1_204_000_000, 0),
        ];
        let outcome = Outcome::new(3, samples, Vec::new(), Vec::new(), None, conditions());
        assert_snapshot!(Summary(&outcome).to_string());
    }

    #[test]
    fn what_went_wrong_is_said_loudly() {
        let failure = |iteration, stage| Failure {
            iteration,
            stage,
            sandbox_id: Some("sb-0123456789abcdef0123".parse().unwrap()),
            code: None,
            error: "broken".to_owned(),
            may_leave_a_sandbox: stage == Stage::Destroy,
            unreachable: false,
        };
        let failures = vec![failure(2, Stage::Exec), failure(2, Stage::Destroy), failure(3, Stage::Exec)];
        let ended = Some(EndedEarly::Interrupted);
        let some = Outcome::new(9, vec![sample(1, 5, 5)], failures, Vec::new(), ended, conditions());
        let create = failure(1, Stage::Create);
        let warm_up = vec![Failure { sandbox_id: None, may_leave_a_sandbox: true, ..create }];
        let ended = Some(EndedEarly::ServerUnreachable);
        let none = Outcome::new(9, Vec::new(), Vec::new(), warm_up, ended, conditions());
        assert_snapshot!(format!("{}\n{}", Summary(&some), Summary(&none)));
    }
}
