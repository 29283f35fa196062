//! What to fetch of a file that is expected, and what it leads to.

use std::ops::Range;

use layer_format::LayerPath;
use layer_format::entry::{Entry, Kind};
use layer_format::recipe::Recipe;

use super::super::folder::home;
use super::super::libraries::Libraries;
use super::super::{File, Ground, Guess, LEAST, MAX_CHILDREN, SMALL_FILE, elf, words};
use super::{Engine, Lacks, STEP, What};
use crate::fetch::Candidate;
use crate::reader::Look;

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
/// How likely a folder is meant if it is named.
const FOLDER: f32 = 0.8;

struct View<'a>(&'a Guess, &'a Recipe);

impl elf::View for View<'_> {
    fn bytes(&self, range: Range<u64>) -> Option<Vec<u8>> {
        self.0.nodes.local_content(self.1, range).ok()
    }
}

impl Engine<'_> {
    /// Fetches a file as far as it is expected to be read, and reads what it names.
    pub(super) fn file(&mut self, file: &File, ground: Option<Ground>, chain: f32) -> Result<(), Lacks> {
        let probability = match ground {
            None | Some(Ground::Library) => chain,
            Some(ground) => chain * self.guess.inner.lock().likely(file, ground),
        };
        let known = self.expected.get(file).copied().unwrap_or_default();
        if probability <= known || probability < LEAST {
            return Ok(());
        }
        // What is not worth fetching may be here all the same, and is read for names then.
        let admitted = self.admits(probability);
        let Some(Entry { kind: Kind::File(recipe), meta, .. }) = self.entry(file)? else { return Ok(()) };
        let len = recipe.len();
        let head = if len <= SMALL_FILE { len } else { HEAD };
        if let Some(ground) = ground.filter(|_| admitted) {
            self.guess.inner.lock().guess(file.clone(), ground);
        }
        if admitted {
            self.bring(&recipe, 0..head, probability)?;
        }
        if admitted && len > SMALL_FILE && (meta.mode & 0o111 != 0 || words::kind(file.1.name()) == b"so") {
            // What the loader reads of a program or library next stands at its end: no need to wait for its start to tell so.
            self.bring(&recipe, len.saturating_sub(TAIL)..len, probability * EAGER)?;
        }
        let start = match self.guess.nodes.local_content(&recipe, 0..head.min(MAX_TEXT)) {
            Ok(start) => start,
            Err(_) if !admitted => return Ok(()),
            Err(lacks) => return Err(lacks),
        };
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

    pub(super) fn base(&mut self, directory: File) {
        if !self.bases.contains(&directory) {
            self.bases.insert(0, directory);
            self.bases.truncate(MAX_BASES);
        }
    }

    /// The small files beside one that is used, while the link has nothing better to do.
    pub(super) fn beside(&mut self, file: &File) -> Result<(), Lacks> {
        let (Some(directory), Some(root)) = (file.1.parent(), self.guess.roots.get(usize::from(file.0))) else { return Ok(()) };
        let kind = words::kind(file.1.name());
        let entries = match self.guess.nodes.local_children(root, &directory, MAX_CHILDREN) {
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
