//! What somebody wants of a new sandbox.

use std::time::Duration;

use crate::caller::Caller;

/// What is wanted, whatever the sandbox begins with.
#[derive(Debug, Clone)]
pub(crate) struct Wish {
    /// Whose it is to be.
    pub(crate) caller: Caller,
    /// How long it is to live, once it is handed out; none: without a limit.
    pub(crate) lifetime: Option<Duration>,
}

impl Wish {
    /// For the server itself.
    pub(crate) const OWN: Self = Self { caller: Caller::Server, lifetime: None };
}
