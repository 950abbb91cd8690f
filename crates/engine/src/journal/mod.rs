//! The journal: what this server has begun, so that its successor can take it back or take it apart when this one is
//! killed. Also what became of sandboxes, and the events. Owns the file `journal.db` below the work directory, and
//! the thread that writes it; does not know what to do about anything it says ([`crate::recovery`] does).
//!
//! ```text
//! Making ──▶ Waiting ──▶ Handed ──▶ Ending ──▶ (no row, but an ending)
//!    │          │           ▲
//!    └──────────┼───────────┘
//!               ▼
//!            (no row)
//! ```
//!
//! - Making: written before the first thing is made. What has this step at the next start is removed.
//! - Waiting: in a pool. Removed, too: it is made anew sooner than it is trusted.
//! - Handed: written before a creator is answered. Taken back at the next start, if it still answers.
//! - Ending: written before anything of it is removed. Removed at the next start, with the same ending.
//!
//! What must survive is this process's death, not the machine's, which no sandbox survives. So nothing is flushed to
//! the medium (`synchronous=OFF`): what was written is in the kernel when a commit returns, whoever is killed then. A
//! machine that lost power may leave a journal that cannot be read; it is put aside when none of its sandboxes lives.

mod archive;
mod db;
mod error;
mod record;
mod row;
#[cfg(test)]
mod tests;
mod writer;

pub(crate) use archive::{Archive, Page, Wanted, lost};
pub(crate) use error::Unwritable;
pub(crate) use record::Record;
pub(crate) use row::{DiskId, Row, Step, VmmProcess};
pub(crate) use writer::{Journal, Written, written};
