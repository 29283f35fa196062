//! The background of guessing: a best-first search over files. What the application uses is sure; what a file names, or
//! what lies beside it, is less so, and what that names in turn still less. Each file is fetched and, when its bytes are
//! here, read for further names.
//!
//! A step never waits: what a task lacks is asked for, and the task is looked at again when it is here.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap};
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use layer_format::entry::{Entry, Kind};
use layer_format::recipe::Recipe;
use layer_format::{Digest, LayerPath};
use lru::LruCache;

use super::folder::{Folder, home};
use super::libraries::Libraries;
use super::metadata::Metadata;
use super::{Event, File, Ground, Guess, LEAST, SMALL_FILE, elf, words};
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
/// Folders in which words of any file are looked for.
const MAX_BASES: usize = 8;
/// Largest file that is searched for words.
const MAX_TEXT: u64 = 128 << 10;
/// How much of the start of a large file comes along, and of its end if its table of contents is there.
const HEAD: u64 = 64 << 10;
const TAIL: u64 = 128 << 10;
/// Code of programs and libraries up to this size is likely half used.
const SMALL_CODE: u64 = 4 << 20;
const CODE: f32 = 0.5;
/// The program that is started is read more than others.
const SMALL_PROGRAM: u64 = 8 << 20;
/// Tables and relocated data are read by the loader itself.
const EAGER: f32 = 0.85;
const MAX_EAGER: u64 = 2 << 20;
/// Length of a chunk, about.
const TYPICAL_LEN: u32 = 16 << 10;
/// How likely a folder is meant if it is named.
const FOLDER: f32 = 0.8;
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

struct View<'a>(&'a Guess, &'a Recipe);

