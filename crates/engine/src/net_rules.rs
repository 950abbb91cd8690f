//! Keeps the host's network rules in force: whoever loads a firewall anew deletes them with all others, and sandboxes
//! would reach the host and private networks. Which rules those are, and how they are put back, is `manta_host`'s affair.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use manta_host::net::{HostNetwork, TableWatch};
use manta_vmm::watch_readable;
use tokio::io::unix::AsyncFd;
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;
use tracing::error;

use crate::error::chain;
use crate::metrics;

/// How long after a failure it is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// Whether the rules are in force.
#[derive(Debug, Default)]
pub(crate) struct NetRules {
    problem: Mutex<Option<String>>,
}

impl NetRules {
    /// What is wrong, and what to do about it.
    pub(crate) fn problem(&self) -> Option<String> {
        self.problem.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Puts the rules back whenever `watch` tells that somebody may have deleted them, until `stop`.
    pub(crate) async fn keep(self: Arc<Self>, host: Arc<HostNetwork>, watch: Watch, stop: CancellationToken) {
        loop {
            // Also at first: it may have happened before there was a watch.
            let in_force = self.put_back(host.clone()).await;
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(RETRY), if !in_force => {}
                lost = watch.lost() => match lost {
                    Ok(()) => self.set(Some("the nftables table `inet manta` was deleted, and is being put back".to_owned())),
                    Err(error) => {
                        error!(error, "nobody watches the network's rules any more");
                        return self.set(Some(format!(
                            "if somebody deletes the nftables table `inet manta`, it is not noticed: {error}; \
                             restart the server"
                        )));
                    }
                }
            }
        }
    }

    /// Whether they are in force now.
    async fn put_back(&self, host: Arc<HostNetwork>) -> bool {
        let restored = spawn_blocking(move || host.restore().map_err(|error| chain(&error))).await;
        match restored.unwrap_or_else(|panicked| Err(panicked.to_string())) {
            Ok(was_gone) => {
                if was_gone {
                    metrics::net_rules_restored();
                }
                self.set(None);
                true
            }
            Err(error) => {
                error!(error, "the network's rules are not in force; trying again");
                self.set(Some(format!(
                    "sandboxes may reach this host and private networks: somebody has deleted the nftables table \
                     `inet manta`, and it cannot be put back: {error}"
                )));
                false
            }
        }
    }

    fn set(&self, problem: Option<String>) {
        *self.problem.lock().unwrap_or_else(PoisonError::into_inner) = problem;
    }
}

/// Tells when the rules may be gone.
#[derive(Debug)]
pub(crate) struct Watch {
    table: TableWatch,
    /// The same descriptor.
    readable: AsyncFd<OwnedFd>,
}

impl Watch {
    /// Within a Tokio runtime.
    pub(crate) fn open(host: &HostNetwork) -> io::Result<Self> {
        let table = host.watch().map_err(io::Error::other)?;
        let readable = watch_readable(table.as_fd().try_clone_to_owned()?)?;
        Ok(Self { table, readable })
    }

    /// Completes when they may be gone; with why, if that cannot be known any more.
    async fn lost(&self) -> Result<(), String> {
        loop {
            let mut readable = self.readable.readable().await.map_err(|error| error.to_string())?;
            // Nothing is left unread then, and what comes meanwhile is another event.
            let lost = self.table.lost().map_err(|error| chain(&error))?;
            readable.clear_ready();
            if lost {
                return Ok(());
            }
        }
    }
}
