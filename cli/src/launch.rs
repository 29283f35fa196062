//! A launch: from image names to the end of the application.

pub mod report;
pub mod visit;

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result};
use client_store::{Policy, Timeline, anonymous};
use layer_format::LayerPath;
use layer_format::manifest::{Mode, StateImage};
use layer_format::recording::MarkKind;
use layer_format::reference::ImageReference;
use layer_format::trace::Trace;
use vm::RunSpec;

use crate::app::App;
use crate::containers::{Locked, now_s};
use crate::control::server::Server;
use crate::detach::Background;
use crate::exit::Exit;
use crate::isolation::{self, Level};
use crate::join::Description;
use crate::live::Live;
use crate::output::note;
use crate::stack::{self, Role, Stack};
use crate::startup::{self, Candidate, Startup, Wish};
use crate::states::sharing::Visibility;
use crate::{environment, history, outbox, states, traces};
use report::{ImageUsed, Report, StatsFile, total};

/// How far the kernel reads ahead, in bytes, unless asked otherwise. Each byte is fetched if it is not here: this is what
/// a random read costs on a thin line.
pub const DEFAULT_READAHEAD: u32 = 16 * 1024;

/// The same, in bytes, if every image of the run is here as a whole: what the kernel grants.
const LOCAL_READAHEAD: u32 = 128 * 1024;

/// What is launched, as the command line says.
#[derive(Debug)]
pub struct Launch {
    pub images: Vec<ImageReference>,
    pub using: Vec<ImageReference>,
    pub args: Vec<String>,
    pub env: Vec<(String, String)>,
    pub working_dir: Option<PathBuf>,
    pub level: Level,
    pub mounts: Vec<vm::BindMount>,
    /// Program and arguments in place of the images'.
    pub startup_file: Option<Vec<String>>,
    /// What the container remembers of it: what programs that join start.
    pub saved_startup_file: Option<Vec<String>>,
    pub trigger: Option<String>,
    pub admin: bool,
    pub stats: Option<PathBuf>,
    pub trace: Option<PathBuf>,
    pub pull: bool,
    pub offline: bool,
    pub policy: Policy,
    pub background: bool,
    pub readahead: u32,
    /// Record first touches.
    pub record: bool,
    /// How the run goes, if somebody wants to know.
    pub timeline: Option<Arc<Timeline>>,
    /// Whether traces are sent to the registry, if the configuration allows it.
    pub upload_traces: bool,
    /// Whether, and for whom, the state at the end is saved to the registry.
    pub share: Option<Visibility>,
    /// Options of the command line that only the start of a container heeds.
    pub given: Vec<&'static str>,
}

/// Says what went wrong, and goes on.
pub fn warn<T>(what: &str, result: Result<T>) {
    if let Err(error) = result {
        tracing::warn!("{what}: {error:#}");
    }
}

impl Launch {
    /// Runs to the end of the application.
    pub fn run(mut self, app: &App, launcher: vm::Launcher, mut container: Locked, background: Option<Background>) -> Result<Exit> {
        let begun = Instant::now();
        let is_live = app.is_verbose && background.is_none();
        self.timeline = (is_live || self.trace.is_some()).then(|| Timeline::new(begun));
        container.container.started_s = now_s();
        if background.is_none() {
            container.forget_logs();
        }
        let control = Server::open(&container.folder)?;
        let result = self.run_in(app, launcher, &mut container, &control, background, begun);
        if let Ok(exit) = &result {
            container.container.exit_code = Some(exit.code());
            warn("how the container ended could not be noted", container.save());
        }
        drop(control);
        if container.container.temporary || (result.is_err() && container.is_new && container.is_unused()) {
            warn("the container could not be removed", container.remove());
        }
        result
    }