impl elf::View for View<'_> {
    fn bytes(&self, range: Range<u64>) -> Option<Vec<u8>> {
        self.0.nodes.local_content(self.1, range).ok()
    }
}

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

    /// Fetches a file as far as it is expected to be read, and reads what it names.
    fn file(&mut self, file: &File, ground: Option<Ground>, chain: f32) -> Result<(), Lacks> {
        let probability = match ground {
            None | Some(Ground::Library) => chain,
            Some(ground) => chain * self.guess.inner.lock().likely(file, ground),
        };
        let known = self.expected.get(file).copied().unwrap_or_default();
        if probability <= known || probability < LEAST || !self.admits(probability) {
            return Ok(());
        }
        let Some(Entry { kind: Kind::File(recipe), meta, .. }) = self.entry(file)? else { return Ok(()) };
        let len = recipe.len();
        let head = if len <= SMALL_FILE { len } else { HEAD };
        if let Some(ground) = ground {
            self.guess.inner.lock().guess(file.clone(), ground);
        }
        self.bring(&recipe, 0..head, probability)?;
        if len > SMALL_FILE && (meta.mode & 0o111 != 0 || words::kind(file.1.name()) == b"so") {
            // What the loader reads of a program or library next stands at its end: no need to wait for its start to tell so.
            self.bring(&recipe, len.saturating_sub(TAIL)..len, probability * EAGER)?;
        }
        let start = self.guess.nodes.local_content(&recipe, 0..head.min(MAX_TEXT))?;
        if let Some(elf) = elf::head(&start) {
            // What was touched may be large and hardly read; a program that the launch begins with is read.
            let sure = if ground.is_none() { probability.min(STEP) } else { probability };
            self.program(&file.1, &recipe, &elf, sure)?;
        } else if start.starts_with(b"#!") {
            let paths = words::interpreter(&start).into_iter().filter_map(|part| LayerPath::from_absolute(part).ok());
            paths.take(1).for_each(|path| self.add(probability * STEP, What::Library(vec![path])));
        }
        if len <= MAX_TEXT && !start.starts_with(b"\x7fELF") {
            self.named(file, &start, probability)?;
        } else if matches!(&words::kind(file.1.name())[..], b"zip" | b"jar" | b"whl" | b"egg") {
            self.bring(&recipe, len.saturating_sub(HEAD)..len, probability)?;
        }
        self.expected.insert(file.clone(), probability);
        Ok(())
    }

    /// Asks for a part of a file. `Err` if a recipe node is needed to know of what.
    fn bring(&mut self, recipe: &Recipe, range: Range<u64>, probability: f32) -> Result<(), Lacks> {
        let found = self.guess.nodes.local_chunks(recipe, range);
        let probability = probability.min(STEP);
        self.candidates.extend(found.chunks.iter().map(|(_, chunk)| Candidate { digest: chunk.digest, len: chunk.len, probability, within_us: 0 }));
        found.needs.map_or(Ok(()), Err)
    }

    /// An ELF file: the parts that the loader reads, and the libraries that it names.
    fn program(&mut self, path: &LayerPath, recipe: &Recipe, elf: &elf::Head, probability: f32) -> Result<(), Lacks> {
        for segment in &elf.segments {
            let end = segment.end.min(recipe.len());
            match segment.eager {
                true => self.bring(recipe, segment.start..end.min(segment.start.saturating_add(MAX_EAGER)), probability * EAGER)?,
                false if recipe.len() <= SMALL_CODE || (probability >= 1.0 && recipe.len() <= SMALL_PROGRAM) => {
                    self.bring(recipe, segment.start..end, probability * CODE)?
                }
                false => {}
            }
        }
        let names = match elf.names(&View(self.guess, recipe)) {
            Ok(names) => names,
            Err(range) => {
                self.bring(recipe, range.clone(), probability)?;
                // Whatever of it is not here.
                return self.guess.nodes.local_content(recipe, range).map(drop);
            }
        };
        let interpreter = names.interpreter.as_deref().and_then(|path| LayerPath::from_absolute(path).ok());
        interpreter.into_iter().for_each(|path| self.add(probability * STEP, What::Library(vec![path])));
        for library in &names.needed {
            self.add(probability * STEP, What::Library(Libraries::paths(path, &names, library)));
        }
        Ok(())
    }

    /// Looks for the words of a file among what lies beside it, above it, and where packages lie.
    fn named(&mut self, file: &File, content: &[u8], probability: f32) -> Result<(), Lacks> {
        let layer = file.0;
        let own = home(&file.1);
        let mut places = vec![((layer, own.clone()), Ground::Named)];
        // Up to the folder of the package that the file is part of.
        let mut at = own;
        for _ in 0..8 {
            if !self.folder(&(layer, at.clone()))?.is_part() {
                break;
            }
            let Some(parent) = at.parent() else { break };
            places.push(((layer, parent.clone()), Ground::NamedFar));
            at = parent;
        }
        let base = (layer, at);
        if probability >= 1.0 {
            self.base(base);
        }
        for base in self.bases.clone() {
            if !places.iter().any(|(place, _)| *place == base) {
                places.push((base, Ground::NamedFar));
            }
        }
        let mut folders = Vec::with_capacity(places.len());
        for (place, ground) in places {
            folders.push((place.0, self.folder(&place)?, ground));
        }
        for word in words::words(content) {
            for (layer, folder, ground) in &folders {
                for item in folder.named(word) {
                    let at = (*layer, item.path.clone());
                    match item.is_directory {
                        true => self.add(probability * FOLDER, What::Folder(at)),
                        false => self.add(probability * STEP, What::File(at, Some(*ground))),
                    }
                }
            }
        }
        Ok(())
    }

    fn base(&mut self, directory: File) {
        if !self.bases.contains(&directory) {
            self.bases.insert(0, directory);
            self.bases.truncate(MAX_BASES);
        }
    }

    /// The small files beside one that is used, while the link has nothing better to do.
    fn beside(&mut self, file: &File) -> Result<(), Lacks> {
        let (Some(directory), Some(root)) = (file.1.parent(), self.guess.roots.get(usize::from(file.0))) else { return Ok(()) };
        let kind = words::kind(file.1.name());
        let entries = match self.guess.nodes.local_children(root, &directory, super::MAX_CHILDREN) {
            Look::Found(entries) => entries,
            Look::Absent => return Ok(()),
            Look::Needs(digest) => return Err(digest),
        };
        let near = {
            let mut inner = self.guess.inner.lock();
            inner.size((file.0, directory), entries.len());
            inner.likely(file, Ground::Neighbour) * STEP
        };
        if near < LEAST || !self.admits(near) {
            return Ok(());
        }
        for entry in entries {
            let same = entry.path != file.1 && entry.len() <= SMALL_FILE && words::kind(entry.path.name()) == kind;
            let other = (file.0, entry.path);
            if same && matches!(entry.kind, Kind::File(_)) && !self.expected.contains_key(&other) {
                self.add(STEP, What::File(other, Some(Ground::Neighbour)));
            }
        }
        Ok(())
    }
}
