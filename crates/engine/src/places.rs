//! Places among all sandboxes: how many there are, by number and by memory, who has them, and who may have more. Pure
//! but for the clock that rates need. A place is held by the sandbox itself, from before it is begun until it is gone,
//! so what is counted here is what exists.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::caller::{Caller, Rate};
use crate::error::EngineError;

/// What the host has for sandboxes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct HostLimits {
    /// Most at once.
    pub(crate) max_sandboxes: usize,
    /// Most memory of all of them, MiB.
    pub(crate) max_memory_mib: u64,
    /// Of a new one: its guest's and its VMM's own.
    pub(crate) sandbox_mib: u64,
}

/// All places.
#[derive(Debug)]
pub(crate) struct Places {
    limits: HostLimits,
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    places: usize,
    committed_mib: u64,
    keys: HashMap<String, HeldByKey>,
}

#[derive(Debug, Default)]
struct HeldByKey {
    places: u32,
    bucket: Bucket,
}

/// How far ahead of its rate somebody is.
#[derive(Debug, Default)]
struct Bucket {
    /// When all that was taken will have come back; none: it has.
    full_at: Option<Instant>,
}

/// One place, given back when dropped.
#[derive(Debug)]
pub(crate) struct Taken {
    places: Arc<Places>,
    owner: Option<String>,
    mib: u64,
}

impl Drop for Taken {
    fn drop(&mut self) {
        let mut held = self.places.lock();
        held.places -= 1;
        held.committed_mib -= self.mib;
        if let Some(key) = self.owner.as_ref().and_then(|owner| held.keys.get_mut(owner)) {
            key.places -= 1;
        }
    }
}

impl Places {
    pub(crate) fn new(limits: HostLimits) -> Self {
        Self { limits, held: Mutex::default() }
    }

    /// One for this caller. Only with `asked` does it count for their rate.
    ///
    /// # Errors
    /// The limit that is reached; nothing has changed then.
    pub(crate) fn take(this: &Arc<Self>, caller: &Caller, asked: bool) -> Result<Taken, EngineError> {
        let owner = caller.owner().map(str::to_owned);
        let mut held = this.lock();
        if !matches!(caller, Caller::Server) {
            this.limits.check(&held)?;
        }
        if let Some(owner) = &owner {
            held.take_of_key(owner, caller, asked, Instant::now())?;
        }
        Ok(held.add(this, owner, this.limits.sandbox_mib))
    }

    /// The one of a sandbox that exists and has so much memory: it counts, though there may be none. There is none for
    /// others then, until enough are given back.
    pub(crate) fn take_back(this: &Arc<Self>, maker: &Caller, mib: u64) -> Taken {
        let owner = maker.owner().map(str::to_owned);
        let mut held = this.lock();
        if let Some(owner) = &owner {
            held.keys.entry(owner.clone()).or_default().places += 1;
        }
        held.add(this, owner, mib)
    }

    /// How many more there are.
    pub(crate) fn free(&self) -> usize {
        let HostLimits { max_sandboxes, max_memory_mib, sandbox_mib } = self.limits;
        let held = self.lock();
        let fit = max_memory_mib.saturating_sub(held.committed_mib) / sandbox_mib.max(1);
        max_sandboxes.saturating_sub(held.places).min(usize::try_from(fit).unwrap_or(usize::MAX))
    }

