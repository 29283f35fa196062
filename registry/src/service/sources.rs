//! Who sends traces, and how many of whom are taken: so that no one decides alone what others' launches prefetch.
//!
//! A *source* is an address, hashed with a key that this process made up at its start: nothing of it is stored, and a
//! restart forgets it. Tokens are no sources as long as everyone can make up one. Replicas count apart.
//!
//! Two rules hold for each repository:
//! * a source may send [`TraceLimits::burst`] traces at once, and one more each [`TraceLimits::interval`];
//! * of the traces taken last (as many as a model's half-life, of the last hour) one source may have a quarter, or, if
//!   there are fewer than four sources, an equal share; a few ([`FREE`]) in any case. Who is alone is not limited.

use std::collections::{BTreeMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use layer_format::reference::Repository;
use lru::LruCache;
use parking_lot::Mutex;

use crate::config::TraceLimits;

/// Traces among which a source's share counts: the half-life of a model.
const WINDOW: usize = 20;
/// How long a trace counts.
const WINDOW_AGE: Duration = Duration::from_secs(3600);
/// From this many sources on each may have at most this part.
const MAX_PARTS: usize = 4;
/// So many of the window's traces any source may have, however few there are.
const FREE: usize = 4;
/// Repositories, and sources of one, that are remembered: the one seen longest ago is forgotten.
const MAX_REPOSITORIES: NonZeroUsize = NonZeroUsize::new(1024).unwrap();
const MAX_SOURCES: NonZeroUsize = NonZeroUsize::new(256).unwrap();
/// Held traces of which it is remembered whose they are: more than are held.
const MAX_HELD: usize = 64;

/// Who sent something: equal for one address, or one network of IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Source(u64);

/// Why a trace is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refused {
    /// Too many in too short a time.
    #[error("too many traces of this repository came from this address: send fewer")]
    Rate,
    /// Too many in proportion to those of others.
    #[error("enough traces of this repository came from this address: others are waited for")]
    Share,
}

#[derive(Debug)]
struct Seen {
    /// Newest last.
    window: VecDeque<(Instant, Source)>,
    /// Traces that each may still send, and since when.
    allowances: LruCache<Source, (f64, Instant)>,
    /// Of whom held traces are, by number.
    held: BTreeMap<i64, Source>,
}

/// The counters.
#[derive(Debug)]
pub(crate) struct Sources {
    limits: TraceLimits,
    hasher: RandomState,
    seen: Mutex<LruCache<Repository, Seen>>,
}

impl Sources {
    pub(crate) fn new(limits: TraceLimits) -> Self {
        Self { limits, hasher: RandomState::new(), seen: Mutex::new(LruCache::new(MAX_REPOSITORIES)) }
    }

    /// The source behind an address.
    pub(crate) fn source(&self, address: IpAddr) -> Source {
        Source(match address.to_canonical() {
            IpAddr::V4(address) => self.hasher.hash_one(address.octets()),
            // One customer has a whole /64.
            IpAddr::V6(address) => self.hasher.hash_one(&address.octets()[..8]),
        })
    }

    /// Whether a trace may be taken now; if so, it counts.
    pub(crate) fn admit(&self, repository: &Repository, source: Source, now: Instant) -> Result<(), Refused> {
        let mut all = self.seen.lock();
        let seen =
            all.get_or_insert_mut(repository.clone(), || Seen { window: VecDeque::new(), allowances: LruCache::new(MAX_SOURCES), held: BTreeMap::new() });
        let burst = f64::from(self.limits.burst.max(1));
        let (left, since) = seen.allowances.get_or_insert_mut(source, || (burst, now));
        let interval = self.limits.interval.as_secs_f64();
        let more = if interval > 0.0 { now.saturating_duration_since(*since).as_secs_f64() / interval } else { burst };
        (*left, *since) = ((*left + more).min(burst), now);
        if *left < 1.0 {
            return Err(Refused::Rate);
        }
        while seen.window.front().is_some_and(|(at, _)| seen.window.len() > WINDOW || now.saturating_duration_since(*at) > WINDOW_AGE) {
            seen.window.pop_front();
        }
        let oldest_goes = seen.window.len() >= WINDOW && seen.window.front().is_some_and(|(_, oldest)| *oldest == source);
        let own = seen.window.iter().filter(|(_, other)| *other == source).count() + 1 - usize::from(oldest_goes);
        let mut others: Vec<u64> = seen.window.iter().map(|(_, other)| other.0).filter(|other| *other != source.0).collect();
        others.sort_unstable();
        others.dedup();
        let all_then = (seen.window.len() + 1).min(WINDOW);
        if !others.is_empty() && own > all_then.div_ceil(MAX_PARTS.min(others.len() + 1)).max(FREE) {
            return Err(Refused::Share);
        }
        *left -= 1.0;
        seen.window.push_back((now, source));
        if seen.window.len() > WINDOW {
            seen.window.pop_front();
        }
        Ok(())
    }

