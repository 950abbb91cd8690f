//! A guest that is dead although its VMM runs. Firecracker has no power switch: a guest that switches itself off stays,
//! and uses its place and its memory, until somebody notices.

use std::time::Duration;

use tokio_util::task::TaskTracker;

use super::Resources;
use crate::agent::AgentError;
use crate::shared::Shared;

/// Between looks at a guest that does nothing for anybody.
const LOOK: Duration = Duration::from_secs(20);

/// So many in a row must find it standing still.
const LOOKS: u32 = 2;

/// A guest that has not answered for a while is busy, and no more than that, if it ran for more than one part of so many.
const IDLE_PARTS: u32 = 100;

/// What is told of such a guest.
pub(crate) const STANDS_STILL: &str =
    "the guest neither runs nor answers: it was switched off, or hangs, and its VMM does not end with it";

impl Resources {
    /// Completes when the guest neither answers nor runs. Never where the VMM ends with its guest, nor while one of
    /// `jobs` is done in the guest: its agent may be busy with that.
    pub(crate) fn stood_still(
        &self,
        jobs: &TaskTracker,
        shared: &Shared,
    ) -> impl Future<Output = ()> + Send + 'static {
        let (vm, session, jobs) = (self.vm.clone(), self.session.clone(), jobs.clone());
        let limit = shared.config.agent_call_timeout;
        async move {
            let (Some(vm), Some(session)) = (vm, session) else { return std::future::pending().await };
            if vm.ends_with_guest() {
                return std::future::pending().await;
            }
            let mut in_a_row = 0;
            while in_a_row < LOOKS {
                tokio::time::sleep(LOOK).await;
                let before = vm.guest_time();
                // A session that ended is somebody else's affair.
                let is_silent = jobs.is_empty()
                    && matches!(session.ping(limit).await, Err(AgentError::Timeout(_)))
                    && jobs.is_empty();
                let ran = before.zip(vm.guest_time()).map(|(before, after)| after.saturating_sub(before));
                let stands_still = is_silent && ran.is_some_and(|ran| ran < limit / IDLE_PARTS);
                in_a_row = if stands_still { in_a_row + 1 } else { 0 };
            }
        }
    }
}
