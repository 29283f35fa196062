//! The clock by which leases, windows and delays count. Tests move it, and let the database fail after some steps.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use super::now_ms;

/// See the module. Clones are the same clock.
#[derive(Clone, Debug)]
pub(crate) struct Clock(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// Milliseconds ahead of the machine's clock.
    ahead: AtomicI64,
    /// Steps that still succeed.
    steps: AtomicI64,
}

impl Default for Clock {
    fn default() -> Self {
        Self(Arc::new(Inner { ahead: AtomicI64::new(0), steps: AtomicI64::new(i64::MAX) }))
    }
}

impl Clock {
    /// Milliseconds since 1970.
    pub(super) fn now(&self) -> i64 {
        now_ms() + self.0.ahead.load(Ordering::Relaxed)
    }

    /// Takes a step.
    pub(super) fn step(&self) -> Result<(), sqlx::Error> {
        match self.0.steps.load(Ordering::Relaxed) {
            i64::MAX => Ok(()),
            _ if self.0.steps.fetch_sub(1, Ordering::Relaxed) > 0 => Ok(()),
            _ => Err(sqlx::Error::PoolClosed),
        }
    }
}

#[cfg(test)]
impl Clock {
    /// Moves it on.
    pub(crate) fn advance(&self, ms: i64) {
        self.0.ahead.fetch_add(ms, Ordering::Relaxed);
    }

    /// Lets everything fail after this many steps, as if the process had died.
    pub(crate) fn die_after(&self, steps: i64) {
        self.0.steps.store(steps, Ordering::Relaxed);
    }

    /// Whether it died.
    pub(crate) fn is_dead(&self) -> bool {
        self.0.steps.load(Ordering::Relaxed) < 0
    }

    /// Takes a step of another part that dies with the database.
    pub(crate) fn try_step(&self) -> bool {
        self.step().is_ok()
    }
}
