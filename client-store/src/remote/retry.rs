//! Trying again: with growing pauses, and some chance in them so that many clients do not come back at once.

use std::time::Duration;

use crate::origin::OriginError;

/// How often and how soon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Tries in all, at least one.
    pub attempts: u32,
    /// Pause before the second try; it doubles with each.
    pub first_pause: Duration,
    /// Longest pause, unless the registry asks for a longer one.
    pub longest_pause: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self { attempts: 6, first_pause: Duration::from_millis(200), longest_pause: Duration::from_secs(10) }
    }
}

/// Longest pause that a registry can ask for.
const LONGEST_ASKED: Duration = Duration::from_secs(120);

impl RetryPolicy {
    /// The pause after the failed try number `attempt` (from 1): between half of the full pause and all of it, and not
    /// shorter than the registry asks.
    pub fn pause(&self, attempt: u32, error: &OriginError) -> Duration {
        let full = self.first_pause.saturating_mul(1 << attempt.saturating_sub(1).min(16)).min(self.longest_pause);
        let pause = full.mul_f64(0.5 + 0.5 * rand::random::<f64>());
        match error {
            OriginError::Busy { retry_after: Some(asked), .. } => pause.max((*asked).min(LONGEST_ASKED)),
            _ => pause,
        }
    }

    /// Runs `call` until it succeeds, fails for good, or was tried often enough.
    ///
    /// # Errors
    /// The last error.
    pub async fn run<T, F: Future<Output = Result<T, OriginError>>>(&self, mut call: impl FnMut() -> F) -> Result<T, OriginError> {
        let mut attempt = 1;
        loop {
            match call().await {
                Err(error) if error.is_retryable() && attempt < self.attempts => {
                    let pause = self.pause(attempt, &error);
                    tracing::debug!(%error, attempt, ?pause, "trying again");
                    tokio::time::sleep(pause).await;
                    attempt += 1;
                }
                done => return done,
            }
        }
    }
}
