//! A disk with a cache in front of it: what of a folder survives if the power goes.
//!
//! What is assumed is what POSIX promises, and no more:
//!
//! * A write is durable once a sync of its file that began after it has ended. Until then each of its pages of 4 KiB
//!   may be on the disk or not, in any order; a page that is not there reads as it was before, or as zeros.
//! * A name (made, changed or taken away) is durable once its folder was synced. Until then it may be there or not. A change
//!   of a name is one step: the file has the old name or the new one.
//! * Syncing a file says nothing of its name, syncing a folder nothing of what is in its files.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::{Call, Timed};

/// What can be torn.
const PAGE: u64 = 4096;

/// A small generator of numbers, the same for the same seed.
#[derive(Clone, Debug)]
pub struct Dice(u64);

impl Dice {
    /// Starts at a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 11
    }

    /// True in `percent` of cases.
    pub fn chance(&mut self, percent: u64) -> bool {
        self.next() % 100 < percent
    }

    /// A number below `end`.
    pub fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }
}

/// What survives of that which was not synced.
#[derive(Clone, Debug)]
pub enum Unsynced {
    /// All of it: the process was killed, and the machine runs on.
    All,
    /// Nothing.
    Nothing,
    /// Of names the first so many; of pages any.
    InOrder(Dice),
    /// Any.
    Any(Dice),
}

/// A folder in memory: contents by file, and the names of files and folders.
#[derive(Clone, Debug, Default)]
pub struct Folder {
    files: Vec<Vec<u8>>,
    names: BTreeMap<PathBuf, usize>,
    folders: BTreeSet<PathBuf>,
}

impl Folder {
    /// Reads a folder from the disk; an empty one if it is not there.
    pub fn read(path: &Path) -> Self {
        let mut folder = Self::default();
        folder.folders.insert(PathBuf::new());
        let mut pending = vec![PathBuf::new()];
        while let Some(below) = pending.pop() {
            let Ok(entries) = std::fs::read_dir(path.join(&below)) else { continue };
            folder.folders.insert(below.clone());
            for entry in entries.flatten() {
                let name = below.join(entry.file_name());
                match entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    true => pending.push(name),
                    false => {
                        folder.names.insert(name, folder.files.len());
                        folder.files.push(std::fs::read(entry.path()).expect("a file that can be read"));
                    }
                }
            }
        }
        folder
    }

    /// Puts it on the disk, in an empty folder. Names in folders that are not there are lost with them.
    pub fn write(&self, to: &Path) {
        for folder in self.folders.iter().filter(|folder| folder.ancestors().skip(1).all(|above| self.folders.contains(above))) {
            std::fs::create_dir_all(to.join(folder)).expect("a folder");
        }
        for (name, file) in &self.names {
            // Locks of LMDB and the shared memory of SQLite mean nothing after a start of the machine.
            let is_memory = name.ends_with("lock.mdb") || name.to_string_lossy().ends_with("-shm");
            if !is_memory && name.parent().is_some_and(|parent| to.join(parent).is_dir()) {
                std::fs::write(to.join(name), &self.files[*file]).expect("a file");
            }
        }
    }

    fn file(&mut self, path: &Path) -> usize {
        if let Some(file) = self.names.get(path) {
            return *file;
        }
        self.files.push(Vec::new());
        self.names.insert(path.to_owned(), self.files.len() - 1);
        self.files.len() - 1
    }

    fn put(&mut self, file: usize, offset: u64, bytes: &[u8]) {
        let (start, end) = (offset as usize, offset as usize + bytes.len());
        let content = &mut self.files[file];
        if content.len() < end {
            content.resize(end, 0);
        }
        content[start..end].copy_from_slice(bytes);
    }

    fn rename(&mut self, from: &Path, to: &Path, file: Option<usize>) {
        match file {
            Some(file) => {
                if self.names.get(from) == Some(&file) {
                    self.names.remove(from);
                }
                self.names.insert(to.to_owned(), file);
            }
            None => {
                let moved = |path: &PathBuf| path.strip_prefix(from).ok().map(|rest| if rest.as_os_str().is_empty() { to.to_owned() } else { to.join(rest) });
                self.names = std::mem::take(&mut self.names).into_iter().map(|(name, file)| (moved(&name).unwrap_or(name), file)).collect();
                self.folders = std::mem::take(&mut self.folders).into_iter().map(|name| moved(&name).unwrap_or(name)).collect();
            }
        }
    }
}

/// A call with the file that it meant when it was made.
#[derive(Clone, Debug)]
enum Step {
    /// A name for a file that was made.
    Name {
        path: PathBuf,
        file: usize,
    },
    Rename {
        from: PathBuf,
        to: PathBuf,
        file: Option<usize>,
    },
    Remove {
        path: PathBuf,
        file: Option<usize>,
    },
    MakeFolder {
        path: PathBuf,
    },
    Write {
        file: usize,
        offset: u64,
        bytes: Vec<u8>,
        durable: bool,
    },
    SetLen {
        file: usize,
        len: u64,
    },
    Reserve {
        file: usize,
        len: u64,
    },
    Sync {
        file: Option<usize>,
        folder: PathBuf,
        begun: f64,
    },
    SyncAll {
        begun: f64,
    },
}

