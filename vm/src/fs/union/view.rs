//! What a name is: sandbox, layers and host looked at in this order, by the rules. Nothing here is remembered or changed.

use std::collections::BTreeMap;
use std::sync::Arc;

use client_store::view::Caller;
use layer_format::LayerPath;
use layer_format::entry::Entry;
use rustix::fs::Stat;
use rustix::io::Errno;

use super::super::listing::Listing;
use super::super::merge::{self, Verdict, is_whiteout as is_tombstone};
use super::super::{Attr, NodeKind, host, image};
use super::UnionFs;
use super::base::{id, is_dir};
use super::node::{Id, Key, Place, State};
use super::policy::Policy;
use super::upper::is_whiteout;

/// How many names are asked of the layers at a time.
const PAGE: usize = 1024;

/// A directory as it is at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct DirView {
    pub(super) path: LayerPath,
    /// Whether the sandbox has it.
    pub(super) upper: bool,
    /// The layers that it is merged from, highest first.
    pub(super) layers: Vec<u16>,
    /// Whether the host's directory does not show through, whatever the mode.
    pub(super) closed: bool,
}

/// What a name is.
#[derive(Clone, Debug)]
pub(super) struct Found {
    pub(super) path: LayerPath,
    pub(super) kind: NodeKind,
    pub(super) place: Place,
    /// Of what is on disk.
    pub(super) stat: Option<Stat>,
    pub(super) entry: Option<Arc<Entry>>,
    pub(super) layers: Vec<u16>,
    pub(super) closed: bool,
    /// Whether it is on the host, and written there.
    pub(super) merged: bool,
    /// Whether it has first to be placed on the host.
    pub(super) seed: bool,
}

impl Found {
    pub(super) fn on_disk(path: LayerPath, place: Place, stat: Stat, merged: bool) -> Self {
        let kind = host::kind_of(&stat);
        Self { path, kind, place, stat: Some(stat), entry: None, layers: Vec::new(), closed: false, merged, seed: false }
    }

    pub(super) fn id(&self) -> Option<Id> {
        self.stat.as_ref().map(id)
    }

    /// Which inode this is.
    pub(super) fn key(&self) -> Key {
        match (self.place, &self.entry, self.id()) {
            (Place::Upper, _, Some(id)) if self.layers.is_empty() => Key::Upper(id),
            (Place::Host, _, Some(id)) => Key::Host(id),
            (Place::Layer, Some(entry), _) => match (entry.meta.hard_link, self.layers.first()) {
                (Some(link), Some(layer)) if self.kind != NodeKind::Directory => Key::Link(*layer, link.group),
                _ => Key::Path(self.path.clone()),
            },
            _ => Key::Path(self.path.clone()),
        }
    }

    pub(super) fn state(&self) -> State {
        State {
            place: self.place,
            entry: self.entry.clone(),
            layers: self.layers.clone(),
            id: self.id(),
            closed: self.closed,
            touched: None,
            last: None,
            group: self.group().map(|(key, _)| key),
        }
    }

    /// The hard links that this belongs to, if a write to one would have to copy them all, and how many they are.
    pub(super) fn group(&self) -> Option<(Key, u32)> {
        let count = match (self.place, &self.stat, &self.entry) {
            (Place::Host, Some(stat), _) if !self.merged => stat.st_nlink as u32,
            (Place::Layer, _, Some(entry)) => entry.meta.hard_link.map_or(1, |link| link.count),
            _ => 1,
        };
        (count > 1 && self.kind != NodeKind::Directory).then(|| (self.key(), count))
    }

    pub(super) fn is_dir(&self) -> bool {
        self.kind == NodeKind::Directory
    }

    /// As a directory to look into. `closed` is whether the one it is in is closed.
    pub(super) fn view(&self, closed: bool) -> DirView {
        DirView { path: self.path.clone(), upper: self.place == Place::Upper, layers: self.layers.clone(), closed: self.closed || closed }
    }

