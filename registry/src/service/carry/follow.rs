//! What became of paths of a layer in the layer that took its place. In this order:
//! 1. The path is still there.
//! 2. A file with the same content is elsewhere, and only there; of several the one of the same name.
//! 3. The folder that the path was in, or what that became, has a name that was not there before and that is equal but for
//!    version numbers and hashes; and only one such name, for only one that is gone.
//!
//! What became of a folder is told by the files that moved out of it (2), else by its name (3).

use std::collections::{BTreeMap, HashMap, HashSet};

use layer_format::LayerPath;
use layer_format::entry::{Entry, Kind};
use predictor::carry::name_stem;

use super::super::frames::ReadError;
use super::super::nodes::NodeError;
use super::super::resolve::Layers;
use super::changed::{changed_files, content};
use super::{Place, lookup};

/// Entries of a folder that are looked at.
const MAX_LISTING: usize = 1 << 14;
/// Folders that are listed for one layer.
const MAX_LISTINGS: usize = 1 << 12;

/// Where each of the paths is now. Those that are gone are left out.
pub(super) async fn follow(
    old: &Layers,
    old_layer: usize,
    new: &Layers,
    new_layer: usize,
    paths: &[LayerPath],
) -> Result<HashMap<LayerPath, Place>, ReadError> {
    let files = changed_files(old, old_layer, new, new_layer).await?;
    let mut follower = Follower { old, old_layer, new, new_layer, votes: HashMap::new(), folders: HashMap::new(), listings: HashMap::new() };
    let mut found = HashMap::with_capacity(paths.len());
    let mut gone = Vec::new();
    for path in paths {
        let before = lookup(old, old_layer, path).await?;
        if let Some(entry) = lookup(new, new_layer, path).await? {
            let is_same = before.as_ref().is_some_and(|before| before.kind == entry.kind);
            found.insert(path.clone(), Place { path: path.clone(), entry, is_same });
            continue;
        }
        // A path that was not there either names nothing.
        let Some(before) = before else { continue };
        let moved = content(&before).and_then(|content| unique(files.get(&content)?, path.name()));
        match moved {
            Some(moved) => {
                if let Some(entry) = lookup(new, new_layer, moved).await? {
                    follower.vote(path, moved);
                    found.insert(path.clone(), Place { path: moved.clone(), entry, is_same: true });
                }
            }
            None => gone.push((path, before)),
        }
    }
    for (path, before) in gone {
        if let Some((new_path, entry)) = Box::pin(follower.by_name(path, &before)).await? {
            found.insert(path.clone(), Place { path: new_path, is_same: entry.kind == before.kind, entry });
        }
    }
    Ok(found)
}

/// The only path, or the only one with this name.
fn unique<'a>(paths: &'a [LayerPath], name: &[u8]) -> Option<&'a LayerPath> {
    match paths {
        [one] => Some(one),
        many => {
            let mut same = many.iter().filter(|path| path.name() == name);
            same.next().filter(|_| same.next().is_none())
        }
    }
}

/// Names of a folder's entries, and whether each is a folder.
type Listing = BTreeMap<Vec<u8>, bool>;

struct Follower<'a> {
    old: &'a Layers,
    old_layer: usize,
    new: &'a Layers,
    new_layer: usize,
    /// How many files moved from one folder to another.
    votes: HashMap<LayerPath, BTreeMap<LayerPath, usize>>,
    /// What folders became.
    folders: HashMap<LayerPath, Option<LayerPath>>,
    /// Of the old layer (false) and of the new one.
    listings: HashMap<(bool, LayerPath), Listing>,
}