    /// Whether a trace of this source may be held out to judge models by: not two of one source in a row, unless no one
    /// else sends any.
    pub(crate) fn may_hold(&self, repository: &Repository, source: Source) -> bool {
        let mut all = self.seen.lock();
        let Some(seen) = all.get_mut(repository) else { return true };
        let alone = seen.window.iter().all(|(_, other)| *other == source);
        alone || seen.held.last_key_value().is_none_or(|(_, last)| *last != source)
    }

    /// A trace of this source was held out under this number, which is higher than those before it.
    pub(crate) fn held(&self, repository: &Repository, source: Source, number: i64) {
        if let Some(seen) = self.seen.lock().get_mut(repository) {
            seen.held.insert(number, source);
            while seen.held.len() > MAX_HELD {
                seen.held.pop_first();
            }
        }
    }

    /// Of whom a held trace is; `None` if this process did not see it come.
    pub(crate) fn of_held(&self, repository: &Repository, number: i64) -> Option<Source> {
        self.seen.lock().peek(repository)?.held.get(&number).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sources(burst: u32) -> (Sources, Repository, Instant) {
        (Sources::new(TraceLimits { burst, interval: Duration::from_secs(10) }), "tools/app".parse().unwrap(), Instant::now())
    }

    fn address(number: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, number])
    }

    #[test]
    fn a_source_that_sends_too_fast_waits_and_others_do_not() {
        let (sources, repository, start) = sources(3);
        let one = sources.source(address(1));
        for _ in 0..3 {
            assert_eq!(sources.admit(&repository, one, start), Ok(()));
        }
        assert_eq!(sources.admit(&repository, one, start), Err(Refused::Rate));
        assert_eq!(sources.admit(&"tools/other".parse().unwrap(), one, start), Ok(()));
        assert_eq!(sources.admit(&repository, sources.source(address(2)), start), Ok(()));
        assert_eq!(sources.admit(&repository, one, start + Duration::from_secs(9)), Err(Refused::Rate));
        assert_eq!(sources.admit(&repository, one, start + Duration::from_secs(11)), Ok(()));
    }

    #[test]
    fn no_source_has_more_than_its_share_of_a_half_life_and_nobody_is_stuck() {
        let (sources, repository, start) = sources(1_000_000);
        let names: Vec<Source> = (0..8).map(|number| sources.source(address(number))).collect();
        // Alone: no limit.
        assert!((0..50).all(|_| sources.admit(&repository, names[0], start).is_ok()));
        let mut taken: Vec<usize> = vec![0; 50];
        let mut random = 1u64;
        for step in 0..4000 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            // One source sends nearly all.
            let who = if random >> 60 < 12 { 0 } else { (random >> 33) as usize % 8 };
            if sources.admit(&repository, names[who], start).is_ok() {
                taken.push(who);
            }
            if taken.len() > 150 {
                let last = &taken[taken.len() - WINDOW..];
                let most = (0..8).map(|who| last.iter().filter(|other| **other == who).count()).max().unwrap();
                assert!(most <= WINDOW / 2, "step {step}: {last:?}");
            }
        }
        let late = &taken[taken.len() - 10 * WINDOW..];
        assert!(late.iter().filter(|who| **who == 0).count() <= late.len() * 3 / 10, "{late:?}");
        // When all others have been silent for long, there is no limit again.
        let later = start + WINDOW_AGE * 2;
        assert!((0..50).all(|_| sources.admit(&repository, names[5], later).is_ok()));
    }

    #[test]
    fn addresses_of_one_network_are_one_source() {
        let (sources, ..) = sources(1);
        let of = |text: &str| sources.source(text.parse().unwrap());
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:2"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_eq!(of("::ffff:10.0.0.1"), of("10.0.0.1"));
        assert_ne!(of("10.0.0.1"), of("10.0.0.2"));
    }

    #[test]
    fn traces_are_held_of_different_sources_in_turn() {
        let (sources, repository, now) = sources(100);
        let (one, other) = (sources.source(address(1)), sources.source(address(2)));
        sources.admit(&repository, one, now).unwrap();
        sources.held(&repository, one, 7);
        assert_eq!((sources.of_held(&repository, 7), sources.of_held(&repository, 8)), (Some(one), None));
        assert!(sources.may_hold(&repository, one), "who is alone is all there is");
        sources.admit(&repository, other, now).unwrap();
        assert!(!sources.may_hold(&repository, one) && sources.may_hold(&repository, other));
    }
}