    /// Its attributes, as far as they are written down: with the number `ino`.
    pub(super) fn attr(&self, ino: u64) -> Attr {
        match (&self.stat, &self.entry) {
            (Some(stat), _) => host::attr(ino, stat),
            (None, Some(entry)) => image::attr(ino, entry),
            (None, None) => host::synthetic(ino, self.kind, 0o755),
        }
    }
}

/// A name in a listing.
#[derive(Clone, Debug)]
pub(super) struct Listed {
    pub(super) kind: NodeKind,
    pub(super) key: Key,
}

impl UnionFs {
    pub(super) fn layer(&self, number: u16) -> Option<Arc<dyn client_store::LayerView>> {
        self.layers.get(usize::from(number)).cloned()
    }

    fn kept_by(&self, path: &LayerPath) -> Option<u16> {
        self.rules.kept_by(path).and_then(|layer| u16::try_from(layer).ok())
    }

    /// What the layers of a directory have under a name. May wait for the network.
    pub(super) fn in_layers(&self, directory: &DirView, path: &LayerPath, caller: Caller) -> Result<Verdict, Errno> {
        if directory.layers.is_empty() {
            return Ok(Verdict::default());
        }
        let found = merge::resolve(path, &directory.layers, self.kept_by(path), |number| self.layer(number), |_, _| true, caller);
        found.map_err(|error| self.failed(path, &error))
    }

    /// What a name in a directory is. May wait for the network.
    pub(super) fn find(&self, directory: &DirView, name: &[u8], caller: Caller) -> Result<Option<Found>, Errno> {
        let path = directory.path.join(name).map_err(|_| Errno::NAMETOOLONG)?;
        let policy = self.policy(&path);
        self.find_as(directory, &path, policy, || self.in_layers(directory, &path, caller))
    }

    pub(super) fn find_as(
        &self,
        directory: &DirView,
        path: &LayerPath,
        policy: Policy,
        in_layers: impl FnOnce() -> Result<Verdict, Errno>,
    ) -> Result<Option<Found>, Errno> {
        if policy.is_defaulted() {
            return self.find_defaulted(directory, path, policy, in_layers);
        }
        self.find_plain(directory, path, policy, in_layers)
    }

    fn find_plain(
        &self,
        directory: &DirView,
        path: &LayerPath,
        policy: Policy,
        in_layers: impl FnOnce() -> Result<Verdict, Errno>,
    ) -> Result<Option<Found>, Errno> {
        if policy.hides() {
            return Ok(self.stub(path));
        }
        let in_upper = if directory.upper { self.upper.stat(path)? } else { None };
        if let Some(stat) = in_upper {
            return match is_whiteout(&stat) {
                true => Ok(self.stub(path)),
                false if is_dir(&stat) => self.merged_dir(path, stat, in_layers).map(Some),
                false => Ok(Some(Found::on_disk(path.clone(), Place::Upper, stat, false))),
            };
        }
        let verdict = in_layers()?;
        match verdict.found {
            Some(entry) if is_tombstone(&entry) => Ok(self.stub(path)),
            Some(entry) => {
                let closed = verdict.closed && entry.is_dir();
                let (kind, entry) = (image::kind(&entry), Some(Arc::new(entry)));
                let layers = verdict.layers;
                Ok(Some(Found { path: path.clone(), kind, place: Place::Layer, stat: None, entry, layers, closed, merged: false, seed: false }))
            }
            None => match self.on_host(directory.closed, path, policy)? {
                Some(stat) => Ok(Some(Found::on_disk(path.clone(), Place::Host, stat, policy.writes_host()))),
                None => Ok(self.stub(path)),
            },
        }
    }

