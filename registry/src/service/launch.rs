//! The answer to a launch: one stream with all that a first start needs, in the order in which it is needed.
//!
//! Image, layer manifests and tree roots go first. Then what the model predicts is resolved, some items at a
//! time and ahead of what is being sent, to tree objects, recipe nodes and chunks. Each part is announced by a `Plan`
//! before its objects, so that the client knows what it need not ask for. The model itself goes behind the first part.

use std::collections::HashSet;
use std::sync::Arc;

use futures::{FutureExt, StreamExt, stream};
use layer_format::api::{HaveFilter, MAX_DIGESTS};
use layer_format::manifest::{ImageManifest, Manifest};
use layer_format::trace::foreign_entry_point;
use layer_format::{Digest, FormatError};
use tokio::sync::mpsc;

use super::admission::Admission;
use super::frames::ReadError;
use super::image::Image;
use super::launches::ActiveLaunch;
use super::models::model_of_image;
use super::nodes::{NodeError, Nodes};
use super::objects::Objects;
use super::predict::{Allowance, Expected, Models};
use super::resolve::Layers;
use super::stream::{Item, StreamError, StreamWriter, send_launch};
use crate::db::model::model_get;
use crate::db::namespace::NamespaceId;
use crate::db::object::Location;
use crate::db::repository::RepositoryRow;
use crate::db::trace_statistics::trace_statistics_usual;

/// Predicted items that are resolved together: few at first, so that the first bytes leave at once.
const FIRST_ITEMS: usize = 64;
const ITEMS: usize = 1024;
/// Items that are resolved at a time.
const RESOLVES: usize = 16;
/// Parts that are resolved ahead of what is being sent.
const PARTS_AHEAD: usize = 2;

/// What a client asked for, checked.
#[derive(Debug)]
pub(crate) struct LaunchOrder {
    pub(crate) image: Image,
    pub(crate) manifest: ImageManifest,
    pub(crate) entry_point: Option<String>,
    pub(crate) architecture: String,
    pub(crate) predict: bool,
    pub(crate) budget_bytes: u64,
    pub(crate) have: Option<HaveFilter>,
    pub(crate) model: Option<Digest>,
    pub(crate) admission: Admission,
    /// Predict with exactly this model rather than with the newest, and send it.
    pub(crate) with_model: Option<Digest>,
}

impl LaunchOrder {
    /// Parses the stored manifest.
    pub(crate) fn parse_manifest(image: &Image) -> Result<ImageManifest, FormatError> {
        ImageManifest::decode(&image.bytes)
    }
}

/// What launches share.
#[derive(Clone, Debug)]
pub(crate) struct Launcher {
    pub(crate) objects: Objects,
    pub(crate) nodes: Arc<Nodes>,
    pub(crate) models: Arc<Models>,
}

/// What was sent or is there, so that it is not sent again.
#[derive(Debug)]
struct Known {
    sent: HashSet<Digest>,
    have: Option<HaveFilter>,
}

impl Known {
    /// Whether the object has to be sent; from now on it counts as sent.
    fn is_new(&mut self, digest: Digest) -> bool {
        self.sent.insert(digest) && !self.have.as_ref().is_some_and(|have| have.contains(&digest))
    }
}

/// What is expected of a launch.
struct Forecast {
    items: Vec<Expected>,
    /// The model that says so, unless the client has it.
    model: Option<Item>,
    budget_bytes: u64,
}

/// A part of what is predicted, located.
struct Part(Vec<(Digest, Location)>);

