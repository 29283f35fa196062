//! How many connections one address has.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::config::CONNECTIONS_PER_ADDRESS;

/// Counts connections by address.
#[derive(Debug)]
pub(super) struct PerAddress {
    /// For all; if `None`, [`CONNECTIONS_PER_ADDRESS`] for all but this machine.
    max: Option<usize>,
    counts: Mutex<HashMap<IpAddr, usize>>,
}

/// A place of an address, until it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    of: Arc<PerAddress>,
    address: IpAddr,
}

impl PerAddress {
    pub(super) fn new(max: Option<usize>) -> Self {
        Self { max, counts: Mutex::default() }
    }

    /// A place for a connection from this address, if it does not have too many.
    pub(super) fn enter(self: &Arc<Self>, address: IpAddr) -> Option<Place> {
        let address = address.to_canonical();
        let max = match self.max {
            Some(max) => max,
            None if address.is_loopback() => usize::MAX,
            None => CONNECTIONS_PER_ADDRESS,
        };
        let mut counts = self.counts.lock();
        let count = counts.entry(address).or_default();
        if *count >= max {
            return None;
        }
        *count += 1;
        Some(Place { of: Arc::clone(self), address })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.of.counts.lock();
        if let Some(count) = counts.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_its_places_and_no_more() {
        let (one, other): (IpAddr, IpAddr) = ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
        let places = Arc::new(PerAddress::new(Some(2)));
        let held: Vec<_> = (0..2).map(|_| places.enter(one).unwrap()).collect();
        assert!(places.enter(one).is_none() && places.enter("::ffff:10.0.0.1".parse().unwrap()).is_none());
        let elsewhere = places.enter(other).unwrap();
        drop(held);
        drop(places.enter(one).unwrap());
        drop(elsewhere);
        assert!(places.counts.lock().is_empty());
        let usual = Arc::new(PerAddress::new(None));
        let local: Vec<_> = (0..=CONNECTIONS_PER_ADDRESS).map(|_| usual.enter("127.0.0.1".parse().unwrap()).unwrap()).collect();
        let far: Vec<_> = (0..CONNECTIONS_PER_ADDRESS).map(|_| usual.enter(one).unwrap()).collect();
        assert!(usual.enter(one).is_none());
        drop((local, far));
    }
}
