//! The one place that calls the `predictor` crate.

use std::sync::Arc;

use layer_format::model::Model;
use layer_format::trace::{Touch, Trace};
use layer_format::{Digest, FormatError, LayerPath};
use lru::LruCache;
use parking_lot::Mutex;

/// Parsed models that are kept: some MiB each at most.
const KEPT: std::num::NonZeroUsize = std::num::NonZeroUsize::new(16).unwrap();

/// Something that a launch will probably touch.
#[derive(Clone, Debug)]
pub(crate) struct Expected {
    pub(crate) layer: u8,
    pub(crate) path: LayerPath,
    pub(crate) touch: Touch,
    /// `0.0..=1.0`.
    pub(crate) probability: f32,
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
    pub(crate) fn launch_list(&self, digest: Digest, bytes: &[u8], entry_point: Option<&str>, architecture: &str) -> Result<Vec<Expected>, FormatError> {
        let cached = self.parsed.lock().get(&digest).cloned();
        let model = match cached {
            Some(model) => model,
            None => {
                let model = Arc::new(Model::decode(bytes)?);
                self.parsed.lock().put(digest, Arc::clone(&model));
                model
            }
        };
        let predicted = predictor::launch_list(&model, entry_point, architecture);
        Ok(predicted.into_iter().map(|item| Expected { layer: item.layer, path: item.path, touch: item.touch, probability: item.probability }).collect())
    }
}

/// Merges a trace into a model, or begins one. Takes a while.
pub(crate) fn learn(model: Option<&[u8]>, trace: &Trace) -> Vec<u8> {
    let mut model = match model.map(Model::decode) {
        Some(Ok(model)) => model,
        None => Model::default(),
        Some(Err(error)) => {
            tracing::error!(%error, "a stored model is damaged: beginning a new one");
            Model::default()
        }
    };
    predictor::learn(&mut model, trace, &predictor::Params::default());
    model.encode()
}
