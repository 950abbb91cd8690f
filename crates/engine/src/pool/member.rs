//! One sandbox made before anybody asked for it: at least a VMM in its place, at most a guest that was restored,
//! adopted and exercised, and rests.

use std::sync::Arc;
use std::time::Duration;

use manta_agent_proto::Program;
use manta_api::SandboxId;
use tokio::time::Instant;

use crate::error::EngineError;
use crate::failpoint::{Failpoint, reached};
use crate::resources::{Resources, Start};
use crate::shared::{Shared, random};
use crate::snapshots::Stored;
use crate::timing::{Clock, Operation, Timed};

/// Longest that making one may take: a user's snapshot may have a shell of its own, or no time for us.
const LIMIT: Duration = Duration::from_secs(30);

/// What waits, and the sandbox it will be.
#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) id: SandboxId,
    pub(crate) resources: Resources,
    pub(super) of: Arc<Stored>,
    /// When it began to wait.
    pub(super) made: Instant,
    /// When its guest last answered.
    pub(super) fresh: Instant,
}

impl Member {
    /// A VMM that waits to load the snapshot.
    pub(super) async fn prepare(of: Arc<Stored>, shared: &Shared) -> Timed<Self> {
        let clock = Clock::start();
        let prepared = async {
            let mut member = Self::new(of)?;
            let start = Start::Restore(member.of.clone());
            let prepared = member.resources.prepare(&member.id, &start, shared, &shared.stop, &clock).await;
            member.or_discard(prepared, shared)
        };
        let prepared = prepared.await;
        clock.finish(Operation::Prepare, prepared)
    }

    /// A sandbox that was restored, has run `walk`, and rests.
    pub(super) async fn warm(
        of: Arc<Stored>,
        walk: Walk,
        shared: &Shared,
        clock: &Clock,
    ) -> Result<Self, EngineError> {
        let mut member = Self::new(of)?;
        let start = Start::Restore(member.of.clone());
        let (id, resources) = (member.id.clone(), &mut member.resources);
        let leave = shared.stop.child_token();
        let up = async {
            resources.bring_up(&id, &start, shared, &leave, clock).await?;
            resources.exercise(&id, &walk.programs(), shared, &leave).await?;
            clock.passed("exercise");
            resources.rest().await?;
            reached(Failpoint::RefillRests);
            resources.waits();
            clock.passed("rest");
            Ok(())
        };
        let mut up = Box::pin(up);
        let outcome = tokio::select! {
            up = &mut up => up,
            () = tokio::time::sleep(LIMIT) => {
                leave.cancel();
                let reason = format!("not done within {} s", LIMIT.as_secs());
                (&mut up).await.and(Err(EngineError::Host { stage: "making a sandbox ahead of time", reason }))
            }
        };
        drop(up);
        member.made = Instant::now();
        member.fresh = member.made;
        member.or_discard(outcome, shared)
    }

    /// Has the guest show that it still answers, with its clock and its random numbers set anew.
    pub(super) async fn freshen(mut self, shared: &Shared) -> Result<Self, EngineError> {
        let resources = &self.resources;
        let freshened = async {
            resources.rouse(&self.id, shared, &shared.stop, &Clock::start()).await?;
            resources.rest().await
        };
        let freshened = freshened.await;
        self.fresh = Instant::now();
        self.or_discard(freshened, shared)
    }

    fn new(of: Arc<Stored>) -> Result<Self, EngineError> {
        let id = SandboxId::from_random(random()?);
        let now = Instant::now();
        Ok(Self { id, resources: Resources::ahead_of_time(), of, made: now, fresh: now })
    }

    fn or_discard(self, outcome: Result<(), EngineError>, shared: &Shared) -> Result<Self, EngineError> {
        match outcome {
            Ok(()) => Ok(self),
            Err(error) => {
                self.discard(shared);
                Err(error)
            }
        }
    }

    /// Takes it apart, in the background.
    pub(super) fn discard(mut self, shared: &Shared) {
        let owner = shared.clone();
        shared.tasks.spawn(async move {
            self.resources.tear_down(&self.id, &owner, false).await;
        });
    }
}

/// What a guest runs before it rests, so that its first command is not the slow one: under TCG every instruction
/// is translated when it first runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Walk {
    /// As a command of the API runs: a login shell, programs, a pipe.
    Login,
    /// A shell that reads nobody's files: what is in a user's snapshot is the user's.
    Bare,
}

impl Walk {
    fn programs(self) -> Vec<Program> {
        let once = match self {
            Self::Login => Program::Shell("echo ready; ls / | cat > /dev/null".to_owned()),
            Self::Bare => Program::Argv(["/bin/sh", "-c", ":"].map(str::to_owned).to_vec()),
        };
        // The second time it takes the paths that the first prepared.
        vec![once; 2]
    }
}
