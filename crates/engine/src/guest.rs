//! Getting in touch with a guest's agent, and making the guest a sandbox of its own (adopting it): nothing is
//! handed out before that succeeded.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use manta_agent_proto::{Adopt, Identity, Network};
use manta_api::SandboxId;
use manta_vmm::{BoxFuture, MicroVm};
use tokio::net::UnixStream;
use tracing::{debug, warn};

use crate::agent::{AgentError, LINKS, Redial, Session};
use crate::config::EngineConfig;
use crate::error::{EngineError, chain};
use crate::shared::random;

/// Fresh random bytes for a guest's kernel.
const ENTROPY: usize = 64;
/// How far behind the host's a guest's clock may be.
const CLOCK_ERROR: Duration = Duration::from_millis(50);
/// How often the clock is set again: the first time, everything in a restored guest is slow.
const CLOCK_ATTEMPTS: usize = 4;

/// A number no earlier session had.
fn nonce() -> Result<u64, EngineError> {
    Ok(u64::from_le_bytes(random()?))
}

/// Who a sandbox's guest is: new names, the network it always has.
pub(crate) fn identity(id: &SandboxId, network: Network) -> Result<Identity, EngineError> {
    let hex: String = uuid_bytes()?.iter().map(|byte| format!("{byte:02x}")).collect();
    let uuid: String = uuid_bytes()?.iter().map(|byte| format!("{byte:02x}")).collect();
    let boot_id = [&uuid[..8], &uuid[8..12], &uuid[12..16], &uuid[16..20], &uuid[20..]].join("-");
    Ok(Identity { hostname: id.to_string(), machine_id: hex, boot_id, network })
}

/// Random, as RFC 9562 wants a version 4 UUID; `machine-id(5)` is one, too.
fn uuid_bytes() -> Result<[u8; 16], EngineError> {
    let mut bytes: [u8; 16] = random()?;
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    Ok(bytes)
}

fn adoption(identity: Option<Identity>) -> Result<Adopt, EngineError> {
    Ok(Adopt { entropy: random::<ENTROPY>()?.to_vec(), unix_ns: unix_ns(), identity })
}

fn unix_ns() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
}

/// A session with the agent of a running guest, which is `identity` from now on, if given. The deadline is the
/// caller's.
pub(crate) async fn connect(
    vm: &Arc<dyn MicroVm>,
    identity: Option<Identity>,
    config: &EngineConfig,
) -> Result<Session, EngineError> {
    let mut lost = 0;
    loop {
        let stream = vm.connect_agent().await.map_err(|error| failed(chain(&error)))?;
        let redial = redial(vm, config.agent_dial_timeout);
        match Session::open(stream, nonce()?, adoption(identity.clone())?, redial).await {
            Ok((session, clock)) => {
                settle_clock(&session, clock, config.agent_call_timeout).await?;
                return Ok(session);
            }
            Err(error @ (AgentError::LinkLost | AgentError::Gone(_))) if lost < LINKS => {
                lost += 1;
                debug!(%error, lost, "the link to the agent died");
            }
            Err(error) => return Err(failed(error.to_string())),
        }
    }
}

/// The way to the same guest's agent, for as long as there is somebody else who has that guest.
fn redial(vm: &Arc<dyn MicroVm>, limit: Duration) -> Redial {
    let (vm, vmm_pid) = (Arc::downgrade(vm), vm.pid());
    let dial = move || -> BoxFuture<'static, Result<UnixStream, String>> {
        let vm = vm.upgrade();
        Box::pin(async move {
            let vm = vm.ok_or_else(|| "there is no microVM".to_owned())?;
            vm.connect_agent().await.map_err(|error| chain(&error))
        })
    };
    Redial { dial: Box::new(dial), limit, vmm_pid }
}

/// Goes on with a parked session, in the same guest.
pub(crate) async fn resume(session: &Session, config: &EngineConfig) -> Result<(), EngineError> {
    session.resume().await.map_err(|error| failed(error.to_string()))?;
    // A guest that is slow about it keeps its commands.
    if let Err(error) = readopt(session, config).await {
        warn!(%error, "a guest's clock was not set after its snapshot");
    }
    Ok(())
}

/// For a guest that stood still: sets its clock, and gives it random bytes that no other has.
pub(crate) async fn readopt(session: &Session, config: &EngineConfig) -> Result<(), EngineError> {
    let adopted = session.adopt(adoption(None)?, config.agent_call_timeout).await;
    let clock = adopted.map_err(|error| failed(error.to_string()))?;
    settle_clock(session, clock, config.agent_call_timeout).await
}

/// Sets the guest's clock again while it was set too late. What it says is the guest's own affair: only that it
/// was asked often enough is ours.
async fn settle_clock(session: &Session, mut clock: u64, limit: Duration) -> Result<(), EngineError> {
    for _ in 0..CLOCK_ATTEMPTS {
        if Duration::from_nanos(unix_ns().saturating_sub(clock)) <= CLOCK_ERROR {
            return Ok(());
        }
        let adopted = session.adopt(adoption(None)?, limit).await;
        clock = adopted.map_err(|error| failed(error.to_string()))?;
    }
    let behind = Duration::from_nanos(unix_ns().saturating_sub(clock));
    warn!(?behind, "a guest's clock may be behind: the host is too busy to set it in time");
    Ok(())
}

fn failed(reason: String) -> EngineError {
    EngineError::BootFailed { stage: "adopting the guest", reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_identity_is_new_and_well_formed() {
        let id = SandboxId::from_random([7; 10]);
        let network = Network {
            address: [172, 16, 0, 2].into(),
            prefix_len: 30,
            gateway: [172, 16, 0, 1].into(),
            dns: Vec::new(),
        };
        let [one, other] = [(); 2].map(|()| identity(&id, network.clone()).unwrap());
        assert_eq!((one.hostname.as_str(), &one.network), (id.as_str(), &network));
        assert_ne!(one.machine_id, other.machine_id);
        assert_ne!(one.boot_id, other.boot_id);
        assert_eq!(one.machine_id.len(), 32);
        let lengths: Vec<usize> = one.boot_id.split('-').map(str::len).collect();
        assert_eq!(lengths, [8, 4, 4, 4, 12]);
        assert_eq!(&one.boot_id[14..15], "4");
    }
}
