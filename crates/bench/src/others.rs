//! Sandboxes that only exist: `--live` of them, made before a run and destroyed after it.

use manta_api::{SandboxId, SandboxState};
use manta_client::Client;

use crate::BenchError;
use crate::error::chain;
use crate::failure::may_have_acted;
use crate::interrupt::Interrupt;
use crate::progress::Progress;
use crate::session::Session;

/// Those that exist, and what went wrong with them.
pub(crate) struct Others<'a> {
    client: &'a Client,
    interrupt: &'a Interrupt,
    progress: &'a Progress,
    ids: Vec<SandboxId>,
    problems: Vec<String>,
}

impl<'a> Others<'a> {
    /// None yet.
    pub(crate) fn new(session: &'a Session<'_>) -> Self {
        let Session { client, interrupt, progress, .. } = session;
        Self { client, interrupt, progress, ids: Vec::new(), problems: Vec::new() }
    }

    /// Makes `count`, one after another. Those made so far are to be removed also if it fails.
    ///
    /// As in an iteration, only a second interrupt ends a create.
    pub(crate) async fn make(&mut self, count: u32) -> Result<(), BenchError> {
        self.progress.phase("others", count);
        for _ in 0..count {
            if self.interrupt.is_set() {
                return Err(BenchError::Interrupted);
            }
            match self.interrupt.unless(2, self.client.create()).await {
                Some(Ok(made)) => self.ids.push(made.sandbox_id),
                Some(Err(error)) => {
                    if may_have_acted(&error) {
                        self.problem("a sandbox may be left behind: see GET /sandboxes".to_owned());
                    }
                    return Err(BenchError::Others(error));
                }
                None => {
                    self.problem("a sandbox may be left behind: see GET /sandboxes".to_owned());
                    return Err(BenchError::Interrupted);
                }
            }
            self.progress.step();
        }
        Ok(())
    }

    /// Destroys them, and gives what went wrong with them.
    pub(crate) async fn remove(mut self) -> Vec<String> {
        for id in std::mem::take(&mut self.ids) {
            let why = match self.interrupt.unless(2, self.client.destroy(&id)).await {
                Some(Ok(_)) => continue,
                Some(Err(error)) => chain(&error),
                None => "interrupted".to_owned(),
            };
            self.problem(format!("sandbox {id} may be left behind: {why}"));
        }
        self.problems
    }

    /// Sees whether all of them were alive to the end.
    pub(crate) async fn look(&mut self) {
        if self.ids.is_empty() {
            return;
        }
        match self.interrupt.unless(1, self.client.sandboxes()).await {
            Some(Ok(list)) => {
                let running = |id: &SandboxId| {
                    list.sandboxes.iter().any(|s| s.id == *id && s.state == SandboxState::Running)
                };
                let dead = self.ids.iter().filter(|id| !running(id)).count();
                if dead > 0 {
                    let all = self.ids.len();
                    self.problem(format!("of the {all} other sandboxes {dead} did not live to the end"));
                }
            }
            Some(Err(error)) => {
                self.problem(format!("whether the others lived is not known: {}", chain(&error)));
            }
            None => {}
        }
    }

    fn problem(&mut self, problem: String) {
        self.progress.say(&format!("WARNING: {problem}"));
        self.problems.push(problem);
    }
}
