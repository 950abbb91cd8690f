//! Taking one sandbox back: its VMM, its network, its disk, and a new session with its agent, which ends what the dead
//! server ran in it and sets its clock. It keeps its id, its names, its address and the end of its lifetime.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tracing::{info, warn};

use super::plan::Remains;
use crate::admission::{Place, in_turn};
use crate::caller::Caller;
use crate::ending::Ending;
use crate::failpoint::{Failpoint, reached};
use crate::journal::Row;
use crate::lifetime::Lifetime;
use crate::resources::Resources;
use crate::sandbox::Handle;
use crate::shared::Shared;
use crate::table::Table;

/// Longest that it may take, from the sandbox's turn on; the agent's own limits count within that. A VMM that was saving
/// its guest when the server died does that to its end first: to wait for it is better than to lose the sandbox.
const LIMIT: Duration = Duration::from_secs(30);
/// A turn is over after this, whether or not the guest has answered.
const TURN: Duration = Duration::from_secs(1);

/// How many have a turn at once: their guests need the processor for it.
pub(super) fn at_once() -> usize {
    4 * manta_host::facts::cpus()
}

/// Takes a sandbox back into the place that it has, in its turn, or says what is left of it to be removed.
pub(super) async fn adopt(
    row: Row,
    place: Place,
    turns: Arc<Semaphore>,
    shared: Shared,
    table: Arc<Table>,
) -> Option<Remains> {
    let (id, expires, info) = (row.id.clone(), row.expires_unix_ms, row.info.clone());
    let mut resources = Resources::left(row, &shared);
    let adopting = async {
        let turn = turns.acquire_owned().await.map_err(|closed| closed.to_string())?;
        let late = |_| Err(format!("no answer within {} s", LIMIT.as_secs()));
        let adopted = tokio::time::timeout(LIMIT, resources.adopt(&shared));
        in_turn(turn, TURN, adopted).await.unwrap_or_else(late)
    };
    let adopted = tokio::select! {
        biased;
        () = shared.stop.cancelled() => Err(Ending::Shutdown),
        adopted = adopting => adopted.map_err(Ending::Lost),
    };
    match (adopted, info) {
        (Ok(()), Some(info)) => {
            info!(sandbox_id = %id, "taken back from a killed server");
            let mut lifetime = Lifetime::default();
            if let Some(end) = expires {
                lifetime.set(Duration::from_millis(end.saturating_sub(crate::events::unix_ms())));
            }
            let maker = Caller::found(info.owner.clone());
            let (to_run, all) = (resources, shared.clone());
            table.insert(&id, |ended| Handle::go_on(info, maker, lifetime, to_run, all, place, ended));
            reached(Failpoint::RecoverAdopted);
            None
        }
        (outcome, _) => {
            let ending = outcome.err().unwrap_or(Ending::Shutdown);
            warn!(sandbox_id = %id, ?ending, "a sandbox of a killed server is not taken back");
            let row = resources.give_up(&shared).await;
            // Whoever asks for it need not wait for the rest to be removed.
            table.remember(&id, ending.clone());
            let dir = Some(shared.sandbox_dir(&id));
            Some(Remains { id: Some(id), row, dir, strays: Vec::new(), ending: Some(ending) })
        }
    }
}
