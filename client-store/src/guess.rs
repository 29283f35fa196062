//! What to fetch ahead of use when no model tells: guesses from the shape of an image and of its files.
//!
//! * A miss in a file brings the rest of it if it is small, else a window that grows while it is used ([`window`]), and
//!   the files beside it, small ones of the same kind first.
//! * Files name the files that they use: libraries in ELF files ([`elf`]), interpreters of scripts, modules of programs
//!   ([`words`]). Guesses lead to guesses ([`engine`]), the likeliest first, long before the application comes to them.
//! * Tree and recipe nodes come in the background, those near what is touched first ([`metadata`]).
//!
//! How likely a guess is follows what became of those before it in this run, by directory, kind of file and ground
//! ([`ratio`]). All of it is policy: it names objects with probabilities; admission, order, waste budget and single
//! flight are the fetcher's. What it says wrongly costs bytes within that budget, nothing else.

mod elf;
mod engine;
mod folder;
mod libraries;
mod metadata;
mod ratio;
mod window;
mod words;

use std::collections::{HashMap, HashSet, VecDeque};
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use layer_format::entry::{Entry, Kind};
use layer_format::recipe::Recipe;
use layer_format::trace::{BUCKET_LEN, Touch};
use layer_format::{Digest, LayerPath};
use parking_lot::{Condvar, Mutex};

use crate::fetch::{Candidate, Room, SURE};
use crate::prefetch::NODE_LEN;
use crate::reader::{Look, Nodes};
use ratio::Ratios;
use window::Windows;

/// Files of at most this many bytes are likely read as a whole.
pub(crate) const SMALL_FILE: u64 = 256 << 10;
/// How likely the rest of a small file is needed, the rest of a window, and that of a file of middle size.
const WHOLE_FILE: f32 = SURE;
/// The same where only what is nearly sure may be fetched: nine tenths of the bytes of small files that are read at all are.
const WHOLE_FILE_STRICT: f32 = 0.95;
const WINDOW: f32 = 0.55;
const MIDDLE: f32 = SURE;
/// Files up to this size come whole if they are a small part of what arrives in a round trip: more than half of them is
/// read by most that read them at all.
const MIDDLE_FILE: u64 = 1 << 20;
/// What is less likely is not fetched.
const LEAST: f32 = 0.08;
/// A guess that was not used for this long counts as wrong, until it is used.
const JUDGED_AFTER: Duration = Duration::from_millis(1500);
/// Kinds of files that are modules of programs, and the most entries of the folder of a package.
const MODULES: [&[u8]; 12] = [b"pyc", b"py", b"js", b"mjs", b"cjs", b"rb", b"pm", b"pl", b"lua", b"php", b"class", b"tcl"];
const PACKAGE: usize = 64;
/// Misses in one directory from which on much more of it comes along.
const KNOWN_MISSES: u32 = 2;
/// Most events that wait, and most files of which is known whether they were touched.
const MAX_EVENTS: usize = 8192;
const MAX_FILES: usize = 1 << 17;
/// Most entries of a directory that are looked at.
pub(crate) const MAX_CHILDREN: usize = 2048;

/// Why a file is expected to be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Ground {
    /// It lies beside one that is used.
    Neighbour,
    /// One that is used, or expected to be, names it, and lies beside it.
    Named,
    /// The same, from elsewhere.
    NamedFar,
    /// The loader will need it.
    Library,
}

impl Ground {
    /// How likely, for a file of this kind, before anything is known of this run.
    fn prior(self, kind: &[u8], is_package: bool) -> f32 {
        match self {
            // Of libraries in a folder few are used, of the modules of a package most, of those of a whole language some.
            Self::Neighbour if kind == b"so" => 0.15,
            Self::Neighbour if is_package && MODULES.contains(&kind) => 0.5,
            Self::Neighbour => 0.2,
            Self::Named => 0.5,
            Self::NamedFar => 0.35,
            Self::Library => 0.9,
        }
    }
}

/// A file of a layer.
pub(crate) type File = (u8, LayerPath);

/// Files of a kind in a directory of a layer.
type OfDirectory = (u8, LayerPath, Vec<u8>);
/// Files of a kind, whether in directories as small as a package's, expected for this reason.
type OfKind = (Vec<u8>, bool, Ground);

#[derive(Debug)]
enum Event {
    /// The application used a file for the first time.
    Touched(File),
    /// The application looked for something here.
    Looked(File),
    /// It listed this directory.
    Listed(File),
}

#[derive(Debug)]
struct Guessed {
    ground: Ground,
    at: Instant,
    judged: bool,
}

#[derive(Debug)]
struct Inner {
    events: VecDeque<Event>,
    touched: HashSet<File>,
    guessed: HashMap<File, Guessed>,
    unjudged: VecDeque<File>,
    /// Of files of a kind in a directory, used ones to all that were used or guessed.
    by_directory: Ratios<OfDirectory>,
    by_kind: Ratios<OfKind>,
    /// How many entries the directories have that were looked at.
    sizes: HashMap<File, usize>,
    misses: HashMap<File, u32>,
    windows: Windows,
    is_active: bool,
    closing: bool,
}

