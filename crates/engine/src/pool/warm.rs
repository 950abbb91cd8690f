//! Sandboxes that wait to be claimed: restored, adopted, exercised, and at rest. One task keeps them: it makes what
//! is lacking when nobody is being served, and gives up what died, is old, or is too much.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use manta_api::SnapshotId;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;
use tracing::{debug, info, warn};

use super::demand::Demand;
use super::member::{Member, Walk};
use super::plan::{self, Supply};
use super::{Foreground, PoolStatus, Stats, headroom};
use crate::admission::Admission;
use crate::error::EngineError;
use crate::failpoint::{Failpoint, reached};
use crate::metrics::Pool;
use crate::shared::Shared;
use crate::snapshots::{Stored, blocking};
use crate::timing::{Clock, Operation, Timed};

/// How often a waiting guest has to show that it still answers.
const FRESHEN: Duration = Duration::from_secs(60);
/// After a failure nothing more is made of that snapshot for this long, twice as long after each further one.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// The pool.
#[derive(Debug)]
pub(crate) struct WarmPool {
    target: usize,
    max_age: Duration,
    foreground: Arc<Foreground>,
    admission: Arc<Admission>,
    state: Mutex<State>,
    changed: Arc<Notify>,
    stats: Stats,
}

#[derive(Debug, Default)]
struct State {
    demand: Demand,
    /// Oldest first.
    waiting: VecDeque<Waiting>,
    /// Being made or freshened, in no order.
    making: Vec<SnapshotId>,
    failing: HashMap<SnapshotId, Failing>,
}

#[derive(Debug)]
struct Waiting {
    member: Member,
    /// Ends when the member dies.
    watch: AbortOnDropHandle<()>,
}

#[derive(Debug, Clone, Copy)]
struct Failing {
    pause: Duration,
    until: Instant,
}

/// What the keeper does next.
enum Step {
    /// One more of this.
    Make(Arc<Stored>),
    /// Have one show that it lives.
    Freshen(Box<Member>),
    /// Nothing before this time, or before something changes.
    Wait(Option<Instant>),
}

impl WarmPool {
    /// `target` sandboxes, none of them older than `max_age`.
    pub(crate) fn new(
        target: usize,
        max_age: Duration,
        foreground: Arc<Foreground>,
        admission: Arc<Admission>,
    ) -> Arc<Self> {
        let (state, changed, stats) = (Mutex::default(), Arc::default(), Stats::of(Pool::Warm));
        Arc::new(Self { target, max_age, foreground, admission, state, changed, stats })
    }

    /// What new sandboxes begin with from now on.
    pub(crate) fn set_golden(&self, golden: Option<Arc<Stored>>) {
        self.state().demand.set_golden(golden);
        self.changed.notify_one();
    }

    /// A user's snapshot was deleted, or is of no use: nothing of it waits any more.
    pub(crate) fn forget(&self, id: &SnapshotId) {
        self.state().demand.forget(id);
        self.changed.notify_one();
    }

    /// The oldest that waits and lives, of this snapshot. A user's snapshot is asked for by this, too.
    pub(crate) async fn claim(&self, of: &Arc<Stored>, is_golden: bool, shared: &Shared) -> Option<Member> {
        if self.target == 0 {
            return None;
        }
        // What runs in a user's snapshot would run on where guests cannot rest.
        if !is_golden && shared.config.vmm.can_rest() {
            self.state().demand.restored(of, Instant::now());
        }
        loop {
            let found = {
                let mut state = self.state();
                let mut waiting = state.waiting.iter();
                let index = waiting.position(|waiting| waiting.member.of.manifest.id == of.manifest.id);
                index.and_then(|index| state.waiting.remove(index))
            };
            self.changed.notify_one();
            let Some(Waiting { member, watch }) = found else {
                self.stats.claimed(false);
                return None;
            };
            let is_young = member.made.elapsed() < self.max_age;
            if is_young && !watch.is_finished() && member.resources.is_alive().await {
                self.stats.claimed(true);
                return Some(member);
            }
            member.discard(shared);
        }
    }

    /// Somebody took a place in the host, or gave one back.
    pub(crate) fn places_changed(&self) {
        self.changed.notify_one();
    }

    /// How it does. Its target is what can wait as things are: none without a golden snapshot, and no more than
    /// there are places.
    pub(crate) fn status(&self) -> PoolStatus {
        let (depth, wanted) = {
            let state = self.state();
            let targets = state.demand.targets(self.target, Instant::now());
            (state.waiting.len(), targets.iter().map(|(_, count)| count).sum::<usize>())
        };
        self.stats.status(depth, wanted.min(self.admission.free_places()))
    }