    fn run_in(
        &self,
        app: &App,
        launcher: vm::Launcher,
        container: &mut Locked,
        control: &Server,
        background: Option<Background>,
        begun: Instant,
    ) -> Result<Exit> {
        let live = self.timeline.as_ref().filter(|_| app.is_verbose && background.is_none()).map(Live::start);
        let (stats_file, trace_file) = (Report::open(&self.stats)?, Report::open(&self.trace)?);
        let store = app.store()?;
        let mut stack = Stack::start(app, &store, &self.request(&container.container.stack))?;
        self.mark(MarkKind::Manifest, micros(begun));
        // On a full disk the run goes on; what it uses may then be evicted, and is fetched again.
        let running = store.running(&stack.digests()).context("the store could not be told what runs");
        let _running = running.map_err(|error| warn::<()>("what runs is not protected from eviction", Err(error)));
        let isolation::Composed { rules, opened, .. } = isolation::rules(&stack, &self.level, app.settings.allow_merge)?;
        tell_opened(&opened);
        if !app.settings.allow_merge && (self.level.merge_user || self.level.mode == Some(Mode::Merge)) {
            note("the configuration does not allow merge: write-copy holds in its place");
        }
        let description = self.describe(&stack, &rules);
        let startup = self.startup(&stack, description.host.visible)?;
        stack.set_entry_point(&startup.entry_point);
        let spec = self.spec(app, container, &stack, &startup, rules, begun)?;
        stack.remember(&store)?;
        let taker = states::at_start(app, &store, container, &stack)?;
        if let Some(live) = &live {
            live.application_starts();
        }
        let mut running = launcher.start(spec, stack.layers())?;
        control.running(&mut running, &description)?;
        if let Some(background) = background {
            background.started();
        }
        container.container.command.clone_from(&startup.command);
        container.container.exit_code = None;
        warn("how the container is started could not be noted", container.save());
        warn("which images were used could not be noted", history::record(&app.settings.home, &stack));
        control.set_completions(stack.members.iter().filter_map(|member| Some((member.reference.to_string(), member.session.completion()?))).collect());
        if let Some(taker) = taker.clone() {
            control.set_capture(Box::new(move || taker.capture_now().map(|id| id.to_string())));
        }
        let status = running.wait()?;
        control.ending();
        let exit_us = micros(begun);
        let timings = running.timings();
        self.mark(MarkKind::Mounted, timings.mounted_us);
        self.mark(MarkKind::Started, timings.started_us);
        self.mark(MarkKind::Exited, exit_us);
        drop(running);
        if let Some(taker) = &taker {
            states::at_stop(app, &store, container, taker, self.share);
        }
        let traces = finish(app, &store, &stack, app.settings.traces && self.upload_traces && !self.offline);
        let which = startup.image.unwrap_or_else(|| first_named(&stack));
        let recording = self.timeline.as_ref().and_then(|timeline| Some(report::recording(timeline, &stack, which, traces.into_iter().nth(which)?)));
        if let Some(live) = live {
            live.finish();
            recording.iter().for_each(|recording| note(report::summed_up(recording)));
        }
        if let (Some(file), Some(recording)) = (trace_file, &recording) {
            file.write(&recording.encode());
        }
        let exit = exit_of(status);
        if let Some(file) = stats_file {
            let run = total(stack.members.iter().map(|member| member.session.stats()));
            let images = stack.members.iter().map(|member| ImageUsed { name: member.reference.to_string(), digest: member.session.digest() }).collect();
            let entry_point = startup.entry_point;
            let (mount_us, first_process_us, total_us) = (timings.mounted_us, timings.started_us, micros(begun));
            let stats = StatsFile { version: 1, images, entry_point, mount_us, first_process_us, exit_us, total_us, exit_code: exit.code(), run };
            file.write(&serde_json::to_vec_pretty(&stats)?);
        }
        Ok(exit)
    }

    /// The images that this launch needs; `pinned` are those that the container had at its last start.
    pub fn request<'a>(&'a self, pinned: &'a [StateImage]) -> stack::Request<'a> {
        stack::Request {
            pinned,
            pin_images: false,
            images: &self.images,
            using: &self.using,
            trigger: self.trigger.as_deref(),
            startup_file: self.startup_file.as_deref(),
            pull: self.pull,
            offline: self.offline,
            policy: self.policy,
            background: self.background,
            record: self.record,
            timeline: self.timeline.as_ref(),
        }
    }

    fn mark(&self, kind: MarkKind, time_us: u64) {
        if let Some(timeline) = &self.timeline {
            timeline.mark(kind, time_us);
        }
    }

    fn startup(&self, stack: &Stack, host_visible: bool) -> Result<Startup> {
        let images: Vec<_> = stack.members.iter().map(|member| Candidate { role: member.role, manifest: member.manifest() }).collect();
        let trigger = self.trigger.as_deref();
        let wish = Wish { startup_file: self.startup_file.as_deref(), trigger, args: &self.args, host_visible };
        let startup = startup::choose(&images, &wish)?;
        let program = &startup.command[0];
        match startup.image {
            Some(at) => tracing::info!("{} decides what is started: {program}", stack.members[at].reference),
            None => tracing::info!("no image decides what is started: {program}"),
        }
        Ok(startup)
    }

    /// For programs that join.
    fn describe(&self, stack: &Stack, rules: &vm::Rules) -> Description {
        Description {
            images: stack.members.iter().map(|member| (member.role, member.manifest().clone())).collect(),
            variables: stack.layer_manifests().map(|layer| (layer.environment.clone(), layer.environment_isolation.clone())).collect(),
            environment: self.env.clone(),
            startup_file: self.saved_startup_file.clone(),
            host: self.host(rules),
        }
    }

    fn host(&self, rules: &vm::Rules) -> environment::Host {
        environment::Host { visible: host_visible(rules), forced: self.level.mode >= Some(Mode::Full) }
    }

