//! A launch: from image names to the end of the application.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use client_store::store::ImageOrigin;
use client_store::{Origin, Policy, RunStats, Session, SessionOptions, Store};
use layer_format::manifest::{ImageManifest, Mode};
use layer_format::reference::ImageReference;
use layer_format::trace::Trace;
use layer_format::{Digest, LayerPath};
use serde::Serialize;
use vm::RunSpec;

use crate::app::App;
use crate::containers::{Locked, now_s};
use crate::detach::Background;
use crate::exit::Exit;
use crate::have::have;
use crate::startup::{self, Startup};
use crate::{environment, traces};

/// How far the kernel reads ahead, in bytes, unless asked otherwise. Each byte is fetched if it is not here: this is what
/// a random read costs on a thin line.
pub const DEFAULT_READAHEAD: u32 = 32 * 1024;

/// What is launched, as the command line says.
#[derive(Debug)]
pub struct Launch {
    pub images: Vec<ImageReference>,
    pub args: Vec<String>,
    pub env: Vec<(String, String)>,
    pub working_dir: Option<PathBuf>,
    pub mode: Option<Mode>,
    pub mounts: Vec<vm::BindMount>,
    pub startup_file: Option<String>,
    pub trigger: Option<String>,
    pub admin: bool,
    pub stats: Option<PathBuf>,
    pub trace: Option<PathBuf>,
    pub pull: bool,
    pub offline: bool,
    pub predict: bool,
    pub readahead: u32,
}

/// What `--stats` writes; `docs/json.md` explains the fields.
#[derive(Debug, Serialize)]
struct StatsFile {
    version: u32,
    images: Vec<ImageUsed>,
    entry_point: String,
    mount_us: u64,
    first_process_us: u64,
    exit_us: u64,
    total_us: u64,
    exit_code: u8,
    #[serde(flatten)]
    run: RunStats,
}

/// An image of the run.
#[derive(Debug, Serialize)]
struct ImageUsed {
    name: String,
    digest: Digest,
}

/// A file that the end of a run writes, opened before it: so that a name that cannot be written is known at once.
#[derive(Debug)]
struct Report {
    path: PathBuf,
    file: std::fs::File,
}

impl Report {
    fn open(path: &Option<PathBuf>) -> Result<Option<Self>> {
        let open =
            |path: &PathBuf| std::fs::File::create(path).map(|file| Self { path: path.clone(), file }).with_context(|| format!("writing {}", path.display()));
        path.as_ref().map(open).transpose()
    }

    /// What the application did counts, not what is told of it: a failure is a warning.
    fn write(mut self, content: &[u8]) {
        let written = self.file.write_all(content).with_context(|| format!("writing {}", self.path.display()));
        warn("a report is lost", written);
    }
}

/// Says what went wrong, and goes on.
fn warn<T>(what: &str, result: Result<T>) {
    if let Err(error) = result {
        tracing::warn!("{what}: {error:#}");
    }
}

impl Launch {
    /// Runs to the end of the application.
    pub fn run(self, app: &App, launcher: vm::Launcher, mut container: Locked, background: Option<Background>) -> Result<Exit> {
        let begun = Instant::now();
        container.container.started_s = now_s();
        let result = self.run_in(app, launcher, &container, background, begun);
        if let Ok(exit) = &result {
            container.container.exit_code = Some(exit.code());
            warn("how the container ended could not be noted", container.save());
        }
        if container.container.temporary || (result.is_err() && container.is_unused()) {
            warn("the container could not be removed", container.remove());
        }
        result
    }

