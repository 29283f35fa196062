//! One trace into the models of its image.
//!
//! Each image has a model that launches get (*served*) and maybe one that learned more and did not do better so far (the
//! *candidate*, served to no one). Every fourth trace of an entry point is held out: no model learns it until it leaves
//! the reservoir. Any other goes into the candidate, or a copy of the served model; the result is served if it does
//! not worse on the held-out traces of its image ([`super::gate`]). A candidate that loses [`MAX_LOST_ROUNDS`] times is dropped:
//! learning starts from the served model again.
//!
//! All that a step changes becomes visible in one transaction; a crash loses the step.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use layer_format::Digest;
use layer_format::manifest::{ImageManifest, Manifest};
use layer_format::model::Model;
use layer_format::reference::Repository;
use layer_format::trace::Trace;

use super::frames::ReadError;
use super::gate::{Verdict, judge};
use super::image::Image;
use super::nodes::Nodes;
use super::objects::Objects;
use super::plausible::{layers_of, plausible};
use super::resolve::Layers;
use super::sources::{Source, Sources};
use crate::db::held_trace::{HeldTrace, NewHeldTrace, Used, held_trace_delete, held_trace_insert, held_trace_list, held_trace_overflow, held_trace_used};
use crate::db::image_model::{ImageModel, image_model_get, image_model_served, image_model_set};
use crate::db::manifest::{manifest_get, manifest_newest};
use crate::db::model::{model_get, model_put};
use crate::db::repository::{RepositoryRow, repository_find, repository_lock, repository_set_model};
use crate::db::trace_statistics::{trace_statistics_accepted, trace_statistics_add, trace_statistics_set_usual};
use crate::db::{Connection, DbError, commit};
use crate::metrics::Metrics;

/// Of so many traces of an entry point one is held out: the second, so that the third is judged already.
const HELD_OF: u64 = 4;
/// Traces that a repository holds, and their bytes.
const MAX_HELD: usize = 16;
const MAX_HELD_BYTES: usize = 8 << 20;
/// Held traces by which models are compared: the newest of the image.
const JUDGES: u32 = 8;
/// So many held traces of an entry point are needed to say what is usual.
const MIN_USUAL: usize = 2;
/// After so many lost rounds a candidate is dropped.
const MAX_LOST_ROUNDS: u32 = 8;
/// How often a step is tried when another replica was faster.
const ATTEMPTS: usize = 5;

/// What learning needs.
#[derive(Clone, Debug)]
pub(crate) struct Learner {
    pub(crate) objects: Objects,
    pub(crate) nodes: Arc<Nodes>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) sources: Arc<Sources>,
}

/// What became of a trace.
enum Step {
    Learned,
    /// Its image is not there any more.
    Gone,
    /// Another replica changed what was read.
    Again,
}

impl Learner {
    /// Takes a trace of an image: holds it out, or learns it.
    pub(crate) async fn take(&self, repository: &Repository, image: &Image, trace: &Trace, source: Source) -> Result<(), ReadError> {
        let Ok(manifest) = ImageManifest::decode(&image.bytes) else { return Ok(()) };
        let layers = layers_of(&self.nodes, image.repository.namespace, &manifest).await?;
        let trace = plausible(&layers, &manifest, trace).await?;
        if trace.events.is_empty() {
            self.metrics.trace_refused("implausible");
            return Ok(());
        }
        // Where all is local the kernel reads ahead further than it would on a launch that streams: such a run teaches more
        // than is needed, and so only those who know nothing.
        if trace.events.iter().all(|event| event.source == layer_format::trace::Source::Local) && self.is_served(image).await? {
            self.metrics.trace_refused("local");
            return Ok(());
        }
        let accepted = {
            let mut db = self.objects.db.read().await?;
            trace_statistics_accepted(&mut db, image.repository.id, &trace.entry_point, &trace.architecture).await?
        };
        if accepted % HELD_OF != 1 || !self.sources.may_hold(repository, source) {
            return self.learn(repository, &image.digest, trace, true).await;
        }
        let used = used(&self.objects, &layers, &trace).await?;
        for left in self.hold(repository, image, &trace, used, source).await? {
            if let Ok(trace) = Trace::decode(&left.bytes) {
                self.learn(repository, &left.image, trace, false).await?;
            }
        }
        Ok(())
    }

    /// Whether launches of the image get a model already.
    async fn is_served(&self, image: &Image) -> Result<bool, DbError> {
        let mut db = self.objects.db.read().await?;
        Ok(image_model_served(&mut db, image.repository.id, &image.digest).await?.is_some())
    }

