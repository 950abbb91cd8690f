//! Making the guest this sandbox and no other: what every clone of a snapshot shares and must not.
//!
//! Random numbers first, then the clock: everything after may use them. All is checked before anything is
//! changed.

use std::os::fd::OwnedFd;

use manta_agent_proto::{Adopt, Identity, Network};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::time::{ClockId, Timespec, clock_gettime, clock_settime};
use thiserror::Error;

use crate::names::{Names, NamesError};
use crate::net::{self, NetError};
use crate::sys::{add_entropy, reseed};

/// Fewest random bytes: what the kernel's generator takes to be fully seeded.
const ENTROPY: usize = 32;

const NANOSECONDS: u64 = 1_000_000_000;

/// Why the guest is not what it is to be.
#[derive(Debug, Error)]
pub enum AdoptError {
    /// Too few random bytes.
    #[error("{0} bytes of entropy are fewer than {ENTROPY}")]
    Entropy(usize),
    /// The random device.
    #[error("cannot open /dev/random")]
    OpenRandom(#[source] Errno),
    /// Crediting the random bytes.
    #[error("cannot add entropy")]
    AddEntropy(#[source] Errno),
    /// Having the kernel's generator use them at once.
    #[error("cannot reseed the random number generator")]
    Reseed(#[source] Errno),
    /// The wall clock.
    #[error("cannot set the clock")]
    Clock(#[source] Errno),
    /// Host name, ids, name servers.
    #[error(transparent)]
    Names(#[from] NamesError),
    /// The network.
    #[error(transparent)]
    Net(#[from] NetError),
}

/// The machine whose agent this is.
#[derive(Debug)]
pub struct Machine {
    guest: Option<Guest>,
}

#[derive(Debug)]
struct Guest {
    /// `/dev/random`, open to spare each clone the way there.
    random: OwnedFd,
    names: Names,
    /// What this agent configured last.
    network: Option<Network>,
}

impl Machine {
    /// The guest that this process is PID 1 of.
    ///
    /// # Errors
    /// [`AdoptError::OpenRandom`].
    pub fn guest(names: Names) -> Result<Self, AdoptError> {
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        let random = rustix::fs::open("/dev/random", flags, Mode::empty()).map_err(AdoptError::OpenRandom)?;
        Ok(Self { guest: Some(Guest { random, names, network: None }) })
    }

    /// Not this agent's to change: requests are checked and answered, and that is all.
    #[must_use]
    pub fn foreign() -> Self {
        Self { guest: None }
    }

    /// Gives the wall clock afterwards, nanoseconds since 1970.
    pub(crate) fn adopt(&mut self, adopt: &Adopt) -> Result<u64, AdoptError> {
        if adopt.entropy.len() < ENTROPY {
            return Err(AdoptError::Entropy(adopt.entropy.len()));
        }
        if let Some(identity) = &adopt.identity {
            Names::check(identity)?;
        }
        if let Some(guest) = &mut self.guest {
            guest.adopt(adopt)?;
        }
        let now = clock_gettime(ClockId::Realtime);
        Ok(now.tv_sec.unsigned_abs() * NANOSECONDS + now.tv_nsec.unsigned_abs())
    }
}

impl Guest {
    fn adopt(&mut self, adopt: &Adopt) -> Result<(), AdoptError> {
        add_entropy(&self.random, &adopt.entropy).map_err(AdoptError::AddEntropy)?;
        reseed(&self.random).map_err(AdoptError::Reseed)?;
        let now = Timespec {
            tv_sec: (adopt.unix_ns / NANOSECONDS) as i64,
            tv_nsec: (adopt.unix_ns % NANOSECONDS) as i64,
        };
        clock_settime(ClockId::Realtime, now).map_err(AdoptError::Clock)?;
        adopt.identity.as_ref().map_or(Ok(()), |identity| self.identify(identity))
    }

    fn identify(&mut self, identity: &Identity) -> Result<(), AdoptError> {
        self.names.set(identity)?;
        let network = &identity.network;
        // All clones of a snapshot have the same network, each in a namespace of its own. What this agent
        // has set up is left alone: it is there, unless the user changed it on purpose, and a clone keeps
        // that. The gateway has the same MAC for all, so what the guest knows of neighbours stays right.
        if self.network.as_ref() != Some(network) {
            self.network = None; // half of it, if this fails
            net::configure(network)?;
            self.names.set_servers(&network.dns)?;
            self.network = Some(network.clone());
        }
        Ok(())
    }
}
