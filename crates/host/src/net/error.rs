//! What can go wrong with the network. Nothing else.

use std::io;

use netlink_socket2::ReplyError;
use rustix::io::Errno;

use crate::netns::NetNsError;

/// What can go wrong with the sandbox network.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// A namespace could not be created or entered.
    #[error(transparent)]
    NetNs(#[from] NetNsError),
    /// Another server is in this network namespace.
    #[error(
        "another manta server is running in this network namespace: stop it, or start this one in another"
    )]
    InUse,
    /// rtnetlink refused something about an interface.
    #[error("cannot {action} interface {name}")]
    Link {
        /// What was to be done to it.
        action: &'static str,
        /// The interface.
        name: String,
        /// Why not.
        #[source]
        source: ReplyError,
    },
    /// The interfaces or routes could not be listed.
    #[error("cannot list the {what}")]
    List {
        /// Which of them.
        what: &'static str,
        /// Why not.
        #[source]
        source: ReplyError,
    },
    /// There is no interface of that name.
    #[error("there is no network interface {0}")]
    NoInterface(String),
    /// nftables refused a batch; nothing of it is in force.
    #[error("cannot {action}")]
    Nft {
        /// What the batch was to do.
        action: &'static str,
        /// Why not.
        #[source]
        source: NftError,
    },
    /// A kernel setting could not be read or written.
    #[error("cannot access {path}")]
    Sysctl {
        /// The file of the setting.
        path: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The tap could not be made or opened.
    #[error("cannot {action} the tap {name}")]
    Tap {
        /// What was to be done to it.
        action: &'static str,
        /// The tap.
        name: &'static str,
        /// Why not.
        #[source]
        source: Errno,
    },
    /// The kernel's counters could not be read.
    #[error("cannot read {path}")]
    Statistics {
        /// Their file.
        path: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A tracked connection of a sandbox that is gone could not be deleted.
    #[error("cannot delete a tracked connection")]
    Connection(#[source] ReplyError),
    /// It is not certain that nothing of its last sandbox is left in a slot.
    #[error("the network slot cannot be used again: {0}")]
    NotClean(&'static str),
    /// What is there is not the network of that slot, or not all of it.
    #[error("cannot take back the network of slot {index}: {reason}")]
    NotTheSlot {
        /// The slot's number.
        index: u16,
        /// What is missing or wrong.
        reason: &'static str,
    },
    /// Parts of something could not be removed; the others are.
    #[error("could not remove all of {what}: {}", join(.errors))]
    TearDown {
        /// What was to be removed.
        what: String,
        /// All that failed.
        errors: Vec<NetError>,
    },
}

impl NetError {
    /// Whether nftables knows nothing of what a batch was to change.
    pub(super) fn is_missing(&self) -> bool {
        matches!(self, Self::Nft { source: NftError::Refused { source: Errno::NOENT, .. }, .. })
    }
}

/// Why nftables did not take a batch.
#[derive(Debug, thiserror::Error)]
pub enum NftError {
    /// The netlink socket failed.
    #[error("cannot talk to nftables")]
    Socket(#[source] Errno),
    /// The kernel refused one of the messages, and with it all.
    #[error("nftables refused {step}")]
    Refused {
        /// The message.
        step: String,
        /// Why.
        #[source]
        source: Errno,
    },
    /// The kernel's answer is not one.
    #[error("unintelligible or missing answer from nftables")]
    Answer,
    /// A table could not be looked up.
    #[error("cannot look up a table")]
    Lookup(#[source] ReplyError),
}

/// Ok, or all errors of tearing `what` down.
pub(super) fn all_or(
    what: impl Into<String>,
    results: impl IntoIterator<Item = Result<(), NetError>>,
) -> Result<(), NetError> {
    let errors: Vec<NetError> = results.into_iter().filter_map(Result::err).collect();
    if errors.is_empty() { Ok(()) } else { Err(NetError::TearDown { what: what.into(), errors }) }
}

fn join(errors: &[NetError]) -> String {
    let chain = |error: &NetError| {
        let mut text = error.to_string();
        let mut source = std::error::Error::source(error);
        while let Some(error) = source {
            text.push_str(": ");
            text.push_str(&error.to_string());
            source = error.source();
        }
        text
    };
    errors.iter().map(chain).collect::<Vec<_>>().join("; ")
}
