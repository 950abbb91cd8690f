//! What becomes of what a killed server left: sandboxes that were handed out and still answer are taken back, all else
//! is removed. What to do is decided before anything is touched ([`plan`]); then sandboxes are taken back ([`adopt`]),
//! since somebody waits for them, and after that the rest is removed ([`sweep`]): processes first, by descriptors
//! that stand for no other process, then their network and files, then their entries in the journal.

mod adopt;
mod plan;
mod sweep;

use std::sync::Arc;

use tokio::sync::{Semaphore, oneshot};
use tokio::task::JoinSet;

pub(crate) use plan::Plan;

use crate::admission::{Admission, Place};
use crate::caller::Caller;
use crate::config::sandbox_mib;
use crate::journal::Row;
use crate::shared::Shared;
use crate::table::Table;

/// Sandboxes removed at once: mostly it is waited for their VMMs to end.
const SWEPT_AT_ONCE: usize = 8;

/// Takes back and removes what `plan` says; `taken_back` is told when the first is done, and what is taken back is in
/// the table as expected before this is first polled. To be awaited to its end. Once the engine stops, nothing is taken
/// back any more, and removed instead.
pub(crate) fn recover(
    plan: Plan,
    shared: Shared,
    table: Arc<Table>,
    admission: &Admission,
    taken_back: oneshot::Sender<()>,
) -> impl Future<Output = ()> + use<> {
    let Plan { adopt, mut sweep } = plan;
    table.expect(adopt.iter().filter_map(|row| row.info.clone()));
    // Whoever asks for one of these is told what became of it, and need not wait for it to be removed.
    for remains in &sweep {
        if let (Some(id), Some(ending)) = (&remains.id, &remains.ending) {
            table.remember(id, ending.clone());
        }
    }
    // Before anybody new gets one.
    let placed: Vec<_> = adopt.into_iter().map(|row| (place(&row, admission, &shared), row)).collect();
    async move {
        let turns = Arc::new(Semaphore::new(adopt::at_once()));
        let (lost, panicked) = at_once(placed.len(), placed, |(place, row)| {
            adopt::adopt(row, place, turns.clone(), shared.clone(), table.clone())
        })
        .await;
        sweep.extend(lost.into_iter().flatten());
        table.expect_no_more();
        let _ = taken_back.send(()); // who asked may be gone
        let (_, also_panicked) =
            at_once(SWEPT_AT_ONCE, sweep, |remains| sweep::sweep(remains, shared.clone())).await;
        if panicked + also_panicked > 0 {
            tracing::error!(
                "taking back or removing what a killed server left panicked; the next start tries again"
            );
        }
    }
}

/// That of a sandbox that exists, with the memory that it was made with.
fn place(row: &Row, admission: &Admission, shared: &Shared) -> Place {
    let maker = Caller::found(row.info.as_ref().and_then(|info| info.owner.clone()));
    let mem_mib = row.machine.as_ref().map_or(shared.config.mem_mib, |machine| machine.mem_mib);
    admission.place_that_was_taken(&maker, sandbox_mib(mem_mib))
}

/// Does the same with each, `width` of them at once; the results in no order, and how many panicked.
async fn at_once<T, R, F>(width: usize, items: Vec<T>, work: impl Fn(T) -> F) -> (Vec<R>, usize)
where
    R: Send + 'static,
    F: Future<Output = R> + Send + 'static,
{
    let (mut results, mut panicked) = (Vec::new(), 0);
    let mut working = JoinSet::new();
    let mut items = items.into_iter();
    loop {
        while working.len() < width
            && let Some(item) = items.next()
        {
            working.spawn(work(item));
        }
        match working.join_next().await {
            Some(Ok(result)) => results.push(result),
            Some(Err(_)) => panicked += 1,
            None => return (results, panicked),
        }
    }
}