    fn run_in(&self, app: &App, launcher: vm::Launcher, container: &Locked, background: Option<Background>, begun: Instant) -> Result<Exit> {
        let (stats_file, trace_file) = (Report::open(&self.stats)?, Report::open(&self.trace)?);
        let store = app.store()?;
        let mut sessions = self.sessions(app, &store)?;
        let digests: Vec<Digest> = sessions.iter().map(Session::digest).collect();
        // On a full disk the run goes on; what it uses may then be evicted, and is fetched again.
        let running = store.running(&digests).context("the store could not be told what runs");
        let _running = running.map_err(|error| warn::<()>("what runs is not protected from eviction", Err(error)));
        let images: Vec<(String, ImageManifest)> =
            self.images.iter().map(ToString::to_string).zip(sessions.iter().map(|session| session.manifest().clone())).collect();
        let (mode, modes) = self.modes(&sessions)?;
        let host_visible = mode != Mode::Full;
        let startup = startup::choose(&images, self.startup_file.as_deref(), self.trigger.as_deref(), &self.args, host_visible)?;
        for session in &mut sessions {
            session.set_entry_point(&startup.entry_point);
        }
        let spec = self.spec(container, &sessions, &images, &startup, mode, modes, begun)?;
        let layers = sessions.iter().flat_map(Session::layers).collect();
        self.remember(&store, &sessions)?;
        let mut running = launcher.start(spec, layers)?;
        if let Some(background) = background {
            background.started();
        }
        let status = running.wait()?;
        let exit_us = micros(begun);
        let timings = running.timings();
        drop(running);
        let traces: Vec<Option<Trace>> = std::thread::scope(|scope| {
            let ends: Vec<_> = sessions.iter().map(|session| scope.spawn(|| session.finish())).collect();
            ends.into_iter().map(|end| end.join().ok()).collect()
        });
        for (session, (reference, trace)) in sessions.iter().zip(self.images.iter().zip(&traces)) {
            if let Some(model) = session.model() {
                warn("which model was used is not remembered", store.model_put(&reference.repository, &model).map_err(Into::into));
            }
            if let Some(trace) = trace {
                traces::save(&app.settings.home, &reference.repository, trace);
            }
        }
        if let (Some(file), Some(Some(trace))) = (trace_file, traces.get(startup.image.unwrap_or(0))) {
            file.write(&trace.encode());
        }
        let exit = match (status.code, status.signal) {
            (_, Some(signal)) => Exit::Signal(signal.clamp(0, 127) as u8),
            (code, None) => Exit::Application(code.unwrap_or(0).clamp(0, 255) as u8),
        };
        if let Some(file) = stats_file {
            let run = total(sessions.iter().map(Session::stats));
            let images = images.into_iter().zip(digests).map(|((name, _), digest)| ImageUsed { name, digest }).collect();
            let entry_point = startup.entry_point;
            let (mount_us, first_process_us, total_us) = (timings.mounted_us, timings.started_us, micros(begun));
            let stats = StatsFile { version: 1, images, entry_point, mount_us, first_process_us, exit_us, total_us, exit_code: exit.code(), run };
            file.write(&serde_json::to_vec_pretty(&stats)?);
        }
        Ok(exit)
    }

    /// Starts a session for each image, all at once: each may need a round trip.
    fn sessions(&self, app: &App, store: &Store) -> Result<Vec<Session>> {
        let runtime = app.runtime()?.handle().clone();
        let origin: Option<Arc<dyn Origin>> = if self.offline { None } else { Some(Arc::new(app.registry()?)) };
        let mut options = Vec::new();
        for image in &self.images {
            let local = if self.pull { None } else { store.image_get(image)? };
            let digest = local.as_ref().map(|local| local.digest);
            let is_complete = digest.map(|digest| store.image_is_complete(&digest)).transpose()?.unwrap_or(false);
            let model = store.model_get(&image.repository)?;
            let policy = match (self.offline, self.predict) {
                (true, _) => Policy::Offline,
                (false, false) => Policy::OnDemand,
                (false, true) => Policy::Predicted,
            };
            options.push(SessionOptions {
                digest,
                manifest: local.map(|local| local.bytes),
                is_complete,
                entry_point: self.trigger.clone().or_else(|| self.startup_file.as_deref().and_then(|text| startup::split(text).ok()?.into_iter().next())),
                policy,
                wait_limit: Duration::from_secs(app.settings.wait),
                have: if is_complete { None } else { have(app, store, &image.repository)? },
                model,
                send_trace: app.settings.send_traces,
                ..SessionOptions::new(Arc::new(store.clone()), origin.clone(), runtime.clone(), image.clone())
            });
        }
        if let Some(origin) = origin.filter(|_| options.iter().any(|options| !options.is_complete)) {
            runtime.spawn(origin.warm_up(1));
        }
        std::thread::scope(|scope| {
            let starts: Vec<_> = options.into_iter().map(|options| scope.spawn(move || Session::start(options))).collect();
            let join = |start: std::thread::ScopedJoinHandle<'_, _>| start.join().map_err(|_| anyhow::anyhow!("starting an image failed"));
            let results: Vec<_> = starts.into_iter().map(join).collect::<Result<_>>()?;
            results.into_iter().zip(&self.images).map(|(result, image)| result.with_context(|| format!("{image} cannot be started"))).collect()
        })
    }