/// Guesses for the layers of one image.
pub struct Guess {
    nodes: Arc<Nodes>,
    /// Roots of the layers' trees, lowest first.
    roots: Vec<Digest>,
    /// Files that the launch begins with, each at the first of some paths at which there is one.
    seeds: Vec<Vec<LayerPath>>,
    /// Whether anything is watched at all: not if all is local.
    is_enabled: bool,
    inner: Mutex<Inner>,
    work: Condvar,
}

impl std::fmt::Debug for Guess {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let inner = self.inner.lock();
        f.debug_struct("Guess").field("active", &inner.is_active).field("guessed", &inner.guessed.len()).finish_non_exhaustive()
    }
}

impl Guess {
    /// For the layers with these roots, lowest first. `seeds` are files that the launch begins with, each at the first of
    /// some absolute paths at which there is one.
    pub fn new(nodes: Arc<Nodes>, roots: Vec<Digest>, seeds: Vec<Vec<LayerPath>>) -> Self {
        let inner = Inner {
            events: VecDeque::new(),
            touched: HashSet::new(),
            guessed: HashMap::new(),
            unjudged: VecDeque::new(),
            by_directory: Ratios::new(4.0),
            by_kind: Ratios::new(8.0),
            sizes: HashMap::new(),
            misses: HashMap::new(),
            windows: Windows::default(),
            is_active: false,
            closing: false,
        };
        Self { nodes, roots, seeds, is_enabled: true, inner: Mutex::new(inner), work: Condvar::new() }
    }

    /// For a run that needs no network: watches nothing, and guesses nothing.
    pub fn disabled(nodes: Arc<Nodes>) -> Self {
        Self { is_enabled: false, ..Self::new(nodes, Vec::new(), Vec::new()) }
    }

    /// Whether guesses are made in the background, and of what lies beside a miss: while no model tells better.
    pub fn set_active(&self, is_active: bool) {
        self.inner.lock().is_active = is_active;
        self.work.notify_one();
    }

    /// Whether they are.
    pub fn is_active(&self) -> bool {
        self.inner.lock().is_active
    }

    /// Ends [`Guess::run`].
    pub fn close(&self) {
        self.inner.lock().closing = true;
        self.work.notify_one();
    }

    /// Guesses in the background until closed. To be called on a thread of its own.
    pub fn run(&self) {
        engine::Engine::new(self).run();
    }

    /// The application touched this for the first time.
    pub fn touched(&self, layer: u8, path: &LayerPath, touch: Touch) {
        if touch == Touch::Meta || !self.is_enabled {
            return;
        }
        let mut inner = self.inner.lock();
        inner.windows.touched(layer, path, BUCKET_LEN);
        let file = (layer, path.clone());
        if inner.touched.len() >= MAX_FILES || !inner.touched.insert(file.clone()) {
            return;
        }
        inner.turned_out(&file);
        inner.event(Event::Touched(file));
        drop(inner);
        self.work.notify_one();
    }

    /// The application lists this directory.
    pub fn listed(&self, layer: u8, directory: &LayerPath) {
        if self.is_enabled {
            self.inner.lock().event(Event::Listed((layer, directory.clone())));
            self.work.notify_one();
        }
    }

    /// The application looked for something at this path.
    pub fn looked(&self, layer: u8, path: &LayerPath) {
        if !self.is_enabled {
            return;
        }
        let mut inner = self.inner.lock();
        if inner.is_active {
            inner.event(Event::Looked((layer, path.clone())));
            drop(inner);
            self.work.notify_one();
        }
    }

    /// What should come along with the bytes `missed` of the file `path`.
    pub fn at_miss(&self, layer: u8, path: &LayerPath, recipe: &Recipe, missed: Range<u64>, room: Room) -> Vec<Candidate> {
        let len = recipe.len();
        let (range, probability) = match len {
            ..=SMALL_FILE if self.nodes.fetcher().is_strict() => (0..len, WHOLE_FILE_STRICT),
            ..=SMALL_FILE => (0..len, WHOLE_FILE),
            _ if len <= MIDDLE_FILE.min(room.read_ahead / 2) => (0..len, MIDDLE),
            _ => {
                let (range, is_dense) = self.inner.lock().windows.at_miss(layer, path, &missed, len, room.read_ahead);
                (range, if is_dense { WHOLE_FILE } else { WINDOW })
            }
        };
        let mut candidates = Vec::new();
        let found = self.nodes.local_chunks(recipe, range);
        candidates.extend(found.needs.map(|digest| Candidate { digest, len: NODE_LEN, probability, within_us: 0 }));
        candidates.extend(found.chunks.iter().map(|(_, chunk)| Candidate { digest: chunk.digest, len: chunk.len, probability, within_us: 0 }));
        if self.is_active() {
            self.beside(layer, path, len, room.read_ahead, &mut candidates);
        }
        candidates
    }

