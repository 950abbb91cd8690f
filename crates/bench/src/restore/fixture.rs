//! The snapshot that is restored: made before the loop, removed after it with every sandbox left of it.

use manta_api::{ErrorCode, SandboxId, SnapshotBytes, SnapshotId};
use manta_client::{Client, ClientError};
use serde::Serialize;
use thiserror::Error;

use super::RestoreArgs;
use crate::BenchError;
use crate::error::chain;
use crate::failure::may_have_acted;
use crate::interrupt::Interrupt;
use crate::iteration::{judge, shell};
use crate::session::Session;

/// What was restored, and what it had to say.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Fixture {
    /// The snapshot; it is removed at the end.
    pub snapshot_id: SnapshotId,
    /// `--mutation-cmd`
    pub mutation_cmd: String,
    /// `--expect-stdout`
    pub expect_stdout: String,
    /// How long the sandbox stood still for its snapshot, microseconds.
    pub pause_us: u64,
    /// What the snapshot takes on the host's disk; absent if the server does not say.
    pub snapshot_bytes: Option<SnapshotBytes>,
}

/// Why there is no snapshot to restore.
#[derive(Debug, Error)]
pub enum FixtureError {
    /// There is no sandbox to begin with.
    #[error("no sandbox to make it of")]
    Create(#[source] ClientError),
    /// The mutation gave no result.
    #[error("sandbox {sandbox_id}: the mutation did not run")]
    Mutation {
        /// Where.
        sandbox_id: SandboxId,
        /// Why.
        source: ClientError,
    },
    /// The mutation ran, and failed.
    #[error("sandbox {sandbox_id}: mutation: {problem}")]
    MutationExit {
        /// Where.
        sandbox_id: SandboxId,
        /// Its exit status and what it said.
        problem: String,
    },
    /// The sandbox gave no snapshot.
    #[error("sandbox {sandbox_id}: no snapshot")]
    Snapshot {
        /// Which.
        sandbox_id: SandboxId,
        /// Why.
        source: ClientError,
    },
    /// The sandbox does not go, and would be in the way of what is measured.
    #[error("sandbox {sandbox_id}: not destroyed")]
    Destroy {
        /// Which.
        sandbox_id: SandboxId,
        /// Why.
        source: ClientError,
    },
}

/// What exists on the server because of this run.
pub(crate) struct Belongings<'a> {
    client: &'a Client,
    interrupt: &'a Interrupt,
    /// The sandbox the snapshot is made of.
    sandbox: Thing<SandboxId>,
    snapshot: Thing<SnapshotId>,
    made_of: Option<SandboxId>,
}

/// One thing on the server, as far as is known here.
enum Thing<Id> {
    None,
    /// Asked for, and no answer.
    Perhaps,
    There(Id),
}

/// What came of the removal.
#[derive(Debug, Default)]
pub(crate) struct Removal {
    /// What may be left, and why.
    pub(crate) failures: Vec<String>,
    /// The server knows of no sandbox that was restored from the snapshot.
    pub(crate) no_sandbox_is_left: bool,
}

impl<'a> Belongings<'a> {
    /// Nothing yet.
    pub(crate) fn new(session: &'a Session<'_>) -> Self {
        let Session { client, interrupt, .. } = session;
        Self { client, interrupt, sandbox: Thing::None, snapshot: Thing::None, made_of: None }
    }

    /// A sandbox is created, changed, saved and destroyed. Whatever comes of it is to be removed.
    ///
    /// An interrupt ends it: as in an iteration, only a second one ends what makes or removes something.
    pub(crate) async fn make(&mut self, args: &RestoreArgs) -> Result<Fixture, BenchError> {
        self.sandbox = Thing::Perhaps;
        let created = self.unless(2, self.client.create()).await?;
        let id = found(&mut self.sandbox, created.map(|answer| answer.sandbox_id));
        let id = id.map_err(FixtureError::Create)?;
        let sandbox_id = || id.clone();

        let request = shell(&id, &args.mutation_cmd);
        let answer = self.unless(1, self.client.exec(&request)).await?;
        let answer = answer.map_err(|source| FixtureError::Mutation { sandbox_id: sandbox_id(), source })?;
        if let Some(problem) = judge(&answer, None) {
            return Err(FixtureError::MutationExit { sandbox_id: sandbox_id(), problem }.into());
        }

        self.snapshot = Thing::Perhaps;
        self.made_of = Some(id.clone());
        // Unlike any other name, and telling for whoever finds it.
        let name = format!("bench-restore-{id}");
        let saved = self.unless(2, self.client.snapshot(&id, Some(name))).await?;
        let pause_us = saved.as_ref().map_or(0, |answer| answer.pause_us);
        let snapshot_id = found(&mut self.snapshot, saved.map(|answer| answer.snapshot_id))
            .map_err(|source| FixtureError::Snapshot { sandbox_id: sandbox_id(), source })?;

        let gone = self.unless(2, self.client.destroy(&id)).await?;
        gone.map_err(|source| FixtureError::Destroy { sandbox_id: sandbox_id(), source })?;
        self.sandbox = Thing::None;

        let list = self.unless(1, self.client.snapshots()).await?.ok();
        let info = list.and_then(|list| list.snapshots.into_iter().find(|info| info.id == snapshot_id));
        Ok(Fixture {
            snapshot_id,
            mutation_cmd: args.mutation_cmd.clone(),
            expect_stdout: args.expect_stdout.clone(),
            pause_us,
            snapshot_bytes: info.map(|info| info.disk_bytes),
        })
    }