/// All crash states of a recording.
#[derive(Debug)]
pub struct History {
    before: Folder,
    steps: Vec<(f64, Step)>,
}

impl History {
    /// What `calls` did to `before`.
    pub fn new(before: Folder, calls: &[Timed]) -> Self {
        let mut now = before.clone();
        let mut steps = Vec::new();
        for Timed { begun, ended, call } in calls {
            let mut add = |step| steps.push((*ended, step));
            match call.clone() {
                Call::Open { path, cut } => {
                    if !now.names.contains_key(&path) {
                        let file = now.file(&path);
                        add(Step::Name { path, file });
                    } else if cut {
                        let file = now.file(&path);
                        now.files[file].clear();
                        add(Step::SetLen { file, len: 0 });
                    }
                }
                Call::Write { path, offset, bytes, durable } => {
                    // What has no name any more is nobody's.
                    let Some(file) = now.names.get(&path).copied() else { continue };
                    let offset = offset.unwrap_or(now.files[file].len() as u64);
                    now.put(file, offset, &bytes);
                    add(Step::Write { file, offset, bytes, durable });
                }
                Call::SetLen { path, len } => {
                    let Some(file) = now.names.get(&path).copied() else { continue };
                    now.files[file].resize(len as usize, 0);
                    add(Step::SetLen { file, len });
                }
                Call::Reserve { path, len } => {
                    let Some(file) = now.names.get(&path).copied() else { continue };
                    let len = len.max(now.files[file].len() as u64);
                    now.files[file].resize(len as usize, 0);
                    add(Step::Reserve { file, len });
                }
                Call::Sync { path } => add(Step::Sync { file: now.names.get(&path).copied(), folder: path, begun: *begun }),
                Call::SyncAll => add(Step::SyncAll { begun: *begun }),
                Call::Rename { from, to } => {
                    let file = now.names.get(&from).copied();
                    now.rename(&from, &to, file);
                    add(Step::Rename { from, to, file });
                }
                Call::Link { from, to } => {
                    let Some(file) = now.names.get(&from).copied() else { continue };
                    now.names.insert(to.clone(), file);
                    add(Step::Name { path: to, file });
                }
                Call::Remove { path } => {
                    let file = now.names.remove(&path);
                    now.folders.remove(&path);
                    add(Step::Remove { path, file });
                }
                Call::MakeFolder { path } => {
                    now.folders.insert(path.clone());
                    add(Step::MakeFolder { path });
                }
            }
        }
        // Files have the same numbers in every state.
        let mut before = before;
        before.files.resize(now.files.len(), Vec::new());
        Self { before, steps }
    }

    /// How many moments there are: a crash may come after any number of steps, 0 and all included.
    pub fn len(&self) -> usize {
        self.steps.len()
    }

    /// Whether nothing was done.
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// What is on the disk if the power goes after so many steps.
    pub fn crash(&self, after: usize, unsynced: &Unsynced) -> Folder {
        let steps = &self.steps[..after.min(self.steps.len())];
        let mut unsynced = unsynced.clone();
        let names: Vec<usize> = (0..steps.len()).filter(|at| is_name(&steps[*at].1)).collect();
        let in_order = match &mut unsynced {
            Unsynced::InOrder(dice) => names.get(dice.below(names.len() + 1)).copied().unwrap_or(usize::MAX),
            _ => 0,
        };
        let mut state = self.before.clone();
        for (at, (ended, step)) in steps.iter().enumerate() {
            let safe = is_durable(step, *ended, &steps[at + 1..]);
            let mut survives = |is_name: bool| {
                safe || match &mut unsynced {
                    Unsynced::All => true,
                    Unsynced::Nothing => false,
                    Unsynced::InOrder(_) if is_name => at < in_order,
                    Unsynced::InOrder(dice) | Unsynced::Any(dice) => dice.chance(50),
                }
            };
            match step {
                Step::Name { path, file } if survives(true) => _ = state.names.insert(path.clone(), *file),
                Step::Rename { from, to, file } if survives(true) => state.rename(from, to, *file),
                Step::Remove { path, file } if survives(true) => {
                    state.folders.remove(path);
                    if state.names.get(path) == file.as_ref() {
                        state.names.remove(path);
                    }
                }
                Step::MakeFolder { path } if survives(true) => _ = state.folders.insert(path.clone()),
                Step::Write { file, offset, bytes, .. } => {
                    let mut at = 0;
                    while at < bytes.len() {
                        let end = ((offset + at as u64) / PAGE + 1) * PAGE - offset;
                        let end = bytes.len().min(end as usize);
                        if survives(false) {
                            state.put(*file, offset + at as u64, &bytes[at..end]);
                        }
                        at = end;
                    }
                }
                Step::SetLen { file, len } if survives(false) => state.files[*file].resize(*len as usize, 0),
                Step::Reserve { file, len } if survives(false) => {
                    let len = state.files[*file].len().max(*len as usize);
                    state.files[*file].resize(len, 0);
                }
                _ => {}
            }
        }
        state
    }
}

