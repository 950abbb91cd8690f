//! What is made ahead of time, so that nobody has to wait for it: VMM processes ([`vmms`]) and whole sandboxes
//! ([`warm`]). Network slots have a pool of their own, [`crate::slots`].

mod demand;
mod foreground;
mod headroom;
mod member;
mod plan;
mod stats;
mod vmms;
mod warm;

pub(crate) use foreground::Foreground;
pub(crate) use member::Member;
pub(crate) use stats::Stats;
pub use stats::{PoolStatus, Pools};
pub(crate) use vmms::PreparedVms;
pub(crate) use warm::WarmPool;