    /// The mode of `/`, and of paths below: the first image of the list that states one for a path wins, and the command
    /// line never weakens what an image states.
    fn modes(&self, sessions: &[Session]) -> Result<(Mode, Vec<(LayerPath, Mode)>)> {
        let level = self.mode.unwrap_or(Mode::WriteCopy);
        let mut stated: BTreeMap<LayerPath, Mode> = BTreeMap::new();
        for rule in sessions.iter().flat_map(Session::layer_manifests).flat_map(|layer| &layer.isolation) {
            let path = LayerPath::from_absolute(rule.path.as_bytes()).with_context(|| format!("the path {} of an isolation rule", rule.path))?;
            stated.entry(path).or_insert(rule.mode);
        }
        let root = stated.remove(&LayerPath::root()).unwrap_or(level).max(level);
        Ok((root, stated.into_iter().map(|(path, mode)| (path, mode.max(level))).collect()))
    }

    #[allow(clippy::too_many_arguments, reason = "the parts of a run meet here once")]
    fn spec(
        &self,
        container: &Locked,
        sessions: &[Session],
        images: &[(String, ImageManifest)],
        startup: &Startup,
        mode: Mode,
        modes: Vec<(LayerPath, Mode)>,
        begun: Instant,
    ) -> Result<RunSpec> {
        let variables: Vec<_> = sessions.iter().flat_map(Session::layer_manifests).map(|layer| layer.environment.clone()).collect();
        let host_visible = mode != Mode::Full;
        let from_image = || startup.image.or(Some(0)).and_then(|at| images[at].1.working_directory.clone()).map(PathBuf::from);
        let stated = self.working_dir.clone().or_else(from_image);
        let current = || std::env::current_dir().ok().filter(|_| host_visible);
        let mut spec = RunSpec::new(container.folder.join("sandbox"), startup.command.iter().map(OsString::from));
        spec.rules = vm::Rules::new(mode);
        for (path, mode) in modes {
            spec.rules.state(path, mode);
        }
        spec.env = environment::compose(std::env::vars_os(), &variables, &self.env, host_visible);
        spec.working_dir_required = stated.is_some();
        spec.working_dir = stated.or_else(current).unwrap_or_else(|| PathBuf::from("/"));
        if !spec.working_dir.is_absolute() {
            spec.working_dir = current().unwrap_or_else(|| PathBuf::from("/")).join(&spec.working_dir);
        }
        spec.mounts = self.mounts.clone();
        spec.map_root = self.admin;
        spec.max_readahead = self.readahead;
        spec.since = begun;
        Ok(spec)
    }

    /// Keeps the manifests of images that were not here, so that they are known by name from now on.
    fn remember(&self, store: &Store, sessions: &[Session]) -> Result<()> {
        for (image, session) in self.images.iter().zip(sessions) {
            if store.image_get(image)?.is_some_and(|known| known.digest == session.digest()) {
                continue;
            }
            if let Err(error) = store.image_put(image, session.manifest_bytes(), ImageOrigin::Streamed) {
                tracing::warn!(%error, "{image} could not be noted in the local store");
            }
        }
        Ok(())
    }
}

fn micros(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)
}

/// The sum of several images' statistics; the hit rate weighted by what each needed.
fn total(all: impl IntoIterator<Item = RunStats>) -> RunStats {
    let mut sum = RunStats::default();
    let mut weighted = (0.0, 0.0);
    for mut one in all {
        if one.requests == 0 {
            // Nothing was measured; these are what a fetcher starts from.
            (one.round_trip_us, one.rate_bytes_per_s) = (0, 0);
        }
        sum.demand_misses += one.demand_misses;
        sum.demand_requests += one.demand_requests;
        sum.requests += one.requests;
        sum.stall_us += one.stall_us;
        sum.bytes_fetched += one.bytes_fetched;
        sum.bytes_received += one.bytes_received;
        sum.bytes_needed += one.bytes_needed;
        sum.bytes_prefetched += one.bytes_prefetched;
        sum.bytes_prefetched_used += one.bytes_prefetched_used;
        sum.bytes_wasted += one.bytes_wasted;
        sum.local_bytes += one.local_bytes;
        sum.damaged_objects += one.damaged_objects;
        sum.retries += one.retries;
        sum.promotions += one.promotions;
        sum.store_error = sum.store_error.or(one.store_error);
        sum.round_trip_us = sum.round_trip_us.max(one.round_trip_us);
        sum.rate_bytes_per_s = sum.rate_bytes_per_s.max(one.rate_bytes_per_s);
        let weight = one.bytes_needed as f64;
        weighted = (weighted.0 + weight * one.hit_rate, weighted.1 + weight);
    }
    sum.hit_rate = if weighted.1 > 0.0 { weighted.0 / weighted.1 } else { 1.0 };
    sum
}
