//! Which mechanism serves which part of the tree.
//!
//! Overlayfs does Full and Write Copy at native speed, a bind mount does Merge where nothing is virtual, and the union does
//! everything, file by file, at the price of a round trip to us. A plan gives each subtree the fastest one that does what
//! the rules say there:
//!
//! | kind | serves | when |
//! |---|---|---|
//! | [`Kind::Overlay`] | the same place of the one overlay | Full, Write Copy |
//! | [`Kind::Union`] | the same place of the one union | Merge with virtual content; rules for single files; read-only |
//! | [`Kind::Bind`] | the host's directory | Merge where only the host has something |
//! | [`Kind::Hide`] | a directory that answers `ENOENT` to all | Hide below an overlay; what the VM keeps for itself below a bind |
//!
//! A region below another one is mounted over it, so a plan is a list, parents first. The union is right everywhere; so
//! wherever something cannot be found out, or a bound is reached, the plan leaves it to the union, and only speed is lost.
//! Nothing is asked about layers or host where no rule needs it: without rules a plan is one region.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use layer_format::LayerPath;
use layer_format::manifest::{FileMode, Mode};
use serde::{Deserialize, Serialize};

use crate::rules::Rules;

/// Most directories whose children are looked at.
const MAX_DIRECTORIES: usize = 64;
/// Most regions made only for speed. A mount costs about 25 µs with the look-up of its place.
const MAX_MOUNTS: usize = 1000;
/// Most children of a directory that is looked at.
const MAX_CHILDREN: usize = 4096;
/// How many components the path of a directory that is looked at may have, unless a rule leads there.
const MAX_DEPTH: usize = 4;
/// What is mounted over in any case.
const NATIVE: [&[u8]; 3] = [b"proc", b"sys", b"dev"];

/// A mechanism.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Kind {
    Overlay,
    Union,
    Bind,
    Hide,
}

/// A subtree, and what serves it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Region {
    pub(crate) path: LayerPath,
    pub(crate) kind: Kind,
}

/// What layers and sandbox have at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Virtual {
    /// Nothing, so that the host may show.
    Absent,
    /// A directory; `closed` if the host does not show through it, because a layer or the sandbox replaced it.
    Directory { closed: bool },
    /// Something else, or a tombstone.
    Other,
}

/// What the host has at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Host {
    Absent,
    Directory,
    Other,
}

/// What a plan depends on besides rules. What cannot be found out is answered as if there were a directory of the layers.
pub(crate) trait Surroundings {
    /// What layers and sandbox have.
    fn virtual_at(&self, path: &LayerPath) -> Virtual;
    /// Whether the sandbox itself has something under the name, be it a tombstone.
    fn in_sandbox(&self, path: &LayerPath) -> bool;
    /// Names that layers and sandbox have in a directory, and which of them are directories; `None` if more than `max`.
    fn virtual_children(&self, directory: &LayerPath, max: usize) -> Option<BTreeMap<Vec<u8>, bool>>;
    /// What the host has; symbolic links are not followed, anywhere in the path.
    fn host_at(&self, path: &LayerPath) -> Host;
    /// The directories in a directory of the host, sorted; `None` if there are more than `max`, or it cannot be read.
    fn host_directories(&self, directory: &LayerPath, max: usize) -> Option<Vec<Vec<u8>>>;
    /// Whether the user may make and remove names in a directory of the host.
    fn may_write(&self, directory: &LayerPath) -> bool;
    /// Whether something is mounted there on the host.
    fn is_mount_point(&self, path: &LayerPath) -> bool;
}

/// The regions of a run, the root first and parents before what is below. `hidden` are host paths that the VM must not
/// reach, `working_dir` is where the application starts.
pub(crate) fn plan(rules: &Rules, hidden: &[LayerPath], working_dir: &LayerPath, around: &dyn Surroundings) -> Vec<Region> {
    let mut planner = Planner {
        rules,
        hidden,
        working_dir,
        around,
        unions: BTreeSet::new(),
        stated: BTreeSet::new(),
        skeleton: BTreeSet::new(),
        regions: Vec::new(),
        queue: VecDeque::new(),
        mounts_left: MAX_MOUNTS,
    };
    planner.collect();
    planner.visit(&LayerPath::root(), None);
    planner.fill_all();
    planner.cover();
    planner.regions.sort_by(|a, b| a.path.cmp(&b.path));
    planner.regions
}

/// Whether the VM mounts over a path whatever the rules say, or something that contains it.
fn is_native(path: &LayerPath) -> bool {
    path.as_bytes().split(|b| *b == b'/').next().is_some_and(|first| NATIVE.contains(&first))
}

struct Planner<'a> {
    rules: &'a Rules,
    hidden: &'a [LayerPath],
    working_dir: &'a LayerPath,
    around: &'a dyn Surroundings,
    /// Directories in which each file is decided on its own.
    unions: BTreeSet<LayerPath>,
    /// Paths for which something is stated that matters.
    stated: BTreeSet<LayerPath>,
    /// All of these with all their ancestors.
    skeleton: BTreeSet<LayerPath>,
    regions: Vec<Region>,
    /// Directories of the union whose children may be better served by something else.
    queue: VecDeque<LayerPath>,
    mounts_left: usize,
}