    /// Holds a trace out. Gives those that had to make room for it.
    async fn hold(&self, repository: &Repository, image: &Image, trace: &Trace, used: Used, source: Source) -> Result<Vec<HeldTrace>, DbError> {
        let (row, image, bytes) = (&image.repository, &image.digest, trace.encode());
        let (entry_point, architecture) = (trace.entry_point.as_str(), trace.architecture.as_str());
        let mut transaction = self.objects.db.begin().await?;
        repository_lock(&mut transaction, row.id).await?;
        let new = NewHeldTrace { image, entry_point, architecture, bytes: &bytes, used };
        let number = held_trace_insert(&mut transaction, row.id, &new).await?;
        self.sources.held(repository, source, number);
        let mut left = held_trace_overflow(&mut transaction, row.id, MAX_HELD, MAX_HELD_BYTES).await?;
        for held in &left {
            held_trace_delete(&mut transaction, held.id).await?;
        }
        trace_statistics_add(&mut transaction, row.id, entry_point, architecture, trace.events.len()).await?;
        let all = held_trace_used(&mut transaction, row.id, entry_point, architecture).await?;
        let usual = usual(all.into_iter().map(|(number, used)| (self.sources.of_held(repository, number), used)));
        trace_statistics_set_usual(&mut transaction, row.id, entry_point, architecture, usual).await?;
        commit(transaction).await?;
        self.metrics.traces_held.fetch_add(1, Ordering::Relaxed);
        // Oldest first.
        left.reverse();
        Ok(left)
    }

    /// Learns a trace. `is_new`: it was not counted yet.
    async fn learn(&self, repository: &Repository, image: &Digest, trace: Trace, is_new: bool) -> Result<(), ReadError> {
        let trace = Arc::new(trace);
        for _ in 0..ATTEMPTS {
            let row = {
                let mut db = self.objects.db.read().await?;
                repository_find(&mut db, repository).await?
            };
            let Some(row) = row else { return Ok(()) };
            match self.learn_once(repository, &row, image, &trace, is_new).await? {
                Step::Learned => {
                    self.metrics.traces_merged.fetch_add(1, Ordering::Relaxed);
                    return Ok(());
                }
                Step::Gone => return Ok(()),
                Step::Again => {}
            }
        }
        tracing::warn!(repository = repository.as_str(), "gave up merging a trace: others change the model all the time");
        Ok(())
    }

    async fn learn_once(&self, repository: &Repository, row: &RepositoryRow, image: &Digest, trace: &Arc<Trace>, is_new: bool) -> Result<Step, ReadError> {
        let Some(mut models) = self.models_of(row, image).await? else { return Ok(Step::Gone) };
        let (served, held) = {
            let mut db = self.objects.db.read().await?;
            let served = match &models.served {
                Some(digest) => model_get(&mut db, row.id, digest).await?,
                None => None,
            };
            (served, held_trace_list(&mut db, row.id, image, JUDGES).await?)
        };
        let mut by_source: BTreeMap<Option<Source>, Vec<Vec<u8>>> = BTreeMap::new();
        for (number, bytes) in held {
            by_source.entry(self.sources.of_held(repository, number)).or_default().push(bytes);
        }
        let held: Vec<Vec<Vec<u8>>> = by_source.into_values().collect();
        let (candidate, for_task) = (models.candidate.take(), Arc::clone(trace));
        let learned = tokio::task::spawn_blocking(move || merge(served.as_deref(), candidate.as_deref(), &for_task, &held));
        let (bytes, verdict) = learned.await.map_err(|_| ReadError::Cancelled)?;
        let passes = verdict.is_none_or(|verdict| verdict.passes());
        let mut transaction = self.objects.db.begin().await?;
        repository_lock(&mut transaction, row.id).await?;
        if passes {
            let digest = Digest::of(&bytes);
            model_put(&mut transaction, row.id, &digest, &bytes).await?;
            (models.served, models.lost_rounds) = (Some(digest), 0);
            if !follow_newest(&mut transaction, row, image, digest).await? {
                return Ok(Step::Again);
            }
        } else if models.lost_rounds + 1 >= MAX_LOST_ROUNDS {
            models.lost_rounds = 0;
        } else {
            (models.candidate, models.lost_rounds) = (Some(bytes), models.lost_rounds + 1);
        }
        let dropped = !passes && models.candidate.is_none();
        if !image_model_set(&mut transaction, row.id, image, &models).await? {
            return Ok(Step::Again);
        }
        if is_new {
            trace_statistics_add(&mut transaction, row.id, &trace.entry_point, &trace.architecture, trace.events.len()).await?;
        }
        commit(transaction).await?;
        let counter = if passes { &self.metrics.gates_passed } else { &self.metrics.gates_lost };
        counter.fetch_add(1, Ordering::Relaxed);
        self.metrics.candidates_dropped.fetch_add(dropped.into(), Ordering::Relaxed);
        tracing::debug!(image.digest = %image, events = trace.events.len(), passes, ?verdict, "merged a trace");
        Ok(Step::Learned)
    }

