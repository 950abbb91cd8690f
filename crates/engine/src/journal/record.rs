//! One sandbox's entry in the journal, kept by whoever owns the sandbox. Dropping it leaves the entry: what could not
//! be taken apart is the next server's to remove.

use manta_api::SandboxInfo;

use super::error::Unwritable;
use super::row::{DiskId, Row, Step, VmmProcess};
use super::writer::{Journal, Written, written};
use crate::ending::Ending;

/// The entry, as it was written last.
#[derive(Debug)]
pub(crate) struct Record {
    journal: Journal,
    row: Row,
}

impl Record {
    /// Writes the first entry of a sandbox of which nothing exists yet.
    ///
    /// # Errors
    /// [`Unwritable`]; there is no entry then.
    pub(crate) async fn begin(journal: &Journal, row: Row) -> Result<Self, Unwritable> {
        written(journal.put_or_nothing(row.clone())).await?;
        Ok(Self { journal: journal.clone(), row })
    }

    /// That of a sandbox which an earlier server began.
    pub(crate) fn found(journal: &Journal, row: Row) -> Self {
        Self { journal: journal.clone(), row }
    }

    pub(crate) fn into_row(self) -> Row {
        self.row
    }

    pub(crate) fn row(&self) -> &Row {
        &self.row
    }

    /// Its disk was made. Written with the next change.
    pub(crate) fn has_disk(&mut self, disk: DiskId) {
        self.row.disk = Some(disk);
    }

    /// Its VMM was started.
    pub(crate) fn has_process(&mut self, process: VmmProcess) {
        self.row.process = Some(process);
        drop(self.journal.put(self.row.clone()));
    }

    /// It waits to be claimed.
    pub(crate) fn waits(&mut self) {
        self.row.step = Step::Waiting;
        drop(self.journal.put(self.row.clone()));
    }

    /// It is about to be handed out: completes when that may be done.
    pub(crate) fn hand_out(
        &mut self,
        info: SandboxInfo,
        expires_unix_ms: Option<u64>,
    ) -> impl Future<Output = Result<(), Unwritable>> + Send + 'static {
        (self.row.step, self.row.info, self.row.expires_unix_ms) =
            (Step::Handed, Some(info), expires_unix_ms);
        written(self.journal.put_or_nothing(self.row.clone()))
    }

    /// It is to end at another time; completes when that is written, or cannot be for now.
    pub(crate) fn extend(&mut self, info: SandboxInfo, expires_unix_ms: Option<u64>) -> Written {
        (self.row.info, self.row.expires_unix_ms) = (Some(info), expires_unix_ms);
        self.journal.put(self.row.clone())
    }

    /// What became of it, when nothing is left of it; the first one told counts. Not written before that.
    pub(crate) fn will_have_ended(&mut self, ending: Ending) {
        self.row.ending.get_or_insert(ending);
    }

    /// It is about to be destroyed; as [`Self::extend`].
    pub(crate) fn ends(&mut self, ending: Ending) -> Written {
        (self.row.step, self.row.ending) = (Step::Ending, Some(ending));
        self.journal.put(self.row.clone())
    }

    /// Nothing is left of it. Completes when that is written, or cannot be for now.
    pub(crate) fn forget(self) -> Written {
        self.journal.remove(self.row.id, self.row.ending)
    }
}