impl Planner<'_> {
    /// Finds out where regions may begin.
    fn collect(&mut self) {
        for (path, mode) in self.rules.stated() {
            if let Some(parent) = path.parent()
                && self.counts(path)
            {
                self.collect_mode(path, mode, &parent);
            }
        }
        for (path, mode) in self.rules.stated_files() {
            if let Some(parent) = path.parent()
                && self.counts(path)
            {
                // The host's filesystem below an overlay leaves out what is Full.
                if mode != FileMode::Full || self.rules.mode(&parent) == Mode::Merge {
                    self.union_at(&parent);
                }
                self.stated.insert(path.clone());
            }
        }
        for (path, attributes) in self.rules.stated_attributes() {
            if !self.counts(path) || !(attributes.hidden || attributes.read_only) {
                continue;
            }
            let parent = path.parent().unwrap_or_default();
            if attributes.hidden && !path.is_root() {
                self.union_at(&parent);
            }
            if attributes.read_only {
                self.union_at(if self.is_directory(path) { path } else { &parent });
            }
            self.stated.insert(path.clone());
        }
        for path in self.stated.iter().chain(&self.unions) {
            let ancestors = std::iter::successors(Some(path.clone()), LayerPath::parent);
            for ancestor in ancestors {
                if !self.skeleton.insert(ancestor) {
                    break;
                }
            }
        }
    }

    fn collect_mode(&mut self, path: &LayerPath, mode: Mode, parent: &LayerPath) {
        let above = self.rules.mode(parent);
        if above == mode {
            return;
        }
        // A single file of mode Merge is written on the host, and replaced there, from within its directory.
        let by_file = mode == Mode::Merge && !self.is_directory(path) && !self.is_absent(path);
        // Listings of the host's own directory, or of the sandbox, cannot leave a name out.
        let by_name = mode == Mode::Hide && (above == Mode::Merge || self.around.in_sandbox(path));
        if by_file || by_name {
            self.union_at(parent);
        }
        self.stated.insert(path.clone());
    }

    /// Whether what is stated for a path has any effect: nothing below a hidden path has.
    fn counts(&self, path: &LayerPath) -> bool {
        path.parent().is_none_or(|parent| self.rules.mode(&parent) != Mode::Hide) && (!is_native(path) || self.rules.mode(path) == Mode::Hide)
    }

    /// Has the union serve a directory, or the nearest ancestor that exists: the directory may be made later.
    fn union_at(&mut self, directory: &LayerPath) {
        let mut ancestors = std::iter::successors(Some(directory.clone()), LayerPath::parent);
        if let Some(found) = ancestors.find(|path| path.is_root() || self.is_directory(path)) {
            self.unions.insert(found);
        }
    }

    fn is_directory(&self, path: &LayerPath) -> bool {
        match self.around.virtual_at(path) {
            Virtual::Directory { .. } => true,
            Virtual::Other => false,
            Virtual::Absent => self.rules.mode(path) < Mode::Full && self.around.host_at(path) == Host::Directory,
        }
    }

    fn is_absent(&self, path: &LayerPath) -> bool {
        self.around.virtual_at(path) == Virtual::Absent && self.around.host_at(path) == Host::Absent
    }

    /// Whether what is above a missing path are directories, as far as it exists.
    fn can_be_made(&self, path: &LayerPath) -> bool {
        let mut ancestors = std::iter::successors(path.parent(), LayerPath::parent);
        ancestors.find(|path| path.is_root() || !self.is_absent(path)).is_some_and(|path| path.is_root() || self.is_directory(&path))
    }

    /// Whether anything is stated strictly below.
    fn leads_on(&self, path: &LayerPath) -> bool {
        self.skeleton.iter().any(|found| found != path && found.starts_with(path))
    }

    /// Decides about a path on the way to what is stated, and about what is below. `above` is what serves its parent.
    fn visit(&mut self, path: &LayerPath, above: Option<Kind>) {
        let Some(kind) = self.choose(path, above) else { return };
        if above != Some(kind) {
            self.regions.push(Region { path: path.clone(), kind });
        }
        if matches!(kind, Kind::Bind | Kind::Hide) {
            return;
        }
        if kind == Kind::Union && !is_native(path) {
            self.queue.push_back(path.clone());
        }
        let below: Vec<LayerPath> = self.skeleton.iter().filter(|found| found.parent().as_ref() == Some(path)).cloned().collect();
        for path in below {
            self.visit(&path, Some(kind));
        }
    }

    /// What serves a path; `None` if the path needs nothing and nothing below it does.
    fn choose(&self, path: &LayerPath, above: Option<Kind>) -> Option<Kind> {
        let mode = self.rules.mode(path);
        let Some(above) = above else {
            let plain = mode != Mode::Merge && !self.unions.contains(path);
            return Some(if plain { Kind::Overlay } else { Kind::Union });
        };
        if is_native(path) {
            return match mode {
                Mode::Hide => (self.around.host_at(path) == Host::Directory).then_some(Kind::Hide),
                _ => Some(above),
            };
        }
        if mode == Mode::Hide {
            let reachable = path.parent().is_some_and(|parent| parent.is_root() || self.is_directory(&parent));
            return (above == Kind::Overlay && reachable).then_some(Kind::Hide);
        }
        let union = self.unions.contains(path) || self.rules.is_read_only(path);
        let inherited = path.parent().is_some_and(|parent| self.rules.mode(&parent) == mode);
        match (above, mode) {
            (Kind::Overlay, _) if union => self.is_directory(path).then_some(Kind::Union),
            (Kind::Overlay | Kind::Union, Mode::Merge) if !union && !inherited => match (self.around.virtual_at(path), self.around.host_at(path)) {
                (Virtual::Absent, Host::Directory) if !self.leads_on(path) => Some(Kind::Bind),
                _ if above == Kind::Union => Some(Kind::Union),
                (Virtual::Other, _) | (Virtual::Absent, Host::Other) => None,
                (Virtual::Absent, Host::Absent) if !self.can_be_made(path) => None,
                // What nobody has yet appears empty: what is made in it is made on the host.
                _ => Some(Kind::Union),
            },
            (Kind::Overlay, _) => Some(Kind::Overlay),
            (_, Mode::Full | Mode::WriteCopy) if !union && self.is_directory(path) => Some(Kind::Overlay),
            _ => Some(Kind::Union),
        }
    }

    /// Gives children of the union's directories, breadth first, to something faster.
    fn fill_all(&mut self) {
        let mut directories_left = MAX_DIRECTORIES;
        while let Some(directory) = self.queue.pop_front() {
            if directories_left == 0 || self.mounts_left == 0 {
                return;
            }
            directories_left -= 1;
            match self.rules.mode(&directory) {
                // All below is for the union, too.
                _ if self.rules.is_read_only(&directory) => {}
                Mode::Merge => self.fill_merge(&directory),
                Mode::Full | Mode::WriteCopy if self.unions.contains(&directory) => self.fill_overlay(&directory),
                _ => {}
            }
        }
    }

    /// Binds those children that only the host has, unless the application may want to rename or remove them, which a mount
    /// point would refuse; and goes on to those that both have.
    fn fill_merge(&mut self, directory: &LayerPath) {
        let shown = matches!(self.around.virtual_at(directory), Virtual::Absent | Virtual::Directory { closed: false });
        if !shown || self.around.host_at(directory) != Host::Directory {
            return;
        }
        let (Some(names), Some(virtuals)) = (self.around.host_directories(directory, MAX_CHILDREN), self.around.virtual_children(directory, MAX_CHILDREN))
        else {
            return;
        };
        let fixed = directory.is_root() || !self.around.may_write(directory);
        for name in names {
            let Ok(path) = directory.join(&name) else { continue };
            // What is hidden is so in the union by itself.
            if is_native(&path) || self.skeleton.contains(&path) || self.hidden.contains(&path) {
                continue;
            }
            match virtuals.get(&name) {
                Some(true) if path.as_bytes().iter().filter(|b| **b == b'/').count() < MAX_DEPTH => self.queue.push_back(path),
                Some(_) => {}
                None if fixed || self.working_dir.starts_with(&path) || self.around.is_mount_point(&path) => self.push_for_speed(path, Kind::Bind),
                None => {}
            }
        }
    }

    /// Gives those children to the overlay for which nothing is stated.
    fn fill_overlay(&mut self, directory: &LayerPath) {
        let Some(virtuals) = self.around.virtual_children(directory, MAX_CHILDREN) else { return };
        let open = matches!(self.around.virtual_at(directory), Virtual::Absent | Virtual::Directory { closed: false });
        let mut names: BTreeSet<Vec<u8>> = virtuals.iter().filter(|(_, is_dir)| **is_dir).map(|(name, _)| name.clone()).collect();
        if open && self.rules.mode(directory) == Mode::WriteCopy {
            let hosts = self.around.host_directories(directory, MAX_CHILDREN).unwrap_or_default();
            names.extend(hosts.into_iter().filter(|name| !virtuals.contains_key(name)));
        }
        for path in names.iter().filter_map(|name| directory.join(name).ok()) {
            if !is_native(&path) && !self.skeleton.contains(&path) {
                self.push_for_speed(path, Kind::Overlay);
            }
        }
    }

    fn push_for_speed(&mut self, path: LayerPath, kind: Kind) {
        if self.mounts_left > 0 {
            self.mounts_left -= 1;
            self.regions.push(Region { path, kind });
        }
    }

    /// Covers what the VM keeps for itself where the host's own directory would show it.
    fn cover(&mut self) {
        for path in self.hidden {
            let bound = self.regions.iter().any(|region| region.kind == Kind::Bind && path.starts_with(&region.path));
            let covered = self.regions.iter().any(|region| region.kind == Kind::Hide && path.starts_with(&region.path));
            if bound && !covered && self.around.host_at(path) == Host::Directory {
                self.regions.push(Region { path: path.clone(), kind: Kind::Hide });
            }
        }
    }
}

#[cfg(test)]
#[path = "regions_tests.rs"]
mod tests;