    fn merged_dir(&self, path: &LayerPath, stat: Stat, in_layers: impl FnOnce() -> Result<Verdict, Errno>) -> Result<Found, Errno> {
        let opaque = self.upper.is_opaque(path)?;
        let verdict = if opaque { Verdict::default() } else { in_layers()? };
        let mut found = Found::on_disk(path.clone(), Place::Upper, stat, false);
        found.closed = opaque || verdict.closed;
        if verdict.found.as_ref().is_some_and(Entry::is_dir) {
            found.layers = verdict.layers;
        }
        Ok(found)
    }

    /// A file that is the host's whatever else there is. The rule is about files: for a directory it does not count.
    fn find_defaulted(
        &self,
        directory: &DirView,
        path: &LayerPath,
        policy: Policy,
        in_layers: impl FnOnce() -> Result<Verdict, Errno>,
    ) -> Result<Option<Found>, Errno> {
        if self.is_ours(path) {
            return Ok(None);
        }
        let on_host = self.host.stat(path)?;
        if let Some(stat) = on_host.filter(|stat| !is_dir(stat)) {
            return Ok(Some(Found::on_disk(path.clone(), Place::Host, stat, true)));
        }
        let verdict = in_layers()?;
        let is_file = |entry: &&Entry| !entry.is_dir() && !is_tombstone(entry);
        if let Some(entry) = verdict.found.as_ref().filter(is_file).filter(|_| on_host.is_none() && !self.settled.lock().contains(path)) {
            let (kind, entry) = (image::kind(entry), Some(Arc::new(entry.clone())));
            return Ok(Some(Found {
                path: path.clone(),
                kind,
                place: Place::Layer,
                stat: None,
                entry,
                layers: Vec::new(),
                closed: false,
                merged: true,
                seed: true,
            }));
        }
        let verdict = if verdict.found.as_ref().is_some_and(Entry::is_dir) { verdict } else { Verdict::default() };
        let found = self.find_plain(directory, path, Policy { file: None, ..policy }, || Ok(verdict))?;
        Ok(found.filter(Found::is_dir))
    }

    /// What the host has at a path, if that is to be seen.
    pub(super) fn on_host(&self, closed: bool, path: &LayerPath, policy: Policy) -> Result<Option<Stat>, Errno> {
        let (shown, leads) = (policy.shows_host(), !self.bare && self.rules.leads_to_host(path));
        if closed || !(shown || leads) || self.is_ours(path) {
            return Ok(None);
        }
        Ok(self.host.stat(path)?.filter(|stat| shown || is_dir(stat)))
    }

    fn stub(&self, path: &LayerPath) -> Option<Found> {
        self.is_passage(path).then(|| Found {
            path: path.clone(),
            kind: NodeKind::Directory,
            place: Place::Stub,
            stat: None,
            entry: None,
            layers: Vec::new(),
            closed: false,
            merged: false,
            seed: false,
        })
    }

    /// All that the layers have in a directory. May wait for the network.
    pub(super) fn list_layers(&self, directory: &DirView, caller: Caller) -> Result<Vec<Arc<Verdict>>, Errno> {
        let mut all = Vec::new();
        let mut listing = Listing::new(directory.path.clone(), &directory.layers, true);
        let accept = |number, entry: &Entry| {
            let kept = self.kept_by(&entry.path).filter(|kept| directory.layers.contains(kept));
            !merge::gives_way(&entry.path, number, kept, |number| self.layer(number), caller)
        };
        loop {
            let page = listing.get(all.len(), PAGE, &|number| self.layer(number), &|_| true, &accept, caller);
            let page = page.map_err(|error| self.failed(&directory.path, &error))?;
            if page.is_empty() {
                return Ok(all);
            }
            all.extend(page);
        }
    }

