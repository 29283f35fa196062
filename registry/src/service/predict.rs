//! The one place that calls the `predictor` crate for launches: what to send, and how much of it.

use std::sync::Arc;

use layer_format::model::Model;
use layer_format::trace::{BUCKET_LEN, Touch};
use layer_format::{Digest, FormatError, LayerPath};
use lru::LruCache;
use parking_lot::Mutex;
use predictor::launch::Predicted;

use crate::db::held_trace::Used;

/// Parsed models that are kept: some MiB each at most.
const KEPT: std::num::NonZeroUsize = std::num::NonZeroUsize::new(16).unwrap();
/// Of what a launch uses, as much may be sent in vain: a fifth.
const WASTE_PART: u64 = 5;
/// What may always be expected to be in vain, in buckets: small launches are not worth counting.
const FREE_WASTE: u64 = (4 << 20) / BUCKET_LEN;
/// How much more than usual a launch list may be, at least, in bytes.
const FREE_BYTES: u64 = 1 << 20;
/// Most bytes that are sent ahead as long as too few traces were held out to know what is usual.
const UNKNOWN_BYTES: u64 = 256 << 20;

/// Something that a launch will probably touch.
#[derive(Clone, Debug)]
pub(crate) struct Expected {
    pub(crate) layer: u8,
    pub(crate) path: LayerPath,
    pub(crate) touch: Touch,
    /// `0.0..=1.0`.
    pub(crate) probability: f32,
}

/// How much may be sent ahead: what launches usually use, and the waste budget. So a model that names all of an image,
/// by accident or because someone made it up, costs others no more than that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Allowance {
    touches: u64,
    /// Bytes of objects.
    pub(crate) bytes: u64,
}

impl Allowance {
    /// `usual`: what launches use; `None` if that is not known.
    pub(crate) fn new(usual: Option<Used>) -> Self {
        match usual {
            None => Self { touches: UNKNOWN_BYTES / BUCKET_LEN, bytes: UNKNOWN_BYTES },
            Some(used) => Self {
                touches: used.touches.saturating_add((used.touches / WASTE_PART).max(FREE_BYTES / BUCKET_LEN)),
                bytes: used.bytes.saturating_add((used.bytes / WASTE_PART).max(FREE_BYTES)),
            },
        }
    }
}

/// Parsed models, by digest.
#[derive(Debug)]
pub(crate) struct Models {
    parsed: Mutex<LruCache<Digest, Arc<Model>>>,
}

impl Default for Models {
    fn default() -> Self {
        Self { parsed: Mutex::new(LruCache::new(KEPT)) }
    }
}

impl Models {
    /// What a launch will touch, in the order in which it should be sent. Takes a while: not for an async thread.
    pub(crate) fn launch_list(
        &self,
        digest: Digest,
        bytes: &[u8],
        entry_point: Option<&str>,
        architecture: &str,
        allowance: &Allowance,
    ) -> Result<Vec<Expected>, FormatError> {
        let cached = self.parsed.lock().get(&digest).cloned();
        let model = match cached {
            Some(model) => model,
            None => {
                let model = Arc::new(Model::decode(bytes)?);
                self.parsed.lock().put(digest, Arc::clone(&model));
                model
            }
        };
        let predicted = within(predictor::launch_list(&model, entry_point, architecture), allowance);
        Ok(predicted.into_iter().map(|item| Expected { layer: item.layer, path: item.path, touch: item.touch, probability: item.probability }).collect())
    }
}

/// The likeliest items, in the order that they came in: as many as the allowance has, and as long as what is expected to
/// be in vain stays within the waste budget.
fn within(list: Vec<Predicted>, allowance: &Allowance) -> Vec<Predicted> {
    let mut likeliest: Vec<usize> = (0..list.len()).collect();
    likeliest.sort_by(|a, b| list[*b].probability.total_cmp(&list[*a].probability).then(a.cmp(b)));
    let mut taken = vec![false; list.len()];
    let (mut useful, mut wasted) = (0f64, 0f64);
    for at in likeliest.into_iter().take(usize::try_from(allowance.touches).unwrap_or(usize::MAX)) {
        let probability = f64::from(list[at].probability);
        useful += probability;
        wasted += 1.0 - probability;
        if wasted > (useful / WASTE_PART as f64).max(FREE_WASTE as f64) {
            break;
        }
        taken[at] = true;
    }
    list.into_iter().zip(taken).filter(|(_, taken)| *taken).map(|(item, _)| item).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(parts: &[(u64, f32)]) -> Vec<Predicted> {
        let items = parts.iter().flat_map(|(count, probability)| (0..*count).map(move |bucket| (*probability, bucket)));
        items
            .map(|(probability, bucket)| Predicted {
                layer: 0,
                path: LayerPath::new(format!("p{probability}")).unwrap(),
                touch: Touch::Data { bucket: bucket as u32 },
                probability,
                time_us: 0,
            })
            .collect()
    }

    fn count(list: &[Predicted], probability: f32) -> u64 {
        list.iter().filter(|item| item.probability == probability).count() as u64
    }

    #[test]
    fn what_is_sent_in_vain_stays_within_the_budget_and_what_is_sure_is_sent() {
        let unknown = Allowance::new(None);
        // Unlikely items that come first do not displace sure ones.
        let kept = within(list(&[(50_000, 0.25), (5000, 1.0)]), &unknown);
        assert_eq!(count(&kept, 1.0), 5000);
        let wasted = count(&kept, 0.25);
        assert!((1000..1500).contains(&wasted), "{wasted}");
        assert!(kept[0].probability == 0.25, "the order stays");
        // With what is usual known the sum is bounded, too: even if all of it were sure to come.
        let usual = Allowance::new(Some(Used { touches: 5000, bytes: 80 << 20 }));
        assert_eq!(within(list(&[(50_000, 0.25), (5000, 1.0)]), &usual).len(), 6000);
        assert_eq!(within(list(&[(50_000, 0.99), (5000, 1.0)]), &usual).len(), 6000);
        assert_eq!(usual.bytes, 96 << 20);
        assert_eq!(within(list(&[(50_000, 1.0)]), &unknown).len() as u64 * BUCKET_LEN, UNKNOWN_BYTES);
        // A small launch with branches is sent whole.
        assert_eq!(within(list(&[(200, 0.3), (100, 1.0)]), &unknown).len(), 300);
    }
}
