//! How often someone may fail to log in: a bucket for each address, for each name, and for each name at an address, so that
//! neither one address can guess many passwords, nor many addresses one; and who fails elsewhere locks no one out for long.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Buckets that are kept, of each kind; the fullest are forgotten first.
const MAX_BUCKETS: usize = 1 << 14;
/// Longest name that is told apart.
const MAX_NAME_LEN: usize = 64;

/// How many failures are taken, and after which time one more.
#[derive(Clone, Copy, Debug)]
pub struct LoginLimit {
    /// At once.
    pub burst: u32,
    /// After which time one more.
    pub interval: Duration,
}

/// How often logins may fail.
#[derive(Clone, Copy, Debug)]
pub struct LoginLimits {
    /// From one address.
    pub address: LoginLimit,
    /// With one name, from anywhere.
    pub name: LoginLimit,
    /// With one name from one address.
    pub pair: LoginLimit,
}

impl Default for LoginLimits {
    fn default() -> Self {
        let limit = |burst, seconds| LoginLimit { burst, interval: Duration::from_secs(seconds) };
        Self { address: limit(60, 2), name: limit(120, 2), pair: limit(10, 6) }
    }
}

/// Failures, as the moment at which all of them will be forgotten (the generic cell rate algorithm).
#[derive(Debug)]
struct Buckets<K> {
    limit: LoginLimit,
    empty_at: HashMap<K, Instant>,
}

impl<K: Eq + Hash + Clone> Buckets<K> {
    fn new(limit: LoginLimit) -> Self {
        Self { limit, empty_at: HashMap::new() }
    }

    /// How long to wait before the next attempt; nothing if it may come now.
    fn wait(&self, key: &K, now: Instant) -> Duration {
        let full = self.limit.interval.saturating_mul(self.limit.burst);
        let level = self.empty_at.get(key).map_or(Duration::ZERO, |empty_at| empty_at.saturating_duration_since(now));
        // One more failure must fit.
        (level + self.limit.interval).saturating_sub(full)
    }

    fn fail(&mut self, key: K, now: Instant) {
        if self.empty_at.len() >= MAX_BUCKETS && !self.empty_at.contains_key(&key) {
            self.empty_at.retain(|_, empty_at| *empty_at > now);
            while self.empty_at.len() >= MAX_BUCKETS {
                // Whoever failed least is forgotten: a flood of new keys does not wash out those who insist.
                let Some(least) = self.empty_at.iter().min_by_key(|(_, empty_at)| **empty_at).map(|(key, _)| key.clone()) else { break };
                self.empty_at.remove(&least);
            }
        }
        let empty_at = self.empty_at.entry(key).or_insert(now);
        *empty_at = (*empty_at).max(now) + self.limit.interval;
    }
}

/// By address, by name, and by both.
type AllBuckets = (Buckets<IpAddr>, Buckets<String>, Buckets<(IpAddr, String)>);

/// See the module.
#[derive(Debug)]
pub(crate) struct Limiter {
    buckets: Mutex<AllBuckets>,
}

impl Limiter {
    pub(crate) fn new(limits: LoginLimits) -> Self {
        Self { buckets: Mutex::new((Buckets::new(limits.address), Buckets::new(limits.name), Buckets::new(limits.pair))) }
    }

    /// Whether there may be an attempt now; else how long to wait.
    pub(crate) fn check(&self, address: IpAddr, name: &str, now: Instant) -> Result<(), Duration> {
        let (address, name) = (network(address), clip(name));
        let buckets = self.buckets.lock();
        let wait = buckets.0.wait(&address, now).max(buckets.1.wait(&name, now)).max(buckets.2.wait(&(address, name), now));
        if wait.is_zero() { Ok(()) } else { Err(wait) }
    }

    /// Notes a failure.
    pub(crate) fn fail(&self, address: IpAddr, name: &str, now: Instant) {
        let (address, name) = (network(address), clip(name));
        let mut buckets = self.buckets.lock();
        buckets.0.fail(address, now);
        buckets.1.fail(name.clone(), now);
        buckets.2.fail((address, name), now);
    }
}

/// What of an address counts: of version 6 the network, since whoever has one has all of it.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => IpAddr::V4(address),
        IpAddr::V6(address) => IpAddr::V6((u128::from(address) >> 64 << 64).into()),
    }
}

fn clip(name: &str) -> String {
    name.chars().take(MAX_NAME_LEN).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limiter() -> Limiter {
        let limit = |burst, seconds| LoginLimit { burst, interval: Duration::from_secs(seconds) };
        Limiter::new(LoginLimits { address: limit(20, 2), name: limit(40, 2), pair: limit(3, 10) })
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_name_at_an_address_is_slowed_down_and_others_are_not() {
        let (limiter, now) = (limiter(), Instant::now());
        for _ in 0..3 {
            assert_eq!(limiter.check(ip("10.0.0.1"), "alice", now), Ok(()));
            limiter.fail(ip("10.0.0.1"), "alice", now);
        }
        assert_eq!(limiter.check(ip("10.0.0.1"), "alice", now), Err(Duration::from_secs(10)));
        assert_eq!(limiter.check(ip("10.0.0.1"), "bob", now), Ok(()));
        assert_eq!(limiter.check(ip("10.0.0.2"), "alice", now), Ok(()));
        assert_eq!(limiter.check(ip("10.0.0.1"), "alice", now + Duration::from_secs(10)), Ok(()));
    }

    #[test]
    fn an_address_cannot_try_many_names_nor_many_addresses_one() {
        let (one, now) = (limiter(), Instant::now());
        for n in 0..20 {
            one.fail(ip("2001:db8::1"), &format!("user{n}"), now);
        }
        assert!(one.check(ip("2001:db8::2"), "fresh", now).is_err(), "the same network");
        assert!(one.check(ip("2001:db8:1::2"), "fresh", now).is_ok());
        let many = limiter();
        for n in 0..40 {
            many.fail(ip(&format!("10.0.{n}.1")), "alice", now);
        }
        assert!(many.check(ip("10.9.9.9"), "alice", now).is_err());
    }

    #[test]
    fn memory_is_bounded_and_who_insists_is_remembered() {
        let (limiter, now) = (limiter(), Instant::now());
        for _ in 0..3 {
            limiter.fail(ip("10.0.0.1"), "alice", now);
        }
        for n in 0..(MAX_BUCKETS as u32 + 50) {
            limiter.fail(IpAddr::V4((0x0b00_0000 + n).into()), &format!("u{n}"), now);
        }
        let buckets = limiter.buckets.lock();
        assert!(buckets.0.empty_at.len() <= MAX_BUCKETS && buckets.2.empty_at.len() <= MAX_BUCKETS);
        drop(buckets);
        assert!(limiter.check(ip("10.0.0.1"), "alice", now).is_err());
    }
}
