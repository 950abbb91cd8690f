//! From a guest that runs to a sandbox that is handed out: not before the journal knows of it.

use std::time::Duration;

use manta_api::{SandboxInfo, SandboxState};

use super::Task;
use crate::caller::Caller;
use crate::error::EngineError;
use crate::failpoint::{Failpoint, reached};
use crate::resources::Start;
use crate::timing::Clock;

impl Task {
    /// To a sandbox that may be handed out, as it is returned.
    pub(super) async fn become_ready(
        &mut self,
        start: &Start,
        lifetime: Option<Duration>,
        clock: &Clock,
    ) -> Result<SandboxInfo, EngineError> {
        if self.resources.is_adopted() {
            // The journal has time while the guest wakes.
            let (info, written) = self.hand_out(lifetime);
            self.bring_up(start, clock).await?;
            reached(Failpoint::ClaimRoused);
            written.await?;
            reached(Failpoint::ClaimReady);
            return Ok(info);
        }
        self.bring_up(start, clock).await?;
        let (info, written) = self.hand_out(lifetime);
        written.await?;
        reached(match start {
            Start::Boot => Failpoint::BootReady,
            Start::Restore(_) => Failpoint::RestoreReady,
        });
        Ok(info)
    }

    /// Has the journal know that it is handed out from now on, and how. One that the server makes for itself never is:
    /// it is of no use to the next server.
    fn hand_out(
        &mut self,
        lifetime: Option<Duration>,
    ) -> (SandboxInfo, impl Future<Output = Result<(), EngineError>> + Send + 'static) {
        let expires_unix_ms = lifetime.map(|limit| self.lifetime.set(limit));
        let mut info = self.info.borrow().clone();
        info.state = SandboxState::Running;
        info.expires_unix_s = expires_unix_ms.map(|ms| ms / 1000);
        info.pid = self.resources.pid();
        info.host_address = self.resources.host_address().unwrap_or(info.host_address);
        let own = matches!(self.maker, Caller::Server);
        let written = (!own).then(|| self.resources.hand_out(info.clone(), expires_unix_ms));
        (info, async move {
            match written {
                Some(written) => written.await,
                None => Ok(()),
            }
        })
    }
}