    fn spec(&self, app: &App, container: &Locked, stack: &Stack, startup: &Startup, rules: vm::Rules, begun: Instant) -> Result<RunSpec> {
        let layers: Vec<_> = stack.layer_manifests().map(environment::Stated::from).collect();
        let host = self.host(&rules);
        let from_image = || stack.members[startup.image.unwrap_or_else(|| first_named(stack))].manifest().working_directory.clone().map(PathBuf::from);
        let mut spec = RunSpec::new(container.folder.join("sandbox"), startup.command.iter().map(OsString::from));
        spec.rules = rules;
        spec.beside = startup.beside.iter().map(|command| command.iter().map(OsString::from).collect()).collect();
        spec.env = environment::compose(std::env::vars_os(), &layers, self.env.iter().map(|(name, value)| (name, value)), host);
        (spec.working_dir, spec.working_dir_required) = working_dir(self.working_dir.clone().or_else(from_image), host.visible);
        spec.mounts = self.mounts.clone();
        spec.hidden = vec![app.settings.home.clone()];
        spec.map_root = self.admin;
        // What is here costs no network.
        let all_local = stack.members.iter().all(|member| member.session.is_local());
        spec.max_readahead = if all_local { self.readahead.max(LOCAL_READAHEAD) } else { self.readahead };
        spec.scripts = scripts(stack);
        spec.held = Some(container.lock_file());
        // No container sees what others wrote, nor how they are controlled.
        spec.hidden.extend(container.folder.parent().map(Into::into));
        spec.since = begun;
        Ok(spec)
    }
}

/// The first image of the command line.
fn first_named(stack: &Stack) -> usize {
    stack.members.iter().position(|member| member.role == Role::Image).unwrap_or(0)
}

/// Says once which folders of the host the application may write to though nobody asked for that.
fn tell_opened(opened: &[(String, String)]) {
    if !opened.is_empty() {
        let places: Vec<String> = opened.iter().map(|(path, image)| format!("{path} ({image})")).collect();
        note(format!("images open places of the host for writing: {}; --isolate write-copy keeps the host as it is", places.join(", ")));
    }
}

/// Startup scripts in the order of the stack, shutdown scripts in the opposite one: what an image set up goes last.
fn scripts(stack: &Stack) -> vm::ScriptsOfRun {
    let command = |command: &Vec<String>| command.iter().map(OsString::from).collect();
    let all = || stack.members.iter().map(|member| &member.manifest().scripts);
    vm::ScriptsOfRun {
        startup: all().flat_map(|scripts| &scripts.startup).map(command).collect(),
        shutdown: all().rev().flat_map(|scripts| &scripts.shutdown).map(command).collect(),
    }
}

/// Where a program starts, and whether that must exist: what is stated, else the current directory where the host is seen.
pub fn working_dir(stated: Option<PathBuf>, host_visible: bool) -> (PathBuf, bool) {
    let current = || std::env::current_dir().ok().filter(|_| host_visible).unwrap_or_else(|| PathBuf::from("/"));
    match stated {
        Some(stated) if stated.is_absolute() => (stated, true),
        Some(stated) => (current().join(stated), true),
        None => (current(), false),
    }
}

/// The exit of the command, from that of the application.
pub fn exit_of(status: vm::ExitStatus) -> Exit {
    match (status.code, status.signal) {
        (_, Some(signal)) => Exit::Signal(signal.clamp(0, 127) as u8),
        (code, None) => Exit::Application(code.unwrap_or(0).clamp(0, 255) as u8),
    }
}

fn host_visible(rules: &vm::Rules) -> bool {
    rules.mode(&LayerPath::root()) < Mode::Full
}

/// Ends all sessions, and keeps what they learned; the registry is told behind the user's back. The traces, as the stack's
/// images.
fn finish(app: &App, store: &client_store::Store, stack: &Stack, tell: bool) -> Vec<Trace> {
    let traces: Vec<Trace> = stack.members.iter().map(|member| member.session.finish()).collect();
    let mut left = false;
    for (member, trace) in stack.members.iter().zip(&traces) {
        let repository = &member.reference.repository;
        if let Some(model) = member.session.model() {
            warn("which model was used is not remembered", store.model_put(repository, &model).map_err(Into::into));
        }
        // A run that touched nothing has nothing to tell that the one before it did not.
        if trace.events.is_empty() {
            continue;
        }
        traces::save(&app.settings.home, repository, trace);
        if tell && !member.manifest().no_profiling {
            let trace = anonymous(trace, member.manifest());
            let result = outbox::leave(&app.settings.home, &app.settings.hub, repository, &trace.encode());
            left |= result.is_ok();
            warn("the registry does not learn from this run", result);
        }
    }
    if left {
        warn("the registry does not learn from this run yet", outbox::send_in_background(app));
    }
    traces
}

fn micros(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)
}
