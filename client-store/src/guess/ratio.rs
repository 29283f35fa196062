//! How often guesses were right in this run, by where and on what ground they were made.

use std::collections::HashMap;
use std::hash::Hash;

/// Right and all guesses that were judged.
#[derive(Clone, Copy, Debug, Default)]
struct Count {
    right: f32,
    all: f32,
}

/// Hit ratios of many kinds of guesses. What is not known yet counts as the prior.
#[derive(Debug)]
pub(crate) struct Ratios<K> {
    counts: HashMap<K, Count>,
    /// As how many guesses the prior counts.
    weight: f32,
}

/// Most kinds.
const MAX_KINDS: usize = 1 << 16;

impl<K: Eq + Hash> Ratios<K> {
    pub(crate) fn new(weight: f32) -> Self {
        Self { counts: HashMap::new(), weight }
    }

    /// A guess of this kind was right, or not so far.
    pub(crate) fn add(&mut self, kind: K, right: bool) {
        if self.counts.len() < MAX_KINDS || self.counts.contains_key(&kind) {
            let count = self.counts.entry(kind).or_default();
            count.all += 1.0;
            count.right += f32::from(u8::from(right));
        }
    }

    /// A guess that counted as wrong turned out right.
    pub(crate) fn was_right(&mut self, kind: &K) {
        if let Some(count) = self.counts.get_mut(kind) {
            count.right = (count.right + 1.0).min(count.all);
        }
    }

    /// The share of right guesses.
    pub(crate) fn get(&self, kind: &K, prior: f32) -> f32 {
        let count = self.counts.get(kind).copied().unwrap_or_default();
        (count.right + self.weight * prior) / (count.all + self.weight)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prior_gives_way_to_what_is_seen() {
        let mut ratios = Ratios::new(4.0);
        assert_eq!(ratios.get(&"a", 0.5), 0.5);
        (0..20).for_each(|_| ratios.add("a", false));
        assert!(ratios.get(&"a", 0.5) < 0.1);
        (0..30).for_each(|_| ratios.was_right(&"a"));
        assert!((0.9..=1.0).contains(&ratios.get(&"a", 0.5)));
        assert_eq!(ratios.get(&"b", 0.3), 0.3);
    }
}
