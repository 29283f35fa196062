//! The background of guessing: a best-first search over files. What the application uses is sure; what a file names, or
//! what lies beside it, is less so, and what that names in turn still less. Each file is fetched and, when its bytes are
//! here, read for further names.
//!
//! A step never waits: what a task lacks is asked for, and the task is looked at again when it is here.

mod files;

use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use layer_format::entry::Entry;
use layer_format::{Digest, LayerPath};
use lru::LruCache;

use super::folder::Folder;
use super::libraries::Libraries;
use super::metadata::Metadata;
use super::{Event, File, Ground, Guess, LEAST};
use crate::fetch::Candidate;
use crate::prefetch::NODE_LEN;
use crate::reader::Look;

/// How often what is lacking is looked for, and for how long.
const LOOK_AGAIN: Duration = Duration::from_millis(10);
const PATIENCE: Duration = Duration::from_secs(10);
/// Tasks of a turn, so that news of the application is heard between.
const TURN: usize = 32;
/// Objects that wait to be prefetched at which no more are added: the likelier ones that come later go first.
const ENOUGH_QUEUED: usize = 512;
/// Most tasks that wait.
const MAX_TASKS: usize = 1 << 15;
/// Directories whose names are known by heart.
const MAX_FOLDERS: usize = 512;
/// Length of a chunk, about.
const TYPICAL_LEN: u32 = 16 << 10;
/// A guess is this much less likely than what it follows from.
const STEP: f32 = 0.95;

#[derive(Clone, Debug)]
enum What {
    /// A file, and why it is expected; `None`: the application uses it.
    File(File, Option<Ground>),
    /// What stands for a directory that was named.
    Folder(File),
    /// A directory in which programs may look for what they are told by name.
    Base(File),
    /// What lies beside a file that is used.
    Beside(File),
    /// A library, at the first of these paths at which there is one, or in a configured folder.
    Library(Vec<LayerPath>),
    /// The same in a configured folder.
    Configured(Vec<u8>),
}

#[derive(Clone, Debug)]
struct Task {
    probability: f32,
    number: u64,
    what: What,
}

impl PartialEq for Task {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Task {}

impl PartialOrd for Task {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Task {
    /// The likelier; of equals the older.
    fn cmp(&self, other: &Self) -> Ordering {
        self.probability.total_cmp(&other.probability).then(other.number.cmp(&self.number))
    }
}

struct Waiting {
    task: Task,
    lacks: Digest,
    until: Instant,
}

/// The state of the thread that guesses.
pub(crate) struct Engine<'a> {
    guess: &'a Guess,
    tasks: BinaryHeap<Task>,
    waiting: Vec<Waiting>,
    next: u64,
    /// How surely each file was expected when it was looked at.
    expected: HashMap<File, f32>,
    folders: LruCache<File, Arc<Folder>>,
    bases: Vec<File>,
    libraries: Libraries,
    metadata: Metadata,
    candidates: Vec<Candidate>,
}

/// What a task that cannot go on lacks.
type Lacks = Digest;

impl<'a> Engine<'a> {
    pub(crate) fn new(guess: &'a Guess) -> Self {
        Self {
            guess,
            tasks: BinaryHeap::new(),
            waiting: Vec::new(),
            next: 0,
            expected: HashMap::new(),
            folders: LruCache::new(std::num::NonZeroUsize::new(MAX_FOLDERS).unwrap_or(std::num::NonZeroUsize::MIN)),
            bases: Vec::new(),
            libraries: Libraries::default(),
            metadata: Metadata::new(&guess.roots),
            candidates: Vec::new(),
        }
    }

    pub(crate) fn run(mut self) {
        self.work();
        self.guess.inner.lock().tell();
    }

    fn work(&mut self) {
        let mut seeded = false;
        while let Some(events) = self.wait() {
            if !self.guess.is_active() {
                continue;
            }
            if !std::mem::replace(&mut seeded, true) {
                let seeds = self.guess.seeds.clone();
                seeds.into_iter().for_each(|paths| self.add(1.0, What::Library(paths)));
            }
            events.into_iter().for_each(|event| self.heard(event));
            self.turn();
        }
    }

    /// Waits for something to do; `None` at the end.
    fn wait(&mut self) -> Option<Vec<Event>> {
        let guess = self.guess;
        let mut inner = guess.inner.lock();
        let idle = self.tasks.is_empty() && self.waiting.is_empty() && self.metadata.is_done();
        if inner.events.is_empty() && !inner.closing {
            match (inner.is_active && !idle, self.candidates.is_empty()) {
                (true, _) => drop(guess.work.wait_for(&mut inner, LOOK_AGAIN)),
                (false, _) => guess.work.wait(&mut inner),
            }
        }
        inner.judge(Instant::now());
        (!inner.closing).then(|| inner.events.drain(..).collect())
    }