    /// Memory of all sandboxes that have a place, MiB.
    pub(crate) fn committed_mib(&self) -> u64 {
        self.lock().committed_mib
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl HostLimits {
    fn check(self, held: &Held) -> Result<(), EngineError> {
        if held.places >= self.max_sandboxes {
            return Err(EngineError::HostFull { limit: self.max_sandboxes });
        }
        let committed_mib = held.committed_mib;
        if committed_mib + self.sandbox_mib > self.max_memory_mib {
            return Err(EngineError::HostMemoryFull { committed_mib, limit_mib: self.max_memory_mib });
        }
        Ok(())
    }
}

impl Held {
    fn add(&mut self, places: &Arc<Places>, owner: Option<String>, mib: u64) -> Taken {
        self.places += 1;
        self.committed_mib += mib;
        Taken { places: places.clone(), owner, mib }
    }

    fn take_of_key(
        &mut self,
        owner: &str,
        caller: &Caller,
        asked: bool,
        now: Instant,
    ) -> Result<(), EngineError> {
        if !self.keys.contains_key(owner) {
            // No more are kept than there are keys in use.
            self.keys.retain(|_, key| key.places > 0 || key.bucket.full_at.is_some_and(|at| at > now));
            self.keys.insert(owner.to_owned(), HeldByKey::default());
        }
        let Some(key) = self.keys.get_mut(owner) else { return Ok(()) };
        let limits = caller.limits();
        if let Some(limit) = limits.max_sandboxes.filter(|limit| key.places >= limit.get()) {
            return Err(EngineError::KeySandboxLimit { limit: limit.get() });
        }
        if let Some(rate) = limits.creates_per_s.filter(|_| asked) {
            key.bucket.take(rate, now).map_err(|after| EngineError::KeyRateLimit { rate, after })?;
        }
        key.places += 1;
        Ok(())
    }
}

impl Bucket {
    /// Takes one, or says after how long there is one.
    fn take(&mut self, rate: Rate, now: Instant) -> Result<(), Duration> {
        let full_at = self.full_at.map_or(now, |at| at.max(now)) + rate.interval();
        let early = (full_at - now).checked_sub(rate.interval() * rate.burst());
        match early.filter(|early| !early.is_zero()) {
            Some(after) => Err(after),
            None => {
                self.full_at = Some(full_at);
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;
    use crate::caller::{KeyHolder, KeyLimits};

    fn places(max_sandboxes: usize, max_memory_mib: u64) -> Arc<Places> {
        Arc::new(Places::new(HostLimits { max_sandboxes, max_memory_mib, sandbox_mib: 300 }))
    }

    fn key(name: &str, max_sandboxes: u32, rate: Option<&str>) -> Caller {
        let creates_per_s = rate.map(|rate| rate.parse().unwrap());
        let limits = KeyLimits { max_sandboxes: NonZeroU32::new(max_sandboxes), creates_per_s };
        Caller::Key(Arc::new(KeyHolder { name: name.to_owned(), limits }))
    }

    #[test]
    fn places_are_as_many_as_there_are_and_as_fit() {
        let two = places(2, u64::MAX);
        let take = |places: &Arc<Places>| Places::take(places, &Caller::Anyone, true);
        let held = [take(&two).unwrap(), take(&two).unwrap()];
        assert!(matches!(take(&two), Err(EngineError::HostFull { limit: 2 })));
        assert_eq!((two.free(), two.committed_mib()), (0, 600));
        let more = Places::take(&two, &Caller::Server, true).unwrap();
        drop((held, more));
        assert_eq!((two.free(), two.committed_mib()), (2, 0));

        let small = places(9, 899);
        let held = [take(&small).unwrap(), take(&small).unwrap()];
        let full = take(&small);
        assert!(matches!(full, Err(EngineError::HostMemoryFull { committed_mib: 600, limit_mib: 899 })));
        assert_eq!(small.free(), 0);
        drop(held);
        assert_eq!(small.free(), 2);

        // One that was made when sandboxes were larger.
        let large = Places::take_back(&small, &Caller::Anyone, 700);
        assert_eq!((small.free(), small.committed_mib()), (0, 700));
        assert!(take(&small).is_err());
        drop(large);
        assert_eq!((small.free(), small.committed_mib()), (2, 0));
    }

    #[test]
    fn a_key_has_no_more_than_its_own_and_takes_from_nobody() {
        let places = places(9, u64::MAX);
        let (small, large) = (key("small", 1, None), key("large", 0, None));
        let one = Places::take(&places, &small, true).unwrap();
        assert!(matches!(
            Places::take(&places, &small, true),
            Err(EngineError::KeySandboxLimit { limit: 1 })
        ));
        let others = [large.clone(), large, Caller::Anyone]
            .map(|caller| Places::take(&places, &caller, true).unwrap());
        assert_eq!(places.free(), 5, "a refusal took a place");
        drop(one);
        Places::take(&places, &small, true).unwrap();
        // The limit is the key's, which may have been made anew with another.
        let two = [(); 2].map(|()| Places::take(&places, &key("small", 2, None), true).unwrap());
        assert!(Places::take(&places, &small, true).is_err());
        drop((two, others));
        assert_eq!(places.free(), 9);
    }

    #[test]
    fn of_many_at_once_exactly_as_many_as_allowed_get_one() {
        let places = places(1000, u64::MAX);
        let caller = key("ci", 3, None);
        let taken: Vec<_> = std::thread::scope(|scope| {
            let asking: Vec<_> =
                (0..100).map(|_| scope.spawn(|| Places::take(&places, &caller, true).ok())).collect();
            asking.into_iter().filter_map(|one| one.join().unwrap()).collect()
        });
        assert_eq!((taken.len(), places.free()), (3, 997));
    }

    #[tokio::test(start_paused = true)]
    async fn a_rate_is_kept_after_its_burst_and_a_refusal_costs_nothing() {
        let places = places(1000, u64::MAX);
        let caller = key("ci", 0, Some("0.5:3"));
        let take = || match Places::take(&places, &caller, true) {
            Ok(_) => Ok(()),
            Err(EngineError::KeyRateLimit { after, .. }) => Err(after.as_millis()),
            Err(error) => panic!("{error}"),
        };
        let wait = async |ms| tokio::time::advance(Duration::from_millis(ms)).await;
        assert_eq!([take(), take(), take(), take(), take()], [Ok(()), Ok(()), Ok(()), Err(2000), Err(2000)]);
        Places::take(&places, &caller, false).unwrap();
        wait(500).await;
        assert_eq!(take(), Err(1500));
        wait(1500).await;
        assert_eq!([take(), take()], [Ok(()), Err(2000)]);
        // A long pause gives no more than the burst.
        wait(1_000_000).await;
        assert_eq!([take(), take(), take(), take()], [Ok(()), Ok(()), Ok(()), Err(2000)]);
        // What somebody else asks for forgets those who are even with their rate, and only those.
        drop(Places::take(&places, &key("other", 0, None), true).unwrap());
        assert_eq!(take(), Err(2000));
    }
}