fn is_name(step: &Step) -> bool {
    matches!(step, Step::Name { .. } | Step::Rename { .. } | Step::Remove { .. } | Step::MakeFolder { .. })
}

/// Whether one of the `later` steps makes this one durable.
fn is_durable(step: &Step, ended: f64, later: &[(f64, Step)]) -> bool {
    let folders: Vec<&Path> = match step {
        Step::Name { path, .. } | Step::Remove { path, .. } | Step::MakeFolder { path } => path.parent().into_iter().collect(),
        Step::Rename { from, to, .. } => from.parent().into_iter().chain(to.parent()).collect(),
        _ => Vec::new(),
    };
    let content = match step {
        Step::Write { durable: true, .. } => return true,
        Step::Write { file, .. } | Step::SetLen { file, .. } | Step::Reserve { file, .. } => Some(*file),
        _ => None,
    };
    later.iter().any(|(_, later)| match later {
        Step::Sync { file, folder, begun } => {
            *begun >= ended && (content.is_some() && content == *file || file.is_none() && folders.contains(&folder.as_path()))
        }
        Step::SyncAll { begun } => *begun >= ended,
        _ => false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history(calls: &[Call]) -> History {
        let timed: Vec<_> = calls.iter().enumerate().map(|(at, call)| Timed { begun: at as f64, ended: at as f64 + 0.5, call: call.clone() }).collect();
        let mut before = Folder::default();
        before.folders.insert(PathBuf::new());
        History::new(before, &timed)
    }

    fn content<'a>(state: &'a Folder, name: &str) -> Option<&'a [u8]> {
        state.names.get(Path::new(name)).map(|file| &state.files[*file][..])
    }

    #[test]
    fn only_what_was_synced_is_sure() {
        let path = |name: &str| PathBuf::from(name);
        let calls = [
            Call::Open { path: path("new"), cut: true },
            Call::Write { path: path("new"), offset: None, bytes: vec![7; 10_000], durable: false },
            Call::Sync { path: path("new") },
            Call::Rename { from: path("new"), to: path("a") },
            Call::Write { path: path("a"), offset: Some(0), bytes: vec![8; 10], durable: false },
            Call::Sync { path: path("") },
        ];
        let all = history(&calls);
        assert_eq!(all.len(), 6);
        // The name is sure at the end, the last write is not.
        let state = all.crash(6, &Unsynced::Nothing);
        assert_eq!((content(&state, "a").unwrap(), content(&state, "new")), (&[7; 10_000][..], None));
        assert_eq!(content(&all.crash(6, &Unsynced::All), "a").unwrap()[..11], [8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 7]);
        // Before the folder was synced there may be any name, or none; the content is sure of both.
        let mut seen = BTreeSet::new();
        for seed in 0..40 {
            let state = all.crash(4, &Unsynced::Any(Dice::new(seed)));
            seen.insert((content(&state, "a").is_some(), content(&state, "new").is_some()));
            assert!(content(&state, "a").or(content(&state, "new")).is_none_or(|bytes| bytes == [7; 10_000]));
        }
        assert_eq!(seen.len(), 3, "{seen:?}");
        // Before the sync pages are there or not.
        let lens: BTreeSet<usize> = (0..40)
            .filter_map(|seed| Some(content(&all.crash(2, &Unsynced::Any(Dice::new(seed))), "new")?.iter().filter(|byte| **byte == 7).count()))
            .collect();
        assert!(lens.len() >= 5, "{lens:?}");
    }

    #[test]
    fn a_folder_that_was_lost_takes_its_files_along() {
        let path = |name: &str| PathBuf::from(name);
        let calls = [
            Call::MakeFolder { path: path("d") },
            Call::Open { path: path("d/f"), cut: false },
            Call::Write { path: path("d/f"), offset: Some(0), bytes: vec![1], durable: true },
            Call::Sync { path: path("d") },
        ];
        let lost = tempfile::tempdir().unwrap();
        history(&calls).crash(4, &Unsynced::Nothing).write(lost.path());
        assert!(!lost.path().join("d").exists());
        let kept = tempfile::tempdir().unwrap();
        history(&calls).crash(4, &Unsynced::All).write(kept.path());
        assert_eq!(std::fs::read(kept.path().join("d/f")).unwrap(), [1]);
    }
}