    /// The names in a directory, with those that listings leave out if `all`.
    pub(super) fn list_names(&self, directory: &DirView, in_layers: &[Arc<Verdict>], all: bool) -> Result<BTreeMap<Vec<u8>, Listed>, Errno> {
        let mut names: BTreeMap<Vec<u8>, Option<Listed>> = BTreeMap::new();
        let join = |name: &[u8]| directory.path.join(name).ok();
        let uniform = self.bare || (self.is_uniform_below(&directory.path) && !self.has_below(&directory.path, |_| true));
        let inherited = self.policy_below(&directory.path);
        let policy = |path: &LayerPath| if uniform { inherited } else { self.policy(path) };
        let mut hosts = Vec::new();
        if !directory.closed && inherited.shows_host() || !uniform {
            hosts = self.host.entries(&directory.path)?;
        }
        // Lowest first: what is higher takes the place of what is lower.
        let device = if hosts.is_empty() { None } else { self.host.stat(&directory.path)?.map(|stat| stat.st_dev) };
        for on_disk in hosts {
            let Some(path) = join(&on_disk.name) else { continue };
            let policy = policy(&path);
            let leads = !uniform && on_disk.kind == NodeKind::Directory && self.rules.leads_to_host(&path);
            if directory.closed || !(policy.shows_host() || leads) || self.is_ours(&path) {
                continue;
            }
            names.insert(on_disk.name, Some(Listed { kind: on_disk.kind, key: Key::Host((device.unwrap_or(0), on_disk.ino)) }));
        }
        for verdict in in_layers {
            let Some(entry) = &verdict.found else { continue };
            let name = entry.path.name().to_vec();
            let link = entry.meta.hard_link.filter(|_| !entry.is_dir()).zip(verdict.layers.first());
            let key = link.map_or_else(|| Key::Path(entry.path.clone()), |(link, layer)| Key::Link(*layer, link.group));
            names.insert(name, (!is_tombstone(entry)).then(|| Listed { kind: image::kind(entry), key }));
        }
        if directory.upper {
            let device = self.upper.stat(&directory.path)?.map_or(0, |stat| stat.st_dev);
            for on_disk in self.upper.entries(&directory.path)? {
                let Some(path) = join(&on_disk.name) else { continue };
                if on_disk.kind == NodeKind::CharDevice && self.upper.stat(&path)?.as_ref().is_none_or(is_whiteout) {
                    names.insert(on_disk.name, None);
                    continue;
                }
                let merged = on_disk.kind == NodeKind::Directory
                    && matches!(names.get(&on_disk.name), Some(Some(Listed { key: Key::Path(_), kind: NodeKind::Directory })));
                let key = if merged { Key::Path(path) } else { Key::Upper((device, on_disk.ino)) };
                names.insert(on_disk.name, Some(Listed { kind: on_disk.kind, key }));
            }
        }
        let defaulted = |path: &LayerPath| path.split().is_some_and(|(parent, _)| parent == directory.path.as_bytes()) && self.policy(path).is_defaulted();
        for (path, _) in self.rules.stated_files().filter(|(path, _)| defaulted(path)) {
            let verdict = in_layers.iter().find(|verdict| verdict.found.as_ref().is_some_and(|entry| entry.path == *path));
            let found = self.find_as(directory, path, self.policy(path), || Ok(verdict.map(|found| (**found).clone()).unwrap_or_default()))?;
            names.insert(path.name().to_vec(), found.map(|found| Listed { kind: found.kind, key: found.key() }));
        }
        let mut shown: BTreeMap<Vec<u8>, Listed> = BTreeMap::new();
        for (name, listed) in names {
            let (Some(listed), Some(path)) = (listed, join(&name)) else { continue };
            let policy = policy(&path);
            if !policy.hides() && (all || !policy.unlisted) {
                shown.insert(name, listed);
            }
        }
        for path in self.passages.iter().filter(|path| path.starts_with(&directory.path) && **path != directory.path) {
            let rest = if directory.path.is_root() { path.as_bytes() } else { &path.as_bytes()[directory.path.as_bytes().len() + 1..] };
            let name = rest.split(|b| *b == b'/').next().unwrap_or_default().to_vec();
            if let Some(path) = join(&name) {
                shown.entry(name).or_insert(Listed { kind: NodeKind::Directory, key: Key::Path(path) });
            }
        }
        Ok(shown)
    }
}
