//! How a sandbox begins: claimed from a pool, restored in its turn, or booted. Nothing is handed out before its guest
//! is adopted, and nothing is left of what could not be.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use manta_api::{SandboxId, SandboxInfo, SandboxState, SnapshotId};
use manta_host::net::GUEST;
use tokio::sync::oneshot;
use tracing::warn;

use super::Engine;
use crate::admission::{Place, in_turn};
use crate::error::EngineError;
use crate::failpoint::{Failpoint, reached};
use crate::pool::Member;
use crate::resources::{Resources, Start};
use crate::sandbox::{Creator, Handle};
use crate::shared::random;
use crate::snapshots::{Stored, blocking};
use crate::timing::{Clock, PoolUse};
use crate::wish::Wish;

/// A turn is over after this, whether or not the guest has answered.
const TURN: Duration = Duration::from_secs(5);

impl Engine {
    /// See [`Engine::create`].
    pub(super) async fn create_timed(&self, wish: &Wish, clock: &Clock) -> Result<SandboxId, EngineError> {
        self.ensure_journal()?;
        let mut place = Some(self.admission.enter(&wish.caller)?);
        let _busy = self.foreground.enter();
        tokio::select! {
            () = self.decided.cancelled() => {}
            () = self.shared.stop.cancelled() => return Err(EngineError::ShuttingDown),
        }
        let Some(golden) = self.template.current() else {
            return self.begin(Start::Boot, wish, place, clock).await;
        };
        if let Some(id) = self.claim(&golden, true, wish, &mut place, clock).await? {
            return Ok(id);
        }
        let checked = golden.clone();
        if let Err(error) = blocking(move || checked.check()).await {
            self.give_up_golden(error.to_string());
            return self.begin(Start::Boot, wish, place, clock).await;
        }
        clock.passed("check");
        let outcome = self.begin(Start::Restore(golden), wish, place, clock).await;
        let judged = match &outcome {
            Ok(_) => self.template.restored(true),
            Err(EngineError::BootFailed { .. }) => self.template.restored(false),
            Err(_) => None,
        };
        if let Some(reason) = judged {
            self.give_up_golden(reason);
        }
        outcome
    }

    /// See [`Engine::restore`].
    pub(super) async fn restore_timed(
        &self,
        id: &SnapshotId,
        wish: &Wish,
        clock: &Clock,
    ) -> Result<SandboxId, EngineError> {
        self.ensure_journal()?;
        let mut place = Some(self.admission.enter(&wish.caller)?);
        let _busy = self.foreground.enter();
        let stored = self.stored(id).await?;
        clock.passed("check");
        if let Some(id) = self.claim(&stored, false, wish, &mut place, clock).await? {
            return Ok(id);
        }
        let restored = self.begin(Start::Restore(stored), wish, place, clock).await;
        if restored.is_err() {
            // When it was deleted meanwhile, that is the reason.
            self.stored(id).await?;
        }
        restored
    }

    /// A user's snapshot that can be restored here.
    async fn stored(&self, id: &SnapshotId) -> Result<Arc<Stored>, EngineError> {
        let (snapshots, machine, id) = (self.snapshots.clone(), self.shared.machine.clone(), id.clone());
        blocking(move || snapshots.get(&id, &machine)).await
    }