    /// The models of an image. One that has none gets what is known about the repository. `None`: the image is gone.
    async fn models_of(&self, row: &RepositoryRow, image: &Digest) -> Result<Option<ImageModel>, ReadError> {
        {
            let mut db = self.objects.db.read().await?;
            if manifest_get(&mut db, row.id, image).await?.is_none() {
                return Ok(None);
            }
            if let Some(models) = image_model_get(&mut db, row.id, image).await? {
                return Ok(Some(models));
            }
        }
        Box::pin(self.carry_to(row, image)).await?;
        let mut db = self.objects.db.read().await?;
        Ok(Some(image_model_get(&mut db, row.id, image).await?.unwrap_or_default()))
    }
}

/// The repository's model is that of its newest image. Says whether nobody else changed it meanwhile.
pub(super) async fn follow_newest(db: &mut Connection, row: &RepositoryRow, image: &Digest, model: Digest) -> Result<bool, DbError> {
    if row.model.is_none() || manifest_newest(&mut *db, row.id).await?.as_ref() == Some(image) {
        return repository_set_model(db, row.id, row.model, Some(model)).await;
    }
    Ok(true)
}

/// The encoded model that learned the trace, and how it did. Takes a while.
fn merge(served: Option<&[u8]>, candidate: Option<&[u8]>, trace: &Trace, held: &[Vec<Vec<u8>>]) -> (Vec<u8>, Option<Verdict>) {
    let decode = |bytes: &[u8]| match Model::decode(bytes) {
        Ok(model) => Some(model),
        Err(error) => {
            tracing::error!(%error, "a stored model is damaged: it is left aside");
            None
        }
    };
    let current = served.and_then(decode);
    let mut model = candidate.and_then(decode).or_else(|| current.clone()).unwrap_or_default();
    predictor::learn(&mut model, trace, &predictor::Params::default());
    let bytes = model.encode();
    let held: Vec<Vec<Trace>> = held.iter().map(|held| held.iter().filter_map(|bytes| Trace::decode(bytes).ok()).collect()).collect();
    (bytes, current.and_then(|current| judge(&current, &model, &held)))
}

/// What a run used: bytes of all objects that answer for what it touched.
async fn used(objects: &Objects, layers: &Layers, trace: &Trace) -> Result<Used, ReadError> {
    let mut digests = std::collections::HashSet::new();
    for event in &trace.events {
        let Some(path) = trace.paths.get(event.path as usize) else { continue };
        digests.extend(layers.touch(event.layer, path, event.touch).await?);
    }
    let digests: Vec<Digest> = digests.into_iter().collect();
    let lens = objects.lens(layers.namespace, &digests).await?;
    let touches = trace.events.len() as u64;
    Ok(Used { touches, bytes: lens.values().map(|len| u64::from(*len)).sum() })
}

/// What is usual: the median of what is usual for each source, so that none counts more for having sent more. Traces of
/// before this process started are taken for those of one source. `None` if there are too few.
fn usual(held: impl Iterator<Item = (Option<Source>, Used)>) -> Option<Used> {
    let mut by_source: BTreeMap<Option<Source>, Vec<Used>> = BTreeMap::new();
    held.for_each(|(source, used)| by_source.entry(source).or_default().push(used));
    let count: usize = by_source.values().map(Vec::len).sum();
    let medians: Vec<Used> = by_source.into_values().filter_map(median).collect();
    median(medians).filter(|_| count >= MIN_USUAL)
}

/// The median of each number.
fn median(mut all: Vec<Used>) -> Option<Used> {
    let middle = all.len() / 2;
    let mut of = |get: fn(&Used) -> u64| {
        all.sort_unstable_by_key(get);
        all.get(middle).map(get)
    };
    Some(Used { touches: of(|used| used.touches)?, bytes: of(|used| used.bytes)? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::TraceLimits;

    #[test]
    fn what_is_usual_is_what_most_sources_use_however_much_one_sends() {
        let sources = Sources::new(TraceLimits::default());
        let source = |n: u8| Some(sources.source([10, 0, 0, n].into()));
        let used = |touches, bytes| Used { touches, bytes };
        assert_eq!(usual([(source(1), used(10, 100))].into_iter()), None);
        let absurd = std::iter::repeat_n((source(9), used(1 << 40, 1 << 60)), 14);
        let honest = [(source(1), used(10, 100)), (source(2), used(12, 90))];
        assert_eq!(usual(honest.into_iter().chain(absurd)), Some(used(12, 100)));
    }
}
