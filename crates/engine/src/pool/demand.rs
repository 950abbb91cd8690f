//! How many waiting sandboxes of which snapshot there should be. Pure: what was restored when goes in, targets
//! come out.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use manta_api::SnapshotId;
use tokio::time::Instant;

use crate::snapshots::Stored;

/// Restores count half after this long.
const HALF_LIFE: Duration = Duration::from_secs(60);
/// A snapshot restored as often, lately, is kept waiting for the next time: three times within half a minute or so,
const OFTEN: f64 = 2.5;
/// until it is restored less often than this.
const SELDOM: f64 = 1.0;
/// Snapshots remembered; the one restored least is forgotten first.
const REMEMBERED: usize = 256;

/// What is asked for.
#[derive(Debug, Default)]
pub(super) struct Demand {
    golden: Option<Arc<Stored>>,
    restored: HashMap<SnapshotId, Restored>,
}

#[derive(Debug)]
struct Restored {
    of: Arc<Stored>,
    /// Restores, each worth less as time passes.
    score: f64,
    at: Instant,
    often: bool,
}

impl Restored {
    fn score(&self, now: Instant) -> f64 {
        let half_lives = now.saturating_duration_since(self.at).as_secs_f64() / HALF_LIFE.as_secs_f64();
        self.score * (-half_lives).exp2()
    }
}

impl Demand {
    /// What new sandboxes begin with from now on.
    pub(super) fn set_golden(&mut self, golden: Option<Arc<Stored>>) {
        self.golden = golden;
    }

    pub(super) fn is_golden(&self, id: &SnapshotId) -> bool {
        self.golden.as_ref().is_some_and(|golden| golden.manifest.id == *id)
    }

    /// A user's snapshot was asked for.
    pub(super) fn restored(&mut self, of: &Arc<Stored>, now: Instant) {
        let id = &of.manifest.id;
        let before = self.restored.get(id).map(|restored| (restored.score(now), restored.often));
        let (score, often) = before.unwrap_or((0.0, false));
        let often = often && score >= SELDOM || score + 1.0 >= OFTEN;
        self.restored.insert(id.clone(), Restored { of: of.clone(), score: score + 1.0, at: now, often });
        if self.restored.len() > REMEMBERED {
            let least = self.restored.iter().min_by(|a, b| a.1.score(now).total_cmp(&b.1.score(now)));
            if let Some(least) = least.map(|(id, _)| id.clone()) {
                self.restored.remove(&least);
            }
        }
    }

    /// No more of this one: it was deleted, or is of no use.
    pub(super) fn forget(&mut self, id: &SnapshotId) {
        self.restored.remove(id);
        self.golden.take_if(|golden| golden.manifest.id == *id);
    }

    /// Of `total` places those often restored get up to half, by how often they are; the rest is for new sandboxes.
    pub(super) fn targets(&self, total: usize, now: Instant) -> Vec<(Arc<Stored>, usize)> {
        let mut often: Vec<_> = self
            .restored
            .values()
            .map(|restored| (restored, restored.score(now)))
            .filter(|(restored, score)| restored.often && *score >= SELDOM)
            .collect();
        often.sort_by(|a, b| b.1.total_cmp(&a.1).then_with(|| a.0.of.manifest.id.cmp(&b.0.of.manifest.id)));
        let sum: f64 = often.iter().map(|(_, score)| score).sum();
        let share = if self.golden.is_some() { total / 2 } else { total };
        let mut left = share;
        let mut targets = Vec::new();
        for (restored, score) in often {
            // Never more than were asked for lately; the most restored gets one, if only one is left.
            let fair = (share as f64 * score / sum).ceil().min(score.ceil()) as usize;
            let count = fair.min(left);
            left -= count;
            if count > 0 {
                targets.push((restored.of.clone(), count));
            }
        }
        if let Some(golden) = &self.golden {
            targets.insert(0, (golden.clone(), total - (share - left)));
        }
        targets
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshots::stored;

    fn counts(demand: &Demand, total: usize, now: Instant) -> Vec<(SnapshotId, usize)> {
        let targets = demand.targets(total, now);
        targets.into_iter().map(|(of, count)| (of.manifest.id.clone(), count)).collect()
    }

    #[tokio::test]
    async fn all_places_are_for_new_sandboxes_until_a_snapshot_is_restored_often() {
        let (golden, often, once, now) = (stored(1), stored(2), stored(3), Instant::now());
        let mut demand = Demand::default();
        assert_eq!(counts(&demand, 8, now), [], "nothing to make them of");
        demand.set_golden(Some(golden.clone()));
        (0..2).for_each(|_| demand.restored(&often, now));
        demand.restored(&once, now);
        assert_eq!(counts(&demand, 8, now), [(golden.manifest.id.clone(), 8)]);
        demand.restored(&often, now);
        let split = [(golden.manifest.id.clone(), 5), (often.manifest.id.clone(), 3)];
        assert_eq!(counts(&demand, 8, now), split, "no more than were asked for lately");
        (0..50).for_each(|_| demand.restored(&often, now));
        let half = [(golden.manifest.id.clone(), 4), (often.manifest.id.clone(), 4)];
        assert_eq!(counts(&demand, 8, now), half, "no more than half");
        assert_eq!(counts(&demand, 1, now), [(golden.manifest.id.clone(), 1)]);

        demand.forget(&often.manifest.id);
        assert_eq!(counts(&demand, 8, now), [(golden.manifest.id.clone(), 8)]);
        demand.set_golden(None);
        assert_eq!(counts(&demand, 8, now), []);
    }

    #[tokio::test]
    async fn demand_fades_and_places_go_to_whom_is_restored_most() {
        let (most, less, start) = (stored(2), stored(3), Instant::now());
        let mut demand = Demand::default();
        (0..12).for_each(|_| demand.restored(&most, start));
        (0..4).for_each(|_| demand.restored(&less, start));
        let both = [(most.manifest.id.clone(), 6), (less.manifest.id.clone(), 2)];
        assert_eq!(counts(&demand, 8, start), both);
        assert_eq!(counts(&demand, 1, start), [(most.manifest.id.clone(), 1)]);
        assert_eq!(counts(&demand, 8, start + 3 * HALF_LIFE), [(most.manifest.id.clone(), 2)]);
        assert_eq!(counts(&demand, 8, start + 4 * HALF_LIFE), []);
        demand.restored(&most, start + 4 * HALF_LIFE);
        assert_eq!(counts(&demand, 8, start + 4 * HALF_LIFE), [], "once is not often");
    }

    #[tokio::test]
    async fn what_is_remembered_is_bounded() {
        let (mut demand, start) = (Demand::default(), Instant::now());
        let often = stored(0);
        (0..10).for_each(|_| demand.restored(&often, start));
        for n in 1..=2 * u16::try_from(REMEMBERED).unwrap() {
            demand.restored(&stored(n), start + Duration::from_millis(n.into()));
        }
        assert_eq!(demand.restored.len(), REMEMBERED);
        assert!(demand.restored.contains_key(&often.manifest.id), "the most restored is not forgotten");
    }
}