impl Launcher {
    /// Sends the answer, up to but without its end.
    pub(crate) async fn run(&self, writer: &mut StreamWriter, order: LaunchOrder, launch: &ActiveLaunch) -> Result<(), StreamError> {
        let namespace = order.image.repository.namespace;
        let mut known = Known { sent: HashSet::new(), have: order.have };
        let mut items = vec![Item::Image(order.image.bytes)];
        let mut roots = Vec::with_capacity(order.manifest.layers.len());
        for digest in &order.manifest.layers {
            let item = match self.nodes.layer(namespace, *digest, None).await {
                Ok(layer) => {
                    roots.push(layer.root);
                    self.object(namespace, *digest).await?
                }
                Err(error) => missing(*digest, error)?,
            };
            if known.is_new(*digest) {
                items.push(item);
            }
        }
        for root in &roots {
            if known.is_new(*root) {
                items.push(self.object(namespace, *root).await?);
            }
        }
        let complete = roots.len() == order.manifest.layers.len();
        let program = order.manifest.startup(None).next().or(order.manifest.startup_files.first()).and_then(|file| file.command.first()).cloned();
        let entry_point = order.entry_point.or_else(|| program.clone());
        let model = match order.predict && complete {
            true => self.model(&order.image.repository, &order.image.digest, order.with_model.or(order.manifest.model)).await?,
            false => None,
        };
        let mut expected = Vec::new();
        let mut model_item = None;
        let mut budget_bytes = order.budget_bytes;
        if let Some((digest, bytes)) = model {
            let allowance = self.allowance(&order.image.repository, entry_point.as_deref(), &order.architecture).await?;
            budget_bytes = budget_bytes.min(allowance.bytes);
            let (models, architecture, program) = (Arc::clone(&self.models), order.architecture, entry_point.clone());
            let listed = tokio::task::spawn_blocking(move || {
                let list = models.launch_list(digest, &bytes, program.as_deref(), &architecture, &allowance);
                (list, bytes)
            });
            let (list, bytes) = listed.await.map_err(|_| ReadError::Cancelled)?;
            match list {
                Ok(list) => {
                    expected = list;
                    expected.retain(|item| order.admission.admits(item.touch, item.probability));
                    if order.model != Some(digest) {
                        model_item = Some(Item::Model(bytes));
                    }
                }
                Err(error) => tracing::error!(model.digest = %digest, %error, "model {digest} is damaged: launching without it"),
            }
        }
        // What a mount needs fits into the first packets, and is not held up by what follows.
        writer.write(items, true).await?;
        if !complete {
            return Ok(());
        }
        let layers = Arc::new(Layers { nodes: Arc::clone(&self.nodes), namespace, roots });
        if expected.is_empty() {
            writer.write(model_item.into_iter().collect(), false).await?;
            let triggered = order.manifest.startup(entry_point.as_deref()).next().and_then(|file| file.command.first()).cloned();
            return match triggered.or(entry_point) {
                Some(program) => self.send_way(writer, &layers, &mut known, launch, &program).await,
                None => Ok(()),
            };
        }
        self.send_expected(writer, &layers, &mut known, launch, Forecast { items: expected, model: model_item, budget_bytes }).await
    }

    async fn object(&self, namespace: NamespaceId, digest: Digest) -> Result<Item, StreamError> {
        let Some(place) = self.objects.locate(namespace, &[digest]).await?.remove(&digest) else { return Ok(Item::Missing(vec![digest])) };
        match self.objects.read(&digest, &place).await {
            Ok(bytes) => Ok(Item::Object(bytes)),
            Err(error) if error.is_loss() => Ok(Item::Missing(vec![digest])),
            Err(error) => Err(error.into()),
        }
    }

    /// The model to predict with: the one that the image's manifest pins, else what [`model_of_image`] says.
    async fn model(&self, repository: &RepositoryRow, image: &Digest, pinned: Option<Digest>) -> Result<Option<(Digest, Vec<u8>)>, StreamError> {
        let namespace = repository.namespace;
        let wanted = match pinned {
            Some(pinned) => Some(pinned),
            None => {
                let mut db = self.objects.db.read().await?;
                model_of_image(&mut db, repository, image).await?
            }
        };
        let Some(digest) = wanted else { return Ok(None) };
        let learned = {
            let mut db = self.objects.db.read().await?;
            model_get(&mut db, repository.id, &digest).await?
        };
        if let Some(bytes) = learned {
            return Ok(Some((digest, bytes)));
        }
        match self.object(namespace, digest).await? {
            Item::Object(bytes) => Ok(Some((digest, bytes))),
            _ => Ok(None),
        }
    }

    /// How much may be sent ahead to a launch of this entry point.
    async fn allowance(&self, repository: &RepositoryRow, entry_point: Option<&str>, architecture: &str) -> Result<Allowance, StreamError> {
        let name = entry_point.unwrap_or_default();
        let mut db = self.objects.db.read().await?;
        let usual = trace_statistics_usual(&mut db, repository.id, [name, &foreign_entry_point(name)], architecture).await?;
        Ok(Allowance::new(usual))
    }