    async fn unless<T>(&self, times: u32, work: impl Future<Output = T>) -> Result<T, BenchError> {
        self.interrupt.unless(times, work).await.ok_or(BenchError::Interrupted)
    }

    /// Removes all there is, carrying on past failures. Only a second interrupt ends it.
    pub(crate) async fn remove(self) -> Removal {
        let mut removal = Removal::default();
        match &self.sandbox {
            Thing::None => {}
            Thing::Perhaps => {
                removal.failures.push("a sandbox may be left behind: see GET /sandboxes".to_owned());
            }
            Thing::There(id) => self.destroy(id, &mut removal).await,
        }
        // First the snapshot: then no restore of it can begin any more.
        for id in self.snapshots(&mut removal).await {
            match self.interrupt.unless(2, self.client.delete_snapshot(&id)).await {
                Some(Err(ClientError::Api { body, .. })) if body.code == ErrorCode::SnapshotNotFound => {}
                deleted => removal.tell(&format!("snapshot {id} may be left behind"), deleted),
            }
        }
        if let Thing::There(id) = &self.snapshot {
            self.destroy_restored(id, &mut removal).await;
        }
        removal
    }

    /// The snapshots of the sandbox. One whose id did not arrive is in the server's list.
    async fn snapshots(&self, removal: &mut Removal) -> Vec<SnapshotId> {
        match &self.snapshot {
            Thing::None => Vec::new(),
            Thing::There(id) => vec![id.clone()],
            Thing::Perhaps => {
                let listed = self.interrupt.unless(2, self.client.snapshots()).await;
                if let Some(Ok(list)) = listed {
                    let ours = |of: &SandboxId| self.made_of.as_ref() == Some(of);
                    return list
                        .snapshots
                        .into_iter()
                        .filter(|s| ours(&s.sandbox_id))
                        .map(|s| s.id)
                        .collect();
                }
                removal.tell("a snapshot may be left behind: see GET /snapshot/list", listed);
                Vec::new()
            }
        }
    }

    /// Sandboxes whose destroy failed, or whose id did not arrive.
    async fn destroy_restored(&self, snapshot: &SnapshotId, removal: &mut Removal) {
        let listed = self.interrupt.unless(2, self.client.sandboxes()).await;
        let Some(Ok(list)) = listed else {
            return removal.tell("sandboxes may be left behind: see GET /sandboxes", listed);
        };
        let before = removal.failures.len();
        for sandbox in list.sandboxes.iter().filter(|s| s.snapshot_id.as_ref() == Some(snapshot)) {
            self.destroy(&sandbox.id, removal).await;
        }
        removal.no_sandbox_is_left = removal.failures.len() == before;
    }

    async fn destroy(&self, id: &SandboxId, removal: &mut Removal) {
        let destroyed = self.interrupt.unless(2, self.client.destroy(id)).await;
        removal.tell(&format!("sandbox {id} may be left behind"), destroyed);
    }
}

impl Removal {
    /// Notes what is left, unless the call was answered as it should be.
    fn tell<T>(&mut self, left: &str, called: Option<Result<T, ClientError>>) {
        match called {
            Some(Ok(_)) => {}
            Some(Err(error)) => self.failures.push(format!("{left}: {}", chain(&error))),
            None => self.failures.push(format!("{left}: interrupted")),
        }
    }
}

/// What is known of a thing after it was asked for.
fn found<Id: Clone>(thing: &mut Thing<Id>, answer: Result<Id, ClientError>) -> Result<Id, ClientError> {
    *thing = match &answer {
        Ok(id) => Thing::There(id.clone()),
        Err(error) if may_have_acted(error) => Thing::Perhaps,
        Err(_) => Thing::None,
    };
    answer
}
