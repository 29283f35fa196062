//! Files that several images have.

use std::collections::{BTreeMap, HashMap};

use anyhow::Result;
use client_store::{ObjectCache, Store};
use layer_format::entry::{Entry, Kind};
use layer_format::tree::{Node, Scan, Step};
use layer_format::{Digest, LayerPath};
use serde::Serialize;

/// A path that several images have.
#[derive(Debug, Serialize)]
pub(super) struct Conflict {
    /// Absolute.
    pub(super) path: String,
    /// The images, lowest first: the last one's is seen.
    pub(super) images: Vec<String>,
    /// Whether all have the same.
    pub(super) identical: bool,
}

/// All such paths, in order.
#[derive(Debug, Default, Serialize)]
pub(super) struct Conflicts {
    /// How many there are.
    pub(super) count: usize,
    /// How many of them are the same in all images.
    pub(super) identical: usize,
    /// Images whose files are not all known here, so that they were not compared.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) not_compared: Vec<String>,
    /// The first of them, or all.
    pub(super) files: Vec<Conflict>,
}

/// What an entry is, as far as it matters whether two are the same. Directories are all alike.
fn content(entry: &Entry) -> u64 {
    let text = match &entry.kind {
        Kind::Directory { .. } => return 0,
        Kind::File(recipe) => [b"f", &recipe.encode_node()[..]].concat(),
        Kind::Symlink(target) => [b"l", &target[..]].concat(),
        other => format!("{other:?}").into_bytes(),
    };
    Digest::of(&text).prefix64().max(1)
}

/// Compares images, lowest first, each with the roots of its layers. At most `shown` are listed.
pub(super) fn find(store: &Store, images: &[(String, Vec<Digest>)], shown: usize) -> Result<Conflicts> {
    let mut first: HashMap<LayerPath, (usize, u64)> = HashMap::new();
    let mut several: BTreeMap<LayerPath, Vec<(usize, u64)>> = BTreeMap::new();
    let mut found = Conflicts::default();
    for (number, (name, roots)) in images.iter().enumerate() {
        for root in roots {
            let compared = scan(store, *root, |entry| {
                let content = content(&entry);
                match first.entry(entry.path.clone()) {
                    std::collections::hash_map::Entry::Vacant(place) => drop(place.insert((number, content))),
                    std::collections::hash_map::Entry::Occupied(mut old) if old.get().0 == number => drop(old.insert((number, content))),
                    std::collections::hash_map::Entry::Occupied(old) => {
                        let all = several.entry(entry.path).or_insert_with(|| vec![*old.get()]);
                        match all.last_mut() {
                            // A higher layer of the same image.
                            Some(last) if last.0 == number => last.1 = content,
                            _ => all.push((number, content)),
                        }
                    }
                }
            })?;
            if !compared && !found.not_compared.contains(name) {
                found.not_compared.push(name.clone());
            }
        }
    }
    // Two images that both have a folder share it.
    several.retain(|_, all| all.iter().any(|(_, content)| *content != 0));
    found.count = several.len();
    for (path, all) in several {
        let identical = all.iter().all(|(_, content)| *content == all[0].1);
        found.identical += usize::from(identical);
        if found.files.len() < shown {
            let images = all.iter().map(|(number, _)| images[*number].0.clone()).collect();
            found.files.push(Conflict { path: format!("/{}", String::from_utf8_lossy(path.as_bytes())), images, identical });
        }
    }
    Ok(found)
}

/// All entries of a tree; false if not all of it is here.
fn scan(store: &Store, root: Digest, mut each: impl FnMut(Entry)) -> Result<bool> {
    let mut scan = Scan::all(root);
    loop {
        match scan.step() {
            Step::Need(digest) => {
                let Some(bytes) = store.get(&digest)? else { return Ok(false) };
                scan.feed(&Node::decode(&bytes)?)?;
            }
            Step::Done(Some(entry)) => each(entry),
            Step::Done(None) => return Ok(true),
        }
    }
}
