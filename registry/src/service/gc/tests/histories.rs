//! Random histories.

use std::collections::{BTreeMap, BTreeSet};

use layer_format::Digest;
use layer_format::oci::OciDigest;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::world::{Artifact, HOUR, Sample, World, noise, sha256};
use crate::db::trash::trash_list;
use crate::service::gc::GcReport;
use crate::service::image::{Reference, image_delete};
use crate::service::lease::{LEASE, ms};
use crate::service::oci::manifest::OciReference;
use crate::service::trash::{Deleted, undelete};

const REPOSITORIES: [&str; 3] = ["one/x", "one/y", "two/x"];

/// A push that was begun: what it was told, and when.
struct Begun {
    repository: &'static str,
    sample: Sample,
    missing: BTreeSet<Digest>,
    at: i64,
    has_sent: bool,
}

/// What should be visible.
#[derive(Default)]
struct Model {
    images: BTreeMap<(&'static str, Digest), Sample>,
    artifacts: BTreeMap<(&'static str, OciDigest), Artifact>,
    begun: Vec<Begun>,
    /// All that was ever pushed, to know it again when it comes back.
    samples: BTreeMap<Digest, Sample>,
    pushed_artifacts: BTreeMap<OciDigest, Artifact>,
}

struct History {
    world: Option<World>,
    model: Model,
    random: StdRng,
    next_release: u32,
}

impl History {
    fn world(&mut self) -> &mut World {
        self.world.as_mut().unwrap()
    }

    fn repository(&mut self) -> &'static str {
        REPOSITORIES[self.random.random_range(0..REPOSITORIES.len())]
    }

    fn sample(&mut self) -> Sample {
        let count = self.random.random_range(1..14);
        let files = (0..count).map(|_| self.random.random_range(0..40)).collect();
        let sample = Sample::new(&files);
        self.model.samples.insert(sample.digest(), sample.clone());
        sample
    }

    fn artifact(&mut self) -> Artifact {
        let parts = self.random.random_range(1..4);
        let blob = (0..parts).flat_map(|_| noise(self.random.random_range(1000..1006), 20_000)).collect();
        let artifact = Artifact::new(blob);
        self.model.pushed_artifacts.insert(artifact.digest(), artifact.clone());
        artifact
    }

    fn release(&mut self) -> String {
        self.next_release += 1;
        format!("v{}", self.next_release % 7)
    }

    async fn restart(&mut self) {
        let world = self.world.take().unwrap();
        self.world = Some(world.restart().await);
    }

    /// Makes the model agree about one image whose push or delete was cut.
    async fn learn_image(&mut self, name: &'static str, sample: &Sample) {
        match self.world().is_visible(&World::repository(name), &sample.digest()).await {
            true => drop(self.model.images.insert((name, sample.digest()), sample.clone())),
            false => drop(self.model.images.remove(&(name, sample.digest()))),
        }
    }

    async fn learn_artifact(&mut self, name: &'static str, artifact: &Artifact) {
        match self.world().has_manifest(&World::repository(name), &artifact.digest()).await {
            true => drop(self.model.artifacts.insert((name, artifact.digest()), artifact.clone())),
            false => drop(self.model.artifacts.remove(&(name, artifact.digest()))),
        }
    }

    async fn step(&mut self) {
        match self.random.random_range(0..100) {
            0..14 => {
                let (name, release, sample) = (self.repository(), self.release(), self.sample());
                self.world().push(name, &release, &sample).await;
                self.model.images.insert((name, sample.digest()), sample);
            }
            14..22 => self.push_artifact().await,
            22..30 => self.begin_push().await,
            30..40 => self.go_on_with_push().await,
            40..48 => self.delete_image().await,
            48..53 => self.delete_artifact().await,
            53..60 => self.bring_back().await,
            60..70 => {
                let minutes = self.random.random_range(1..400);
                self.world().advance(minutes * 60 * 1000);
            }
            70..80 => {
                let reports = self.world().gc().await.unwrap();
                // One that died holds its namespace for some minutes.
                let is_held = |report: &GcReport| report.held_back.as_ref().is_some_and(|why| !why.contains("another collector"));
                assert!(!reports.iter().any(is_held), "{reports:?}");
            }
            80..86 => self.crash_in_collection().await,
            86..90 => self.crash_in_push().await,
            90..94 => {
                let world = self.world.as_ref().unwrap();
                let (one, other) = futures::future::join(world.gc(), world.gc()).await;
                one.unwrap();
                other.unwrap();
            }
            _ => self.push_beside_collection().await,
        }
    }

    async fn push_artifact(&mut self) {
        let (name, release, artifact) = (self.repository(), self.release(), self.artifact());
        let repository = World::repository(name);
        self.world().push_artifact(&repository, &release, &artifact).await.expect("the artifact is pushed");
        self.model.artifacts.insert((name, artifact.digest()), artifact);
    }

    async fn begin_push(&mut self) {
        let (repository, sample) = (self.repository(), self.sample());
        let missing = self.world().missing(&World::repository(repository), &sample).await;
        let at = self.world().db.now();
        self.model.begun.push(Begun { repository, sample, missing, at, has_sent: false });
    }

    /// The client sends what it was told to be missing, then puts the image. As long as the lease lasts, that must be enough.
    async fn go_on_with_push(&mut self) {
        if self.model.begun.is_empty() {
            return;
        }
        let which = self.random.random_range(0..self.model.begun.len());
        let mut push = self.model.begun.swap_remove(which);
        let repository = World::repository(push.repository);
        if !push.has_sent {
            if !push.missing.is_empty() {
                let pack = push.sample.pack(|digest| push.missing.contains(digest));
                assert!(self.world().put_pack(&repository, pack).await);
            }
            push.has_sent = true;
            self.model.begun.push(push);
            return;
        }
        let release = self.release();
        let is_leased = self.world().db.now() - push.at < ms(LEASE);
        match self.world().put_image(&repository, &release, &push.sample).await {
            Ok(()) => drop(self.model.images.insert((push.repository, push.sample.digest()), push.sample)),
            Err(error) => assert!(!is_leased, "a push within its lease was refused: {error}"),
        }
    }

    async fn delete_image(&mut self) {
        let Some((name, digest)) = self.any(|model| model.images.keys().copied().collect()) else { return };
        let db = self.world().db.clone();
        assert!(image_delete(&db, &World::repository(name), &Reference::Digest(digest), "test").await.unwrap());
        self.model.images.remove(&(name, digest));
        assert!(!self.world().is_visible(&World::repository(name), &digest).await, "a delete is seen at once");
    }

    async fn delete_artifact(&mut self) {
        let Some((name, digest)) = self.any(|model| model.artifacts.keys().cloned().collect()) else { return };
        let oci = std::sync::Arc::clone(&self.world().oci);
        assert!(oci.manifest_delete(&World::repository(name), &OciReference::Digest(digest.clone()), "test").await.unwrap());
        self.model.artifacts.remove(&(name, digest));
    }

    fn any<T>(&mut self, list: impl Fn(&Model) -> Vec<T>) -> Option<T> {
        let mut all = list(&self.model);
        if all.is_empty() {
            return None;
        }
        let which = self.random.random_range(0..all.len());
        Some(all.swap_remove(which))
    }

    async fn bring_back(&mut self) {
        let db = self.world().db.clone();
        let rows = trash_list(&mut db.read().await.unwrap(), None, 1000).await.unwrap();
        if rows.is_empty() {
            return;
        }
        let row = &rows[self.random.random_range(0..rows.len())];
        if undelete(&db, &Deleted::Number(row.id)).await.is_err() {
            // A release whose image is gone, or a manifest whose blobs are.
            assert_ne!(row.kind, "image", "an image can be brought back");
        }
        let name = REPOSITORIES.into_iter().find(|name| *name == row.repository).unwrap();
        match row.kind.as_str() {
            "image" => {
                let sample = self.model.samples[&row.name.parse().unwrap()].clone();
                self.learn_image(name, &sample).await;
                assert!(self.model.images.contains_key(&(name, sample.digest())));
            }
            "oci-manifest" => {
                let artifact = self.model.pushed_artifacts[&row.name.parse::<OciDigest>().unwrap()].clone();
                self.learn_artifact(name, &artifact).await;
            }
            _ => {}
        }
    }

    async fn crash_in_collection(&mut self) {
        let steps = self.random.random_range(0..60);
        self.world().db.clock().die_after(steps);
        drop(self.world().gc().await);
        self.restart().await;
    }

    async fn crash_in_push(&mut self) {
        let (name, release) = (self.repository(), self.release());
        let repository = World::repository(name);
        let steps = self.random.random_range(0..6);
        if self.random.random_bool(0.5) {
            let sample = self.sample();
            let missing = self.world().missing(&repository, &sample).await;
            self.world().db.clock().die_after(steps);
            if missing.is_empty() || self.world().put_pack(&repository, sample.pack(|digest| missing.contains(digest))).await {
                drop(self.world().put_image(&repository, &release, &sample).await);
            }
            self.restart().await;
            self.learn_image(name, &sample).await;
        } else {
            let artifact = self.artifact();
            self.world().db.clock().die_after(steps);
            let _ = self.world().push_artifact(&repository, &release, &artifact).await;
            self.restart().await;
            self.learn_artifact(name, &artifact).await;
        }
    }

    /// At the same time, in the order that the runtime chooses.
    async fn push_beside_collection(&mut self) {
        let (name, release, sample, artifact) = (self.repository(), self.release(), self.sample(), self.artifact());
        let (tag, repository) = (self.release(), World::repository(name));
        let world = self.world.as_ref().unwrap();
        let pushing = async {
            world.push(name, &release, &sample).await;
            world.push_artifact(&repository, &tag, &artifact).await.expect("the artifact is pushed");
        };
        let (collected, ()) = futures::future::join(world.gc(), pushing).await;
        collected.unwrap();
        self.model.images.insert((name, sample.digest()), sample);
        self.model.artifacts.insert((name, artifact.digest()), artifact);
    }

    async fn check(&self) {
        let world = self.world.as_ref().unwrap();
        for ((name, _), sample) in &self.model.images {
            world.check_image(name, sample).await;
        }
        for ((name, _), artifact) in &self.model.artifacts {
            world.check_artifact(name, artifact).await;
        }
    }

    /// Objects that visible things lead to, by namespace, and those of blobs that are chunks.
    fn expected(&self) -> BTreeMap<String, BTreeSet<Digest>> {
        let mut expected: BTreeMap<String, BTreeSet<Digest>> = BTreeMap::new();
        for ((name, _), sample) in &self.model.images {
            expected.entry(World::repository(name).namespace().to_owned()).or_default().extend(sample.objects.keys());
        }
        expected
    }
}

async fn history(seed: u64, steps: usize) {
    let mut history = History { world: Some(World::new().await), model: Model::default(), random: StdRng::seed_from_u64(seed), next_release: 0 };
    for step in 0..steps {
        history.step().await;
        if step % 3 == 0 {
            history.check().await;
        }
    }
    // What is not reached goes; what is reached stays.
    history.model.begun.clear();
    history.world().quiesce().await;
    history.check().await;
    let (index, expected) = (history.world().index().await, history.expected());
    for (namespace, objects) in &expected {
        assert!(objects.is_subset(&index[namespace]));
    }
    // And with everything deleted, nothing is left.
    let artifacts: Vec<_> = history.model.artifacts.keys().cloned().collect();
    for (name, digest) in artifacts {
        let oci = std::sync::Arc::clone(&history.world().oci);
        assert!(oci.manifest_delete(&World::repository(name), &OciReference::Digest(digest), "test").await.unwrap());
    }
    history.model.artifacts.clear();
    history.world().quiesce().await;
    history.check().await;
    let (index, expected) = (history.world().index().await, history.expected());
    for (namespace, objects) in &index {
        assert_eq!(objects, expected.get(namespace).unwrap_or(&BTreeSet::new()), "seed {seed}: exactly what images need is left in {namespace}");
    }
    let images: Vec<_> = history.model.images.keys().copied().collect();
    let db = history.world().db.clone();
    for (name, digest) in images {
        assert!(image_delete(&db, &World::repository(name), &Reference::Digest(digest), "test").await.unwrap());
    }
    history.world().quiesce().await;
    assert!(history.world().index().await.values().all(BTreeSet::is_empty), "seed {seed}: nothing is left in the index");
    assert!(history.world().blob_free().await, "seed {seed}: no blob is left");
}

impl World {
    /// Whether no repository has the blobs of the pushes any more.
    async fn blob_free(&self) -> bool {
        let mut free = true;
        for name in REPOSITORIES {
            free &= self.oci.blob_find(&Self::repository(name), &sha256(b"{}")).await.unwrap().is_none();
        }
        free
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn visible_manifests_are_complete_and_the_rest_goes() {
    let seeds = std::env::var("TURBO_GC_SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(6);
    let first = std::env::var("TURBO_GC_FIRST_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1);
    for seed in first..first + seeds {
        eprintln!("seed {seed}");
        history(seed, 90).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collection_that_dies_anywhere_is_gone_on_with() {
    let keep = Sample::new(&(0..12).collect());
    let drop_too = Sample::new(&(6..30).collect());
    for steps in 0.. {
        let mut world = World::new().await;
        world.push("one/x", "keep", &keep).await;
        world.push("one/x", "drop", &drop_too).await;
        let repository = World::repository("one/x");
        assert!(image_delete(&world.db, &repository, &Reference::Digest(drop_too.digest()), "test").await.unwrap());
        // The removal and the bytes' removal are cut as well as the recording of candidates.
        let mut is_over = true;
        for _ in 0..4 {
            world.advance(6 * HOUR);
            world.db.clock().die_after(steps);
            is_over &= world.gc().await.is_ok() && !world.db.clock().is_dead();
            world = world.restart().await;
            world.check_image("one/x", &keep).await;
        }
        world.quiesce().await;
        world.check_image("one/x", &keep).await;
        let expected: BTreeSet<Digest> = keep.objects.keys().copied().collect();
        assert_eq!(world.index().await["one"], expected, "after {steps} steps");
        // What was removed can be pushed again.
        world.push("one/x", "drop", &drop_too).await;
        world.check_image("one/x", &drop_too).await;
        if is_over {
            assert!(steps > 6, "a collection has more steps than {steps}");
            return;
        }
    }
}
