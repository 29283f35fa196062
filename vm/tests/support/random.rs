//! Random operations on files in directories of all modes, against a model that knows nothing but the table of modes.
//!
//! Several processes work at the same time, each on names of its own in the same directories. What a process does depends
//! on its seed alone, so the model can be made again outside, where the host is compared with it.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The directories, named after their modes; the third lies within the union of the last.
pub(crate) const DIRECTORIES: [&str; 4] = ["full", "write-copy", "merge/write-copy", "merge"];
/// How many processes there are.
pub(crate) const PROCESSES: u64 = 4;
const NAMES: u64 = 6;
const OPERATIONS: usize = 600;

/// What is under one name of one directory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Name {
    layer: Option<String>,
    host: Option<String>,
    /// `Some(None)` is a tombstone.
    sandbox: Option<Option<String>>,
}

/// Directory and name.
type Key = (usize, u64);

#[derive(Clone, Debug)]
enum Operation {
    Read,
    Append,
    Replace,
    Delete,
    Rename(Key),
    /// A new file under another name takes the place of this one.
    Save,
    List,
}

struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }

    fn key(&mut self) -> Key {
        (self.below(DIRECTORIES.len() as u64) as usize, self.below(NAMES))
    }
}

/// What one process believes.
pub(crate) struct Model {
    process: u64,
    names: BTreeMap<Key, Name>,
}

/// Whether a layer, and whether the host, has a name at first.
pub(crate) fn at_first(process: u64, key: Key) -> (bool, bool) {
    let (directory, name) = (key.0 as u64, key.1);
    ((process + directory + name).is_multiple_of(3), (process + name).is_multiple_of(2))
}

/// All names of all processes, below the directory that has all others.
pub(crate) fn all_keys() -> impl Iterator<Item = (u64, Key, String)> {
    let keys = (0..PROCESSES).flat_map(|process| (0..DIRECTORIES.len()).flat_map(move |directory| (0..NAMES).map(move |name| (process, (directory, name)))));
    keys.map(|(process, key)| (process, key, path(process, key)))
}

fn path(process: u64, key: Key) -> String {
    format!("{}/p{process}-{}", DIRECTORIES[key.0], key.1)
}

impl Name {
    fn is_virtual(&self) -> bool {
        self.layer.is_some() || self.sandbox.is_some()
    }

    fn seen(&self, directory: usize) -> Option<&String> {
        match &self.sandbox {
            Some(found) => found.as_ref(),
            None => self.layer.as_ref().or(self.host.as_ref().filter(|_| directory != 0)),
        }
    }

    fn put(&mut self, directory: usize, content: String) {
        if DIRECTORIES[directory] == "merge" && !self.is_virtual() {
            self.host = Some(content);
        } else {
            self.sandbox = Some(Some(content));
        }
    }

    fn remove(&mut self, directory: usize) {
        if DIRECTORIES[directory] == "merge" && !self.is_virtual() {
            self.host = None;
        } else {
            // Where nothing is below, a tombstone means nothing, and is not made.
            let below = self.layer.is_some() || (self.host.is_some() && directory != 0);
            self.sandbox = below.then_some(None);
        }
    }
}

impl Model {
    fn new(process: u64) -> Self {
        let one = |key: Key| {
            let (layer, host) = at_first(process, key);
            (key, Name { layer: layer.then(|| "layer".to_owned()), host: host.then(|| "host".to_owned()), sandbox: None })
        };
        let keys = (0..DIRECTORIES.len()).flat_map(|directory| (0..NAMES).map(move |name| (directory, name)));
        Self { process, names: keys.map(one).collect() }
    }

    /// The model after all operations; with `root`, each is done there and compared.
    pub(crate) fn run(process: u64, seed: u64, root: Option<&Path>) -> Self {
        let mut model = Self::new(process);
        let mut random = Random(seed.wrapping_mul(31).wrapping_add(process + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        for step in 0..OPERATIONS {
            let key = random.key();
            let operation = match random.below(10) {
                0 | 1 => Operation::Read,
                2 | 3 => Operation::Append,
                4 => Operation::Replace,
                5 | 6 => Operation::Delete,
                7 => Operation::Rename(random.key()),
                8 => Operation::Save,
                _ => Operation::List,
            };
            if let Some(root) = root {
                let before = model.names.clone();
                let told = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| model.check(root, key, &operation, step)));
                if told.is_err() {
                    eprintln!("seed {seed}, process {process}, step {step}: {operation:?} of {}, which was {:?}", path(process, key), before[&key]);
                    std::process::exit(1);
                }
            }
            model.apply(key, &operation, step);
        }
        model
    }

