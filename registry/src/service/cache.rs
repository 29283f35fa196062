//! An LRU bounded in bytes whose values are loaded once: requests that want the same value at the same time wait for
//! one load. A failed load is not remembered. Since others wait, whoever loads must be polled until it is done.

use std::hash::Hash;
use std::sync::Arc;

use lru::LruCache;
use parking_lot::Mutex;
use tokio::sync::OnceCell;

/// Most values, whatever their size: each takes some memory of its own.
const MAX_VALUES: usize = 1 << 18;

#[derive(Debug)]
struct Slot<V> {
    cell: Arc<OnceCell<Arc<V>>>,
    /// 0 until it is loaded.
    bytes: u64,
}

#[derive(Debug)]
struct Slots<K: Hash + Eq, V> {
    lru: LruCache<K, Slot<V>>,
    bytes: u64,
}

/// The cache.
#[derive(Debug)]
pub(crate) struct SharedLru<K: Hash + Eq, V> {
    slots: Mutex<Slots<K, V>>,
    max_bytes: u64,
}

impl<K: Hash + Eq + Copy, V> SharedLru<K, V> {
    /// An empty cache of at most `max_bytes`, as `weigh` counts them.
    pub(crate) fn new(max_bytes: u64) -> Self {
        Self { slots: Mutex::new(Slots { lru: LruCache::unbounded(), bytes: 0 }), max_bytes }
    }

    /// The value of `key`, if it is there.
    pub(crate) fn get(&self, key: &K) -> Option<Arc<V>> {
        self.slots.lock().lru.get(key).and_then(|slot| slot.cell.get().cloned())
    }

    /// The value of `key`, loaded if it is not there.
    pub(crate) async fn get_or_load<E>(&self, key: K, weigh: impl FnOnce(&V) -> u64, load: impl Future<Output = Result<V, E>>) -> Result<Arc<V>, E> {
        let cell = Arc::clone(&self.slots.lock().lru.get_or_insert(key, || Slot { cell: Arc::default(), bytes: 0 }).cell);
        if let Some(value) = cell.get() {
            return Ok(Arc::clone(value));
        }
        let loaded = cell.get_or_try_init(|| async { load.await.map(Arc::new) }).await;
        let mut slots = self.slots.lock();
        match loaded {
            Ok(value) => {
                slots.keep(&key, &cell, weigh(value).max(1), self.max_bytes);
                Ok(Arc::clone(value))
            }
            Err(error) => {
                if slots.lru.peek(&key).is_some_and(|slot| Arc::ptr_eq(&slot.cell, &cell) && !cell.initialized()) {
                    slots.lru.pop(&key);
                }
                Err(error)
            }
        }
    }

    /// Bytes of all values.
    pub(crate) fn bytes(&self) -> u64 {
        self.slots.lock().bytes
    }
}

impl<K: Hash + Eq, V> Slots<K, V> {
    /// Accounts for a loaded value, once, and forgets the ones used longest ago.
    fn keep(&mut self, key: &K, cell: &Arc<OnceCell<Arc<V>>>, bytes: u64, max_bytes: u64) {
        if let Some(slot) = self.lru.peek_mut(key)
            && Arc::ptr_eq(&slot.cell, cell)
            && slot.bytes == 0
        {
            slot.bytes = bytes;
            self.bytes += bytes;
        }
        while self.bytes > max_bytes || self.lru.len() > MAX_VALUES {
            let Some((_, evicted)) = self.lru.pop_lru() else { break };
            self.bytes -= evicted.bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[tokio::test]
    async fn ten_requests_make_one_load_and_a_failure_is_not_remembered() {
        let cache = SharedLru::<u32, u32>::new(100);
        let loads = AtomicUsize::new(0);
        let get = |key| {
            cache.get_or_load(key, |_| 40, async {
                tokio::task::yield_now().await;
                match loads.fetch_add(1, Ordering::Relaxed) {
                    0 => Err("down"),
                    _ => Ok(7),
                }
            })
        };
        assert_eq!(get(1).await, Err("down"));
        let all = futures::future::join_all((0..10).map(|_| get(1))).await;
        assert!(all.iter().all(|value| value.as_deref() == Ok(&7)));
        assert_eq!(loads.load(Ordering::Relaxed), 2);
        get(2).await.unwrap();
        get(3).await.unwrap();
        assert_eq!(cache.bytes(), 80, "the oldest value made room");
        get(1).await.unwrap();
        assert_eq!(loads.load(Ordering::Relaxed), 5);
    }
}