impl Follower<'_> {
    /// A file moved: so did its folder, and as long as names are equal the folders above.
    fn vote(&mut self, from: &LayerPath, to: &LayerPath) {
        let (mut from, mut to) = (from.clone(), to.clone());
        while let (Some(old), Some(new)) = (from.parent(), to.parent()) {
            if old == new || old.is_root() {
                return;
            }
            *self.votes.entry(old.clone()).or_default().entry(new.clone()).or_default() += 1;
            if old.name() != new.name() {
                return;
            }
            (from, to) = (old, new);
        }
    }

    /// What a path became that is gone, by names.
    async fn by_name(&mut self, path: &LayerPath, before: &Entry) -> Result<Option<(LayerPath, Entry)>, ReadError> {
        if before.is_dir() {
            let Some(folder) = self.folder(path).await? else { return Ok(None) };
            return Ok(lookup(self.new, self.new_layer, &folder).await?.map(|entry| (folder, entry)));
        }
        let Some(parent) = path.parent() else { return Ok(None) };
        let Some(folder) = self.folder(&parent).await? else { return Ok(None) };
        let Some(found) = self.child(&parent, path.name(), &folder, false).await? else { return Ok(None) };
        let entry = lookup(self.new, self.new_layer, &found).await?;
        Ok(entry.filter(|entry| std::mem::discriminant(&entry.kind) == std::mem::discriminant(&before.kind)).map(|entry| (found, entry)))
    }

    /// What a folder became.
    async fn folder(&mut self, folder: &LayerPath) -> Result<Option<LayerPath>, ReadError> {
        let mut above = vec![folder.clone()];
        while let Some(parent) = above.last().and_then(LayerPath::parent) {
            above.push(parent);
        }
        let mut became = Some(LayerPath::root());
        let mut parent = LayerPath::root();
        // From the top down; the root is the root.
        for old in above.into_iter().rev().skip(1) {
            became = match self.folders.get(&old) {
                Some(known) => known.clone(),
                None => {
                    let found = self.folder_below(&parent, &old, became.as_ref()).await?;
                    self.folders.insert(old.clone(), found.clone());
                    found
                }
            };
            parent = old;
        }
        Ok(became)
    }

    async fn folder_below(&mut self, parent: &LayerPath, old: &LayerPath, parent_became: Option<&LayerPath>) -> Result<Option<LayerPath>, ReadError> {
        if is_folder(lookup(self.new, self.new_layer, old).await?.as_ref()) {
            return Ok(Some(old.clone()));
        }
        let most = self.votes.get(old).and_then(|votes| votes.iter().max_by_key(|(path, count)| (**count, std::cmp::Reverse(*path))));
        if let Some((voted, _)) = most {
            return Ok(Some(voted.clone()));
        }
        match parent_became {
            Some(folder) => self.child(parent, old.name(), folder, true).await,
            None => Ok(None),
        }
    }

    /// The entry of `new_folder` that took the place of `name` in `old_folder`.
    async fn child(&mut self, old_folder: &LayerPath, name: &[u8], new_folder: &LayerPath, is_dir: bool) -> Result<Option<LayerPath>, ReadError> {
        self.list(false, old_folder).await?;
        self.list(true, new_folder).await?;
        let (old, new) = (self.listings.get(&(false, old_folder.clone())), self.listings.get(&(true, new_folder.clone())));
        let (Some(old), Some(new)) = (old, new) else { return Ok(None) };
        if new.get(name) == Some(&is_dir) {
            return Ok(new_folder.join(name).ok());
        }
        Ok(counterpart(old, name, new, is_dir).and_then(|name| new_folder.join(name).ok()))
    }

    async fn list(&mut self, is_new: bool, folder: &LayerPath) -> Result<(), ReadError> {
        let key = (is_new, folder.clone());
        if self.listings.contains_key(&key) || self.listings.len() >= MAX_LISTINGS {
            return Ok(());
        }
        let (layers, layer) = if is_new { (self.new, self.new_layer) } else { (self.old, self.old_layer) };
        match layers.list(layer, folder, MAX_LISTING).await.map_err(NodeError::into_outage) {
            Ok(entries) => drop(self.listings.insert(key, entries.iter().map(|entry| (entry.path.name().to_vec(), entry.is_dir())).collect())),
            Err(Some(outage)) => return Err(outage),
            Err(None) => {}
        }
        Ok(())
    }
}

fn is_folder(entry: Option<&Entry>) -> bool {
    entry.is_some_and(|entry| matches!(entry.kind, Kind::Directory { .. }))
}

/// Of the names that only the new folder has, the one that is `name` but for versions and hashes; if it is the only one,
/// and `name` the only one of the old folder that is gone and has this stem.
fn counterpart<'a>(old: &Listing, name: &[u8], new: &'a Listing, is_dir: bool) -> Option<&'a Vec<u8>> {
    let stem = name_stem(name);
    let only = |here: &'a Listing, there: &Listing| -> Option<&'a Vec<u8>> {
        let names: HashSet<&Vec<u8>> =
            here.iter().filter(|(name, dir)| **dir == is_dir && !there.contains_key(*name) && name_stem(name) == stem).map(|(name, _)| name).collect();
        (names.len() == 1).then(|| names.into_iter().next())?
    };
    let gone = old.iter().filter(|(other, dir)| **dir == is_dir && !new.contains_key(*other) && name_stem(other) == stem).count();
    (gone == 1).then(|| only(new, old))?
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listing(names: &[&str]) -> Listing {
        names.iter().map(|name| (name.trim_end_matches('/').as_bytes().to_vec(), name.ends_with('/'))).collect()
    }

    #[test]
    fn a_name_is_followed_only_if_there_is_no_doubt() {
        let found = |old: &[&str], name: &str, new: &[&str]| {
            let is_dir = name.ends_with('/');
            let (old, new) = (listing(old), listing(new));
            counterpart(&old, name.trim_end_matches('/').as_bytes(), &new, is_dir).map(|name| String::from_utf8(name.clone()).unwrap())
        };
        assert_eq!(found(&["foo-1.2.dist-info/", "foo/"], "foo-1.2.dist-info/", &["foo-1.3.dist-info/", "foo/"]).as_deref(), Some("foo-1.3.dist-info"));
        assert_eq!(found(&["libx-6cdc3b4a.so"], "libx-6cdc3b4a.so", &["libx-a1b2c3d4.so", "liby-a1b2c3d4.so"]).as_deref(), Some("libx-a1b2c3d4.so"));
        assert_eq!(found(&["a.1", "a.2"], "a.1", &["a.2", "a.3"]).as_deref(), Some("a.3"), "a.2 is still there");
        assert_eq!(found(&["a.1", "a.2"], "a.1", &["a.3", "a.4"]), None, "two are gone");
        assert_eq!(found(&["a.1"], "a.1", &["a.3", "a.4"]), None, "two are new");
        assert_eq!(found(&["a-1"], "a-1", &["a-2/"]), None, "a folder is no file");
    }

    #[test]
    fn one_content_in_many_places_is_followed_by_name() {
        let paths: Vec<LayerPath> = ["a/x", "b/y", "c/y"].iter().map(|path| LayerPath::new(*path).unwrap()).collect();
        assert_eq!(unique(&paths, b"x"), Some(&paths[0]));
        assert_eq!(unique(&paths, b"y"), None);
        assert_eq!(unique(&paths[1..2], b"z"), Some(&paths[1]));
    }
}
