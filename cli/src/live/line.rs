//! The words of the line.

use std::collections::VecDeque;
use std::time::Duration;

use client_store::timeline::{Snapshot, Waiting};
use layer_format::recording::Class;

use crate::output::bytes;

/// Over how long the rate is taken.
const WINDOW: Duration = Duration::from_secs(1);
/// Longest part of a path.
const MAX_PATH: usize = 60;

/// Bytes a second, of late.
#[derive(Debug, Default)]
pub struct Rate(VecDeque<(Duration, u64)>);

impl Rate {
    /// So many bytes came until `now`.
    pub fn add(&mut self, now: Duration, received: u64) -> u64 {
        while self.0.len() > 1 && self.0.front().is_some_and(|(then, _)| now.saturating_sub(*then) > WINDOW) {
            self.0.pop_front();
        }
        let rate = self.0.front().map_or(0.0, |(then, before)| {
            let seconds = now.saturating_sub(*then).as_secs_f64();
            if seconds > 0.0 { received.saturating_sub(*before) as f64 / seconds } else { 0.0 }
        });
        self.0.push_back((now, received));
        rate as u64
    }
}

/// What goes on: `turbo: 1.2 s, waiting 0.4 s for /usr/lib/libx.so, 12.3 MB at 4.10 MB/s, 97 % in time, 120 queued`.
pub fn status(now: &Snapshot, rate: u64) -> String {
    let mut parts = vec![format!("{:.1} s", now.elapsed.as_secs_f64())];
    if let Some(Waiting { path, elapsed }) = &now.waiting {
        let what = path.as_ref().map_or_else(|| "the image".to_owned(), |path| end_of(&vm::printable(&path.to_string())));
        parts.push(format!("waiting {:.1} s for {what}", elapsed.as_secs_f64()));
    }
    let background = now.of(Class::Background);
    let launch = now.received_bytes() - background;
    if launch > 0 {
        parts.push(format!("{} at {}/s", bytes(launch), bytes(rate)));
    }
    if let Some(rate) = now.hit_rate() {
        parts.push(format!("{:.0} % in time", (rate * 100.0).floor()));
    }
    if now.prefetches > 0 {
        parts.push(format!("{} queued", now.prefetches));
    }
    if background > 0 {
        parts.push(format!("{} completed", bytes(background)));
    }
    format!("turbo: {}", parts.join(", "))
}

/// The end of a path, which tells more than its start.
fn end_of(text: &str) -> String {
    let count = text.chars().count();
    if count <= MAX_PATH { text.to_owned() } else { format!("...{}", text.chars().skip(count - MAX_PATH + 3).collect::<String>()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use layer_format::LayerPath;

    #[test]
    fn the_line_says_what_there_is_to_say_and_obeys_no_path() {
        let mut now = Snapshot { elapsed: Duration::from_millis(1240), ..Snapshot::default() };
        assert_eq!(status(&now, 0), "turbo: 1.2 s");
        now.waiting = Some(Waiting { path: None, elapsed: Duration::from_millis(400) });
        assert_eq!(status(&now, 0), "turbo: 1.2 s, waiting 0.4 s for the image");
        let path = LayerPath::new(format!("{}/\u{1b}[2Jx.so", "long".repeat(30))).unwrap();
        now.waiting = Some(Waiting { path: Some(path), elapsed: Duration::from_millis(400) });
        (now.received, now.touches, now.prefetches) = ([12_000_000, 300_000, 0, 5_000_000], [10, 87, 3], 120);
        let line = status(&now, 4_100_000);
        assert!(line.ends_with("\\u{1b}[2Jx.so, 12.3 MB at 4.10 MB/s, 97 % in time, 120 queued, 5.00 MB completed"), "{line}");
        assert!(line.contains("waiting 0.4 s for ...long") || line.contains("for ...ong") || line.contains("for ...g"), "{line}");
        assert!(!line.contains('\u{1b}') && line.len() < 200);
    }

    #[test]
    fn the_rate_is_that_of_the_last_second() {
        let mut rate = Rate::default();
        assert_eq!(rate.add(Duration::ZERO, 0), 0);
        assert_eq!(rate.add(Duration::from_millis(500), 1000), 2000);
        for tenth in 6..40 {
            rate.add(Duration::from_millis(tenth * 100), 1000);
        }
        assert_eq!(rate.add(Duration::from_secs(4), 1000), 0, "what came long ago does not count");
    }
}
