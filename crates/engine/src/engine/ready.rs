//! From a started engine to one that serves: what an earlier server left, and what new sandboxes begin with.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use manta_api::SandboxId;
use tokio::sync::oneshot;
use tracing::{error, info, warn};

use super::Engine;
use crate::caller::Caller;
use crate::error::EngineError;
use crate::recovery::recover;
use crate::resources::Start;
use crate::sandbox::Handle;
use crate::snapshots::{Stored, blocking, golden};
use crate::timing::Clock;
use crate::wish::Wish;

/// How long all wait for the sandboxes of a killed server that are slow to answer.
const PATIENCE: Duration = Duration::from_secs(3);

impl Engine {
    /// Takes back the sandboxes of a killed predecessor, and says whether there are any; then removes what else it left.
    /// When somebody may be waiting for those sandboxes, what takes long goes on in the background: commands in one
    /// that has not been taken back yet wait for that. Dropping this does not stop any of it.
    pub async fn recover(&self) -> bool {
        let plan = self.left.lock().unwrap_or_else(PoisonError::into_inner).take();
        let (shared, tasks) = (&self.shared, &self.shared.tasks);
        let mut any = false;
        if let Some(plan) = plan {
            let (tell, taken_back) = oneshot::channel();
            let table = self.table.clone();
            let recovered = tasks.spawn(recover(plan, shared.clone(), table, &self.admission, tell));
            let in_time = tokio::time::timeout(PATIENCE, taken_back).await.is_ok();
            any = !in_time || self.table.len() > 0;
            if !any && recovered.await.is_err() {
                error!("taking back or removing what a killed server left panicked");
            }
        }
        tasks.spawn(shared.slots.clone().keep_full(shared.stop.clone()));
        tasks.spawn(shared.slots.clone().keep_clear(shared.stop.clone()));
        tasks.spawn(self.prepared.clone().keep_full(shared.clone()));
        tasks.spawn(self.warm.clone().keep_full(shared.clone()));
        any
    }

    /// Makes sure that there is a golden snapshot for these settings, if there is to be one. Seconds, when it has
    /// to be made. Failing that, sandboxes boot, and [`Self::degraded`] says why.
    pub async fn prepare(&self) {
        self.decide().await;
        self.decided.cancel();
    }

    async fn decide(&self) {
        if !self.shared.config.golden_snapshot {
            return;
        }
        match self.find_or_make_golden().await {
            Ok(stored) => {
                self.prepared.set(Some(stored.clone()));
                self.warm.set_golden(Some(stored.clone()));
                self.template.set(stored);
            }
            Err(error) => {
                warn!(%error, "no golden snapshot: every sandbox boots");
                self.template.give_up(error.to_string());
            }
        }
    }

    async fn find_or_make_golden(&self) -> Result<Arc<Stored>, EngineError> {
        let (templates, machine) = (self.templates.clone(), self.shared.machine.clone());
        if let Some(stored) = blocking(move || templates.golden(&machine)).await? {
            // Its memory is too large to be hashed, so it is tried.
            match self.begin(Start::Restore(stored.clone()), &Wish::OWN, None, &Clock::start()).await {
                Ok(id) => {
                    info!(snapshot_id = %stored.manifest.id, "golden snapshot found");
                    self.own(&id)?.destroy(&Caller::Server).await;
                    return Ok(stored);
                }
                Err(error @ EngineError::BootFailed { .. }) => {
                    warn!(%error, "the golden snapshot cannot be restored: it is made anew");
                    let (templates, id) = (self.templates.clone(), stored.manifest.id.clone());
                    blocking(move || templates.delete(&id)).await?;
                }
                Err(error) => return Err(error),
            }
        }
        info!("making the golden snapshot");
        let id = self.begin(Start::Boot, &Wish::OWN, None, &Clock::start()).await?;
        let own = self.own(&id)?;
        let made = golden::make(&own, self.templates.clone()).await;
        own.destroy(&Caller::Server).await;
        made
    }

    /// One that was just made for the server itself.
    fn own(&self, id: &SandboxId) -> Result<Handle, EngineError> {
        self.table.get(id).ok_or_else(|| EngineError::NotFound(id.clone()))
    }
}