    /// Without a prediction: the tree objects that lead to the program.
    async fn send_way(
        &self,
        writer: &mut StreamWriter,
        layers: &Arc<Layers>,
        known: &mut Known,
        launch: &ActiveLaunch,
        program: &str,
    ) -> Result<(), StreamError> {
        let mut way = layers.program(program).await?;
        way.retain(|digest| known.is_new(*digest));
        let found = self.objects.locate(layers.namespace, &way).await?;
        let wanted = way.iter().filter_map(|digest| found.get(digest).map(|place| (*digest, *place))).collect();
        send_part(writer, &self.objects, launch, Part(wanted)).await
    }

    /// Resolves what is expected, ahead of what is being sent.
    async fn send_expected(
        &self,
        writer: &mut StreamWriter,
        layers: &Arc<Layers>,
        known: &mut Known,
        launch: &ActiveLaunch,
        forecast: Forecast,
    ) -> Result<(), StreamError> {
        let Forecast { items: expected, mut model, budget_bytes } = forecast;
        let (sender, mut receiver) = mpsc::channel::<Part>(PARTS_AHEAD);
        let resolving = async move {
            let mut budget = budget_bytes;
            let (first, rest) = expected.split_at(expected.len().min(FIRST_ITEMS));
            let parts: Vec<&[Expected]> = std::iter::once(first).chain(rest.chunks(ITEMS)).collect();
            for items in parts {
                let part = self.resolve(layers, known, launch, items, &mut budget).await?;
                if sender.send(part).await.is_err() || budget == 0 {
                    break;
                }
            }
            drop(sender);
            Ok(())
        };
        let sending = async {
            while let Some(part) = receiver.recv().await {
                send_part(writer, &self.objects, launch, part).await?;
                // The client predicts with it where the launch takes another way, which cannot be before it has begun.
                if let Some(model) = model.take() {
                    writer.write(vec![model], false).await?;
                }
            }
            writer.write(model.into_iter().collect(), false).await
        };
        tokio::try_join!(resolving, sending).map(|_| ())
    }

    /// The objects of some items that have to be sent. The budget is spent on uncompressed bytes; what does not fit any
    /// more sets it to 0.
    async fn resolve(&self, layers: &Arc<Layers>, known: &mut Known, launch: &ActiveLaunch, items: &[Expected], budget: &mut u64) -> Result<Part, StreamError> {
        let mut touched = stream::iter(items.to_vec()).map(|item| touch(Arc::clone(layers), item).boxed()).buffered(RESOLVES);
        let mut digests = Vec::new();
        while let Some(objects) = touched.next().await {
            digests.extend(objects?.into_iter().filter(|digest| known.is_new(*digest) && !launch.is_taken(digest)));
        }
        let found = self.objects.locate(layers.namespace, &digests).await?;
        let mut part = Vec::with_capacity(digests.len());
        for digest in digests {
            let Some(place) = found.get(&digest) else { continue };
            match budget.checked_sub(place.len.into()) {
                Some(left) => {
                    *budget = left;
                    part.push((digest, *place));
                }
                None => {
                    *budget = 0;
                    break;
                }
            }
        }
        Ok(Part(part))
    }
}

async fn touch(layers: Arc<Layers>, item: Expected) -> Result<Vec<Digest>, ReadError> {
    layers.touch(item.layer, &item.path, item.touch).await
}

fn missing(digest: Digest, error: NodeError) -> Result<Item, StreamError> {
    match error {
        NodeError::Read(error) if !error.is_loss() => Err(error.into()),
        error => {
            tracing::error!(object.digest = %digest, error = crate::chain(&error), "a stored image cannot be launched");
            Ok(Item::Missing(vec![digest]))
        }
    }
}

/// Announces a part, and sends it.
async fn send_part(writer: &mut StreamWriter, objects: &Objects, launch: &ActiveLaunch, part: Part) -> Result<(), StreamError> {
    if part.0.is_empty() {
        return Ok(());
    }
    let plan = |wanted: &[(Digest, Location)]| Item::Plan(wanted.iter().flat_map(|(digest, _)| digest.prefix64().to_le_bytes()).collect());
    let plans = part.0.chunks(MAX_DIGESTS).map(plan).collect();
    writer.write(plans, false).await?;
    send_launch(writer, objects, launch, part.0).await
}
