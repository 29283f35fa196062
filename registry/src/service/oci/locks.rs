//! A lock for each key that anyone holds or waits for.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::OwnedMutexGuard;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct KeyLocks(Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>);

impl KeyLocks {
    /// Waits until no one else holds the key.
    pub(super) async fn lock(&self, key: &str) -> OwnedMutexGuard<()> {
        let lock = {
            let mut locks = self.0.lock();
            // Those that no one holds or waits for are only in this map.
            locks.retain(|_, lock| Arc::strong_count(lock) > 1);
            Arc::clone(locks.entry(key.to_owned()).or_default())
        };
        lock.lock_owned().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_holder_a_key_and_nothing_stays() {
        let locks = KeyLocks::default();
        let held = locks.lock("a").await;
        let other = locks.lock("b").await;
        let waiting = locks.lock("a");
        tokio::pin!(waiting);
        assert!(futures::poll!(waiting.as_mut()).is_pending());
        drop((held, other));
        drop(waiting.await);
        drop(locks.lock("c").await);
        assert_eq!(locks.0.lock().len(), 1);
    }
}
