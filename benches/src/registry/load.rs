//! A load: so many clients at once, each asking again as soon as it is answered, until so many requests were made.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::Serialize;
use tokio::task::JoinSet;

use super::oci::{OciClient, Taken};

/// What a load showed.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Load {
    pub(crate) requests: usize,
    /// From the first request to the last answer.
    pub(crate) seconds: f64,
    pub(crate) bytes: u64,
    /// Milliseconds from request to end of the answer.
    pub(crate) p50_ms: f64,
    pub(crate) p75_ms: f64,
    pub(crate) p90_ms: f64,
    pub(crate) p99_ms: f64,
    /// Milliseconds to the first byte, the median.
    pub(crate) first_byte_ms: f64,
}

impl Load {
    /// Requests a second.
    pub(crate) fn rate(&self) -> f64 {
        self.requests as f64 / self.seconds
    }
}

/// Makes `requests` requests by `clients` clients. `ask` is given a client of its own and the request's number.
pub(crate) async fn run<F, Asking>(address: &str, clients: usize, requests: usize, ask: F) -> Result<Load>
where
    F: Fn(OciClient, usize) -> Asking + Clone + Send + 'static,
    Asking: Future<Output = Result<Taken>> + Send + 'static,
{
    let next = Arc::new(AtomicUsize::new(0));
    let mut tasks = JoinSet::new();
    let start = Instant::now();
    for _ in 0..clients.min(requests) {
        let (client, next, ask) = (OciClient::new(address)?, Arc::clone(&next), ask.clone());
        tasks.spawn(async move {
            let mut answers: Vec<(Duration, Taken)> = Vec::new();
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= requests {
                    return Ok::<_, anyhow::Error>(answers);
                }
                let begun = Instant::now();
                let taken = ask(client.clone(), number).await?;
                answers.push((begun.elapsed(), taken));
            }
        });
    }
    let mut answers = Vec::with_capacity(requests);
    while let Some(task) = tasks.join_next().await {
        answers.extend(task.context("a client is gone")??);
    }
    let seconds = start.elapsed().as_secs_f64();
    let sorted = |value: &dyn Fn(&(Duration, Taken)) -> Duration| {
        let mut values: Vec<f64> = answers.iter().map(|answer| value(answer).as_secs_f64() * 1e3).collect();
        values.sort_by(f64::total_cmp);
        values
    };
    let (whole, first) = (sorted(&|answer| answer.0), sorted(&|answer| answer.1.first_byte));
    let at = |values: &[f64], hundredth: usize| values.get((values.len() * hundredth / 100).min(values.len().saturating_sub(1))).copied().unwrap_or(f64::NAN);
    Ok(Load {
        requests,
        seconds,
        bytes: answers.iter().map(|(_, taken)| taken.bytes).sum(),
        p50_ms: at(&whole, 50),
        p75_ms: at(&whole, 75),
        p90_ms: at(&whole, 90),
        p99_ms: at(&whole, 99),
        first_byte_ms: at(&first, 50),
    })
}