    fn seen(&self, key: Key) -> Option<&String> {
        self.names[&key].seen(key.0)
    }

    fn apply(&mut self, key: Key, operation: &Operation, step: usize) {
        let process = self.process;
        let seen = self.seen(key).cloned();
        let text = format!("{step} ");
        let mut put = |key: Key, content: String| self.names.get_mut(&key).unwrap_or_else(|| panic!("{}", path(process, key))).put(key.0, content);
        match (operation, seen) {
            (Operation::Append, seen) => put(key, seen.unwrap_or_default() + &text),
            (Operation::Replace, _) => put(key, text),
            (Operation::Delete, Some(_)) => self.names.get_mut(&key).unwrap().remove(key.0),
            (Operation::Rename(other), Some(content)) if *other != key => {
                // Within merge, virtual content stays virtual.
                let stays = self.names[&key].is_virtual() && key.0 == other.0;
                let target = self.names.get_mut(other).unwrap();
                if stays {
                    target.sandbox = Some(Some(content))
                } else {
                    target.put(other.0, content)
                }
                self.names.get_mut(&key).unwrap().remove(key.0);
            }
            (Operation::Save, _) => put(key, text),
            _ => {}
        }
    }

    /// Does the operation, and compares what can be seen of it before and after.
    fn check(&self, root: &Path, key: Key, operation: &Operation, step: usize) {
        let at = |key: Key| root.join(path(self.process, key));
        let (place, text) = (at(key), format!("{step} "));
        match operation {
            Operation::Read => assert_eq!(read(&place), self.seen(key).cloned()),
            Operation::Append => OpenOptions::new().append(true).create(true).open(&place).unwrap().write_all(text.as_bytes()).unwrap(),
            Operation::Replace => fs::write(&place, text).unwrap(),
            Operation::Delete => match fs::remove_file(&place) {
                Err(error) => assert!(error.kind() == ErrorKind::NotFound && self.seen(key).is_none(), "{error}"),
                Ok(()) => assert!(self.seen(key).is_some()),
            },
            Operation::Rename(other) => match move_file(&place, &at(*other)) {
                Err(error) => assert!(error.kind() == ErrorKind::NotFound && self.seen(key).is_none(), "{error}"),
                Ok(()) => assert!(self.seen(key).is_some()),
            },
            Operation::Save => {
                let temporary = place.with_extension("tmp");
                fs::write(&temporary, text).unwrap();
                fs::rename(&temporary, &place).unwrap();
            }
            Operation::List => {
                let mine = format!("p{}-", self.process);
                let names = fs::read_dir(root.join(DIRECTORIES[key.0])).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
                let mut names: Vec<String> = names.filter(|name| name.starts_with(&mine)).collect();
                names.sort();
                let wanted: Vec<String> = (0..NAMES).filter(|name| self.seen((key.0, *name)).is_some()).map(|name| format!("{mine}{name}")).collect();
                assert_eq!(names, wanted);
            }
        }
    }

    /// Compares all that can be seen.
    pub(crate) fn compare(&self, root: &Path) {
        for key in self.names.keys() {
            let place = path(self.process, *key);
            assert_eq!(read(&root.join(&place)), self.seen(*key).cloned(), "{place} is {:?}", self.names[key]);
        }
    }

    /// Compares what the host has.
    pub(crate) fn compare_host(&self, root: &Path) {
        for (key, name) in &self.names {
            let place = path(self.process, *key);
            assert_eq!(read(&root.join(&place)), name.host, "{place} is {name:?}");
        }
    }
}

fn read(path: &Path) -> Option<String> {
    match fs::read_to_string(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        content => Some(content.unwrap_or_else(|error| panic!("{}: {error}", path.display()))),
    }
}

/// As `mv`.
fn move_file(from: &Path, to: &Path) -> std::io::Result<()> {
    match fs::rename(from, to) {
        Err(error) if error.kind() == ErrorKind::CrossesDevices => {
            let content = fs::read(from)?;
            fs::write(to, content)?;
            fs::remove_file(from)
        }
        result => result,
    }
}

/// All processes, inside. With `again`, what is left of them in a later run.
pub(crate) fn inside(root: &Path, seed: u64, again: bool) {
    if again {
        (0..PROCESSES).for_each(|process| Model::run(process, seed, None).compare(root));
        return;
    }
    let exe: PathBuf = std::env::current_exe().unwrap();
    let worker = |process: u64| Command::new(&exe).args(["inside", "random-worker"]).arg(root).args([seed.to_string(), process.to_string()]).spawn().unwrap();
    let workers: Vec<_> = (0..PROCESSES).map(worker).collect();
    assert!(workers.into_iter().all(|mut worker| worker.wait().unwrap().success()));
}