    /// Keeps the pool full until the engine stops, then takes apart what waits.
    pub(crate) async fn keep_full(self: Arc<Self>, shared: Shared) {
        let width = manta_host::facts::cpus();
        let mut making = JoinSet::new();
        while !shared.stop.is_cancelled() {
            let quiet = tokio::select! {
                biased;
                () = self.foreground.quiet() => true,
                () = std::future::ready(()) => false,
            };
            let wake_at = match self.step(&shared, if quiet { width } else { 1 }, quiet) {
                Step::Make(of) => {
                    self.state().making.push(of.manifest.id.clone());
                    making.spawn(self.clone().make(of, shared.clone()));
                    continue;
                }
                Step::Freshen(member) => {
                    self.state().making.push(member.of.manifest.id.clone());
                    making.spawn(self.clone().freshen(*member, shared.clone()));
                    continue;
                }
                Step::Wait(until) => until,
            };
            tokio::select! {
                () = self.changed.notified() => {}
                () = self.admission.place_freed() => {}
                () = self.foreground.quiet(), if !quiet => {}
                Some(_) = making.join_next() => {}
                () = tokio::time::sleep_until(wake_at.unwrap_or_else(Instant::now)), if wake_at.is_some() => {}
                () = shared.stop.cancelled() => {}
            }
        }
        while making.join_next().await.is_some() {}
        let waiting = std::mem::take(&mut self.state().waiting);
        waiting.into_iter().for_each(|waiting| waiting.member.discard(&shared));
    }

    /// Gives up what is not to wait any longer, and says what to do next, with `width` things done at once.
    fn step(&self, shared: &Shared, width: usize, quiet: bool) -> Step {
        let now = Instant::now();
        let mut given_up = Vec::new();
        let mut state = self.state();
        let step = {
            let state = &mut *state;
            let targets = state.demand.targets(self.target, now);
            state.failing.retain(|id, _| targets.iter().any(|(of, _)| of.manifest.id == *id));
            state.give_up(|waiting| waiting.watch.is_finished(), usize::MAX, &mut given_up);
            state.give_up(
                |waiting| !targets.iter().any(|(of, _)| waiting.is_of(of)),
                usize::MAX,
                &mut given_up,
            );
            let room = self.admission.free_places();
            let supplies = state.supplies(&targets, now);
            for ((of, _), surplus) in targets.iter().zip(plan::surplus(&supplies, room)) {
                state.give_up(|waiting| waiting.is_of(of), surplus, &mut given_up);
            }
            let supplies = state.supplies(&targets, now);
            // Beside what is made of users' snapshots, which may take its time.
            let users = state.making.iter().filter(|id| !state.demand.is_golden(id)).count();
            if state.making.len() - users >= width {
                Step::Wait(None)
            } else {
                match plan::next(&supplies, room) {
                    // Not while those who wait need the processors for a restore of their own.
                    Some(index) if quiet || supplies[index].is_scarce() && self.admission.has_free_turn() => {
                        Step::Make(targets[index].0.clone())
                    }
                    Some(_) => Step::Wait(None),
                    None => self.look_after(state, now, quiet, &mut given_up),
                }
            }
        };
        drop(state);
        given_up.into_iter().for_each(|member| member.discard(shared));
        step
    }

    /// When no more can be made now: has one that was not heard of for long show that it lives, or gives up one that
    /// is too old, to be replaced before the next one goes.
    fn look_after(&self, state: &mut State, now: Instant, quiet: bool, given_up: &mut Vec<Member>) -> Step {
        if state.making.is_empty() && quiet {
            let old = |waiting: &&Waiting| {
                let id = &waiting.member.of.manifest.id;
                waiting.member.made + self.max_age <= now && !state.failing.contains_key(id)
            };
            if let Some(id) = state.waiting.iter().find(old).map(|waiting| waiting.member.id.clone()) {
                state.give_up(|waiting| waiting.member.id == id, 1, given_up);
                return Step::Wait(Some(now)); // to plan again, now that one is lacking
            }
            let stale = state.waiting.iter().position(|waiting| waiting.member.fresh + FRESHEN <= now);
            if let Some(waiting) = stale.and_then(|stale| state.waiting.remove(stale)) {
                return Step::Freshen(Box::new(waiting.member));
            }
        }
        let members = state.waiting.iter().map(|waiting| &waiting.member);
        let due = members.map(|member| (member.made + self.max_age).min(member.fresh + FRESHEN));
        let retries = state.failing.values().map(|failing| failing.until).filter(|until| *until > now);
        // What is due already waits for what is being made, whose end is noticed.
        let next = due.filter(|due| *due > now).chain(retries).min();
        Step::Wait(next)
    }

