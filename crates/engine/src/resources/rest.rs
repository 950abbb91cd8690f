//! A guest that waits: exercised, at rest, and roused when somebody wants it.

use std::time::Duration;

use bytes::Bytes;
use manta_agent_proto::Program;
use manta_api::SandboxId;
use tokio_util::sync::CancellationToken;

use super::{Resources, boot, left, no_guest};
use crate::error::{EngineError, chain};
use crate::exec::{self, ExecSpec};
use crate::guest;
use crate::shared::Shared;
use crate::timing::Clock;

/// For one command that a guest is exercised with.
const EXERCISE_LIMIT: Duration = Duration::from_secs(30);

impl Resources {
    /// Has the adopted guest do once what it will be asked for, so that it need not be slow then.
    pub(crate) async fn exercise(
        &self,
        id: &SandboxId,
        programs: &[Program],
        shared: &Shared,
        leave: &CancellationToken,
    ) -> Result<(), EngineError> {
        let Some(session) = &self.session else { return Err(no_guest()) };
        for program in programs {
            let spec = ExecSpec {
                program: program.clone(),
                cwd: None,
                env: Vec::new(),
                stdin: Bytes::new(),
                timeout: Some(EXERCISE_LIMIT),
            };
            exec::run(id, session, spec, &shared.config, leave, &Clock::start()).await?;
        }
        Ok(())
    }

    /// Lets the adopted guest rest until [`Self::rouse`]; it uses no processor meanwhile.
    pub(crate) async fn rest(&self) -> Result<(), EngineError> {
        let Some(vm) = &self.vm else { return Err(no_guest()) };
        vm.rest().await.map_err(|error| boot("letting the guest rest")(chain(&error)))
    }

    /// From a guest that rests to one with the right time and fresh random numbers; as [`Self::bring_up`].
    pub(crate) async fn rouse(
        &self,
        id: &SandboxId,
        shared: &Shared,
        leave: &CancellationToken,
        clock: &Clock,
    ) -> Result<(), EngineError> {
        let (Some(vm), Some(session)) = (&self.vm, &self.session) else { return Err(no_guest()) };
        let limit = shared.config.agent_call_timeout;
        // What is said to the agent waits for it: both ways are gone at once.
        let roused = async {
            let wake = async { vm.wake().await.map_err(|error| boot("waking the guest")(chain(&error))) };
            tokio::try_join!(wake, guest::readopt(session, &shared.config))
        };
        let roused = tokio::select! {
            roused = tokio::time::timeout(limit, roused) => roused,
            () = leave.cancelled() => return Err(left(id, shared)),
        };
        match roused {
            Ok(Ok(_)) => {
                clock.passed("rouse");
                Ok(())
            }
            Ok(Err(error)) => Err(self.explain(error, &**vm, shared).await),
            Err(_) => {
                let reason = format!("no answer within {} ms", limit.as_millis());
                Err(self.explain(boot("waking the guest")(reason), &**vm, shared).await)
            }
        }
    }
}