    /// One that waited for this snapshot, if there is one that still answers; it takes the place.
    async fn claim(
        &self,
        of: &Arc<Stored>,
        is_golden: bool,
        wish: &Wish,
        place: &mut Option<Place>,
        clock: &Clock,
    ) -> Result<Option<SandboxId>, EngineError> {
        let _turn = self.admission.waking().await?;
        let Some(Member { id, resources, .. }) = self.warm.claim(of, is_golden, &self.shared).await else {
            return Ok(None);
        };
        reached(Failpoint::ClaimTaken);
        clock.passed("queue");
        clock.claimed(PoolUse::Hit);
        let place = self.place_or_another(place.take(), wish)?;
        let resources = resources.claimed();
        match self.bring_up(id, Start::Restore(of.clone()), wish, resources, place, clock).await {
            Ok(id) => Ok(Some(id)),
            Err(error @ EngineError::BootFailed { .. }) => {
                warn!(%error, "a sandbox that waited is of no use; another is made");
                clock.passed("lost");
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Brings up a sandbox when it is its turn.
    pub(super) async fn begin(
        &self,
        start: Start,
        wish: &Wish,
        place: Option<Place>,
        clock: &Clock,
    ) -> Result<SandboxId, EngineError> {
        let place = self.place_or_another(place, wish)?;
        self.warm.places_changed();
        let turn = self.admission.turn().await?;
        clock.passed("queue");
        let prepared = match &start {
            Start::Restore(of) => self.prepared.claim(of, &self.shared).await,
            Start::Boot => None,
        };
        clock.claimed(if prepared.is_some() { PoolUse::Prepared } else { PoolUse::Miss });
        let (id, resources) = match prepared {
            Some(Member { id, resources, .. }) => (id, resources.claimed()),
            None => (SandboxId::from_random(random()?), Resources::default()),
        };
        in_turn(turn, TURN, self.bring_up_or_again(id, start, wish, resources, place, clock)).await
    }

    /// Brings up a sandbox. A restore that fails is tried once more, since nothing was handed out: its VMM may have died
    /// while it waited, or its guest be silent.
    async fn bring_up_or_again(
        &self,
        id: SandboxId,
        start: Start,
        wish: &Wish,
        resources: Resources,
        place: Place,
        clock: &Clock,
    ) -> Result<SandboxId, EngineError> {
        let is_restore = matches!(start, Start::Restore(_));
        match self.bring_up(id, start.clone(), wish, resources, place, clock).await {
            Err(error @ EngineError::BootFailed { .. }) if is_restore => {
                warn!(%error, "a new sandbox is of no use; another is made");
                clock.passed("lost");
                let id = SandboxId::from_random(random()?);
                // What went wrong says more than that there is no room to try it again.
                let Ok(place) = self.place_or_another(None, wish) else { return Err(error) };
                self.bring_up(id, start, wish, Resources::default(), place, clock).await
            }
            outcome => outcome,
        }
    }

    async fn bring_up(
        &self,
        id: SandboxId,
        start: Start,
        wish: &Wish,
        mut resources: Resources,
        place: Place,
        clock: &Clock,
    ) -> Result<SandboxId, EngineError> {
        if self.shared.stop.is_cancelled() {
            resources.tear_down(&id, &self.shared, false).await;
            return Err(EngineError::ShuttingDown);
        }
        let info = SandboxInfo {
            id: id.clone(),
            state: SandboxState::Creating,
            owner: wish.caller.owner().map(str::to_owned),
            reason: None,
            vmm: self.shared.config.vmm.info().kind.to_string(),
            snapshot_id: match &start {
                Start::Restore(stored) => Some(stored.manifest.id.clone()),
                Start::Boot => None,
            },
            created_unix_s: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
            expires_unix_s: None,
            pid: None,
            guest_address: GUEST.address,
            host_address: Ipv4Addr::UNSPECIFIED,
        };
        let (answer, outcome) = oneshot::channel();
        let creator = Creator { answer, start, clock: clock.clone(), wish: wish.clone() };
        let shared = self.shared.clone();
        let handle =
            self.table.insert(&id, |ended| Handle::start(info, resources, shared, place, creator, ended));
        let guard = handle.leave_on_drop();
        outcome.await.unwrap_or(Err(EngineError::ShuttingDown))?;
        guard.disarm();
        Ok(id)
    }

    /// The place that was had, if it was not lost with a sandbox.
    fn place_or_another(&self, place: Option<Place>, wish: &Wish) -> Result<Place, EngineError> {
        place.map_or_else(|| self.admission.enter_again(&wish.caller), Ok)
    }

    /// No more of it: every sandbox boots.
    fn give_up_golden(&self, reason: String) {
        warn!(reason, "the golden snapshot is of no use any more: every sandbox boots");
        self.template.give_up(reason);
        self.prepared.set(None);
        self.warm.set_golden(None);
    }
}