    async fn make(self: Arc<Self>, of: Arc<Stored>, shared: Shared) {
        let clock = Clock::start();
        let is_golden = self.state().demand.is_golden(&of.manifest.id);
        let made = async {
            let (host, checked) = (shared.clone(), of.clone());
            let looked = blocking(move || Ok((headroom::check(&host), checked.check()?)));
            let (room, ()) = looked.await?;
            room.map_err(|reason| EngineError::Host { stage: "looking for room ahead of time", reason })?;
            let walk = if is_golden { Walk::Login } else { Walk::Bare };
            Member::warm(of.clone(), walk, &shared, &clock).await
        };
        let made = made.await;
        let Timed { outcome, timings } = clock.finish(Operation::Warm, made);
        self.stats.refilled(timings.total(), outcome.is_ok());
        self.made(&of, outcome, &shared);
    }

    async fn freshen(self: Arc<Self>, member: Member, shared: Shared) {
        let of = member.of.clone();
        let freshened = member.freshen(&shared).await;
        self.made(&of, freshened, &shared);
    }

    /// One joins those that wait, or could not be made.
    fn made(&self, of: &Stored, made: Result<Member, EngineError>, shared: &Shared) {
        let id = &of.manifest.id;
        let mut state = self.state();
        if let Some(index) = state.making.iter().position(|making| making == id) {
            state.making.swap_remove(index);
        }
        match made {
            Ok(member) => {
                state.failing.remove(id);
                debug!(sandbox_id = %member.id, snapshot_id = %id, "waits to be claimed");
                let (death, changed) = (member.resources.death(), self.changed.clone());
                let watch = AbortOnDropHandle::new(tokio::spawn(async move {
                    let death = death.await;
                    info!(?death, "a sandbox died while it waited to be claimed");
                    changed.notify_one();
                }));
                state.waiting.push_back(Waiting { member, watch });
                reached(Failpoint::RefillWaits);
            }
            Err(_) if shared.stop.is_cancelled() => {}
            Err(error) => {
                let now = Instant::now();
                let pause = match state.failing.get(id) {
                    None => FIRST_PAUSE,
                    // Begun before the first of them failed.
                    Some(failing) if failing.until > now => failing.pause,
                    Some(failing) => (failing.pause * 2).min(LONGEST_PAUSE),
                };
                warn!(snapshot_id = %id, %error, ?pause, "cannot make a sandbox ahead of time");
                state.failing.insert(id.clone(), Failing { pause, until: now + pause });
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting {
    fn is_of(&self, of: &Stored) -> bool {
        self.member.of.manifest.id == of.manifest.id
    }
}

impl State {
    fn supplies(&self, targets: &[(Arc<Stored>, usize)], now: Instant) -> Vec<Supply> {
        let is_golden = |id: &SnapshotId| self.demand.is_golden(id);
        // One at a time of users' snapshots, whose guests may take as long as they like.
        let user_made = self.making.iter().any(|id| !is_golden(id));
        let supply = |(of, wanted): &(Arc<Stored>, usize)| {
            let id = &of.manifest.id;
            let is_failing = self.failing.get(id).is_some_and(|failing| failing.until > now);
            Supply {
                wanted: *wanted,
                waiting: self.waiting.iter().filter(|waiting| waiting.is_of(of)).count(),
                making: self.making.iter().filter(|making| *making == id).count(),
                held_back: is_failing || user_made && !is_golden(id),
            }
        };
        targets.iter().map(supply).collect()
    }

    /// Moves the oldest `most` of those that wait to `given_up`.
    fn give_up(&mut self, which: impl Fn(&Waiting) -> bool, most: usize, given_up: &mut Vec<Member>) {
        let mut left = most;
        let mut kept = VecDeque::with_capacity(self.waiting.len());
        for waiting in self.waiting.drain(..) {
            if left > 0 && which(&waiting) {
                left -= 1;
                given_up.push(waiting.member);
            } else {
                kept.push_back(waiting);
            }
        }
        self.waiting = kept;
    }
}
