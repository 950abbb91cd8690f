//! What becomes of what a killed server left: sandboxes that were handed out and still answer are taken back, all else
//! is removed. What to do is decided before anything is touched ([`plan`]); then sandboxes are taken back ([`adopt`]),
//! since somebody waits for them, and after that the rest is removed ([`sweep`]): processes first, by descriptors
//! that stand for no other process, then their network and files, then their entries in the journal.

mod adopt;
mod plan;
mod sweep;

use std::sync::Arc;

use tokio::sync::oneshot;
use tokio::task::JoinSet;

pub(crate) use plan::Plan;

use crate::admission::Admission;
use crate::shared::Shared;
use crate::table::Table;

/// Sandboxes removed at once: mostly it is waited for their VMMs to end.
const SWEPT_AT_ONCE: usize = 8;

/// Takes back and removes what `plan` says; `adopted` is told how many were taken back when that is done. To be awaited
/// to its end. Once the engine stops, nothing is taken back any more, and removed instead.
pub(crate) async fn recover(
    plan: Plan,
    shared: Shared,
    table: Arc<Table>,
    admission: Arc<Admission>,
    adopted: oneshot::Sender<usize>,
) {
    let Plan { adopt, mut sweep } = plan;
    let before = table.len();
    let (lost, panicked) = at_once(adopt::at_once(), adopt, |row| {
        adopt::adopt(row, shared.clone(), table.clone(), admission.clone())
    })
    .await;
    sweep.extend(lost.into_iter().flatten());
    // Whoever asks for one of these is told what became of it, and need not wait for it to be removed.
    for remains in &sweep {
        if let (Some(id), Some(ending)) = (&remains.id, &remains.ending) {
            table.remember(id, ending.clone());
        }
    }
    let _ = adopted.send(table.len() - before); // who asked may be gone
    let (_, also_panicked) =
        at_once(SWEPT_AT_ONCE, sweep, |remains| sweep::sweep(remains, shared.clone())).await;
    if panicked + also_panicked > 0 {
        tracing::error!(
            "taking back or removing what a killed server left panicked; the next start tries again"
        );
    }
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