    /// The small files of its kind in the directory of `path`, as far as its nodes are here, the smallest first. A program that reads one of many files (modules, locales, icons) tends to read others beside it.
    fn beside(&self, layer: u8, path: &LayerPath, len: u64, mut room: u64, candidates: &mut Vec<Candidate>) {
        let (Some(directory), Some(root)) = (path.parent(), self.roots.get(usize::from(layer))) else { return };
        let Look::Found(entries) = self.nodes.local_children(root, &directory, MAX_CHILDREN) else { return };
        let kind = words::kind(path.name());
        let admits = self.nodes.fetcher().admission();
        let mut inner = self.inner.lock();
        inner.size((layer, directory.clone()), entries.len());
        let misses = inner.misses.entry((layer, directory.clone())).or_default();
        *misses += 1;
        let many = *misses > KNOWN_MISSES;
        let most = if many { SMALL_FILE } else { SMALL_FILE.min(len.max(32 << 10) * 2) };
        let mut likely: Vec<(&Entry, &Recipe)> = Vec::new();
        for entry in &entries {
            let Kind::File(recipe) = &entry.kind else { continue };
            if entry.path != *path && recipe.len() <= most && words::kind(entry.path.name()) == kind {
                likely.push((entry, recipe));
            }
        }
        likely.sort_by_key(|(_, recipe)| recipe.len());
        for (entry, recipe) in likely {
            let file = (layer, entry.path.clone());
            if inner.touched.contains(&file) {
                continue;
            }
            let probability = inner.likely(&file, Ground::Neighbour);
            let chunks = self.nodes.local_chunks(recipe, 0..recipe.len()).chunks;
            let Some((_, first)) = chunks.first().filter(|(_, chunk)| admits(chunk.len, probability)) else { continue };
            if self.nodes.fetcher().is_here(&first.digest) {
                continue;
            }
            let Some(left) = room.checked_sub(recipe.len()) else { return };
            room = left;
            inner.guess(file, Ground::Neighbour);
            candidates.extend(chunks.iter().map(|(_, chunk)| Candidate { digest: chunk.digest, len: chunk.len, probability, within_us: 0 }));
        }
    }
}

impl Inner {
    fn event(&mut self, event: Event) {
        if self.events.len() < MAX_EVENTS {
            self.events.push_back(event);
        }
    }

    /// How likely the file is used, if there is this ground to expect it.
    fn likely(&self, (layer, path): &File, ground: Ground) -> f32 {
        let (directory, of_kind) = self.kinds(&(*layer, path.clone()), ground);
        let prior = ground.prior(&of_kind.0, of_kind.1);
        self.by_directory.get(&directory, self.by_kind.get(&of_kind, prior))
    }

    /// The file will be fetched for this reason.
    fn guess(&mut self, file: File, ground: Ground) {
        if self.guessed.len() < MAX_FILES && !self.touched.contains(&file) && !self.guessed.contains_key(&file) {
            self.unjudged.push_back(file.clone());
            self.guessed.insert(file, Guessed { ground, at: Instant::now(), judged: false });
        }
    }

    fn kinds(&self, (layer, path): &File, ground: Ground) -> (OfDirectory, OfKind) {
        let (kind, directory) = (words::kind(path.name()), path.parent().unwrap_or_default());
        let is_package = self.sizes.get(&(*layer, directory.clone())).is_none_or(|size| *size <= PACKAGE);
        ((*layer, directory, kind.clone()), (kind, is_package, ground))
    }

    /// A directory has so many entries.
    fn size(&mut self, directory: File, entries: usize) {
        if self.sizes.len() < MAX_FILES {
            self.sizes.insert(directory, entries);
        }
    }

    /// A file that may have been guessed is used.
    fn turned_out(&mut self, file: &File) {
        let ground = self.guessed.get(file).map_or(Ground::Neighbour, |guessed| guessed.ground);
        let (directory, kind) = self.kinds(file, ground);
        let Some(guessed) = self.guessed.get_mut(file) else { return self.by_directory.add(directory, true) };
        if std::mem::replace(&mut guessed.judged, true) {
            self.by_directory.was_right(&directory);
            self.by_kind.was_right(&kind);
        } else {
            self.by_directory.add(directory, true);
            self.by_kind.add(kind, true);
        }
    }

    /// For whoever looks for the reason of a bad guess.
    fn tell(&self) {
        for ground in [Ground::Neighbour, Ground::Named, Ground::NamedFar, Ground::Library] {
            let files = || self.guessed.iter().filter(|(_, guessed)| guessed.ground == ground).map(|(file, _)| file);
            let right = files().filter(|file| self.touched.contains(*file)).count();
            tracing::debug!(?ground, guessed = files().count(), right, "guesses of files");
        }
    }

    /// Guesses that were not used for a while count as wrong.
    fn judge(&mut self, now: Instant) {
        while let Some(file) = self.unjudged.front().cloned() {
            let Some(guessed) = self.guessed.get_mut(&file) else { return };
            if now.saturating_duration_since(guessed.at) < JUDGED_AFTER {
                return;
            }
            if !std::mem::replace(&mut guessed.judged, true) {
                let ground = guessed.ground;
                let (directory, kind) = self.kinds(&file, ground);
                self.by_directory.add(directory, false);
                self.by_kind.add(kind, false);
            }
            self.unjudged.pop_front();
        }
    }
}