    fn heard(&mut self, event: Event) {
        match event {
            Event::Touched(file) => {
                self.metadata.focus(&file);
                self.add(1.0, What::Beside(file.clone()));
                self.add(1.0, What::File(file, None));
            }
            Event::Looked(path) => self.metadata.focus(&path),
            Event::Listed(directory) => self.add(1.0, What::Base(directory)),
        }
    }

    fn add(&mut self, probability: f32, what: What) {
        if probability >= LEAST && self.tasks.len() + self.waiting.len() < MAX_TASKS {
            self.next += 1;
            self.tasks.push(Task { probability, number: self.next, what });
        }
    }

    fn turn(&mut self) {
        let now = Instant::now();
        let fetcher = Arc::clone(self.guess.nodes.fetcher());
        let waiting = std::mem::take(&mut self.waiting);
        for Waiting { task, lacks, until } in waiting {
            match fetcher.is_here(&lacks) {
                true => self.tasks.push(task),
                false if until > now => self.waiting.push(Waiting { task, lacks, until }),
                false => {}
            }
        }
        let queued = fetcher.gauges().prefetches;
        for _ in 0..TURN {
            // What is certain is looked at in any case: it is little.
            let Some(task) = self.tasks.peek().filter(|task| task.probability >= 1.0 || queued < ENOUGH_QUEUED) else { break };
            let task = task.clone();
            self.tasks.pop();
            if let Err(lacks) = self.attend(&task) {
                if !self.candidates.iter().any(|candidate| candidate.digest == lacks) {
                    self.candidates.push(Candidate { digest: lacks, len: NODE_LEN, probability: task.probability.min(STEP), within_us: 0 });
                }
                self.waiting.push(Waiting { task, lacks, until: now + PATIENCE });
            }
        }
        if queued < ENOUGH_QUEUED {
            self.metadata.step(&self.guess.nodes, &fetcher, &mut self.candidates);
        }
        if !self.candidates.is_empty() {
            fetcher.prefetch(std::mem::take(&mut self.candidates), false);
        }
    }

    fn attend(&mut self, task: &Task) -> Result<(), Lacks> {
        match &task.what {
            What::File(file, ground) => self.file(file, *ground, task.probability),
            What::Folder(directory) => {
                let folder = self.folder(directory)?;
                let layer = directory.0;
                folder.itself().for_each(|item| self.add(task.probability * STEP, What::File((layer, item.path.clone()), Some(Ground::Named))));
                Ok(())
            }
            What::Base(directory) => {
                if !self.folder(directory)?.is_part() {
                    self.base(directory.clone());
                }
                Ok(())
            }
            What::Beside(file) => self.beside(file),
            What::Library(paths) => {
                if !self.first_of(paths, task.probability)?
                    && let Some(path) = paths.last().filter(|_| paths.len() > 1)
                {
                    self.add(task.probability, What::Configured(path.name().to_vec()));
                }
                Ok(())
            }
            What::Configured(name) => match self.libraries.configured(&self.guess.nodes, &self.guess.roots, name) {
                Look::Found(paths) => self.first_of(&paths, task.probability).map(drop),
                Look::Absent => Ok(()),
                Look::Needs(digest) => Err(digest),
            },
        }
    }

    /// Expects the file at the first of these paths at which there is one. Says whether there is.
    fn first_of(&mut self, paths: &[LayerPath], probability: f32) -> Result<bool, Lacks> {
        for path in paths {
            match self.guess.nodes.local_file(&self.guess.roots, path) {
                Look::Found((layer, entry)) => {
                    self.add(probability, What::File((layer, entry.path), Some(Ground::Library)));
                    return Ok(true);
                }
                Look::Absent => {}
                Look::Needs(digest) => return Err(digest),
            }
        }
        Ok(false)
    }

    fn entry(&self, (layer, path): &File) -> Result<Option<Entry>, Lacks> {
        let Some(root) = self.guess.roots.get(usize::from(*layer)) else { return Ok(None) };
        match self.guess.nodes.local_entry(root, path) {
            Look::Found(entry) => Ok(Some(entry)),
            Look::Absent => Ok(None),
            Look::Needs(digest) => Err(digest),
        }
    }

    /// Whether anything that is so likely is fetched at the moment; if not, it may be looked at again later.
    fn admits(&self, probability: f32) -> bool {
        self.guess.nodes.fetcher().admission()(TYPICAL_LEN, probability)
    }

    fn folder(&mut self, directory: &File) -> Result<Arc<Folder>, Lacks> {
        if let Some(folder) = self.folders.get(directory) {
            return Ok(Arc::clone(folder));
        }
        let Some(root) = self.guess.roots.get(usize::from(directory.0)) else { return Ok(Arc::default()) };
        let folder = match Folder::look(&self.guess.nodes, root, &directory.1) {
            Look::Found(folder) => Arc::new(folder),
            Look::Absent => Arc::default(),
            Look::Needs(digest) => return Err(digest),
        };
        self.folders.put(directory.clone(), Arc::clone(&folder));
        Ok(folder)
    }
}
