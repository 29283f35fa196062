//! The rules by which entries of one name in several layers become one.

use std::sync::Arc;

use client_store::view::Caller;
use client_store::{FetchError, LayerView};
use layer_format::LayerPath;
use layer_format::entry::{Entry, Kind};

/// What a name is, found by looking at one layer after the other, from the highest down.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// The entry of the highest layer that has one: it decides kind, content and metadata. May be a whiteout.
    pub(crate) found: Option<Entry>,
    /// The layers that take part, highest first: one, or for a directory all that are merged.
    pub(crate) layers: Vec<u16>,
    /// Whether anything below the last of them is hidden.
    pub(crate) closed: bool,
    /// Whether overlayfs merges the directory that this is in with the host's.
    pub(crate) host: bool,
}

impl Verdict {
    /// Takes what the next lower layer has under the name. Returns whether lower ones matter still.
    pub(crate) fn add(&mut self, layer: u16, entry: Entry) -> bool {
        let whiteout = is_whiteout(&entry);
        let opaque = matches!(entry.kind, Kind::Directory { opaque: true });
        match (&self.found, entry.is_dir()) {
            (Some(_), true) => self.layers.push(layer),
            // A file or whiteout below a directory ends the merge: what is lower belonged to another directory.
            (Some(_), false) => {}
            (None, _) => {
                self.layers.push(layer);
                self.found = Some(entry.clone());
            }
        }
        self.closed = whiteout || opaque || !entry.is_dir();
        !self.closed
    }

    /// The entry to show. A whiteout is shown only if it has something to hide below all layers: overlayfs would list it
    /// as a name in a directory that it does not merge.
    pub(super) fn visible(&self) -> Option<&Entry> {
        self.found.as_ref().filter(|entry| self.host || !is_whiteout(entry))
    }
}

/// A tombstone; also in the form of overlayfs, which would take a device 0:0 for one anyway.
pub(super) fn is_whiteout(entry: &Entry) -> bool {
    matches!(entry.kind, Kind::Whiteout | Kind::CharDevice { major: 0, minor: 0 })
}

/// What `numbers` (layers, highest first) have at `path`, each asked once and none in vain. `kept` is a layer whose file there
/// no other replaces. `accept` leaves entries out.
pub(super) fn resolve(
    path: &LayerPath,
    numbers: &[u16],
    kept: Option<u16>,
    layer: impl Fn(u16) -> Option<Arc<dyn LayerView>>,
    accept: impl Fn(u16, &Entry) -> bool,
    caller: Caller,
) -> Result<Verdict, FetchError> {
    let mut verdict = Verdict::default();
    let kept = kept.filter(|kept| numbers.contains(kept));
    if let Some((number, entry)) = kept_file(path, kept, &layer, caller)? {
        verdict.add(number, entry);
        return Ok(verdict);
    }
    for &number in numbers {
        let Some(view) = layer(number) else { continue };
        if let Some(entry) = view.lookup(path, caller)?
            && accept(number, &entry)
            && !verdict.add(number, entry)
        {
            break;
        }
    }
    Ok(verdict)
}

/// The file that a layer keeps, if it has one.
fn kept_file(
    path: &LayerPath,
    kept: Option<u16>,
    layer: &impl Fn(u16) -> Option<Arc<dyn LayerView>>,
    caller: Caller,
) -> Result<Option<(u16, Entry)>, FetchError> {
    let Some((number, view)) = kept.and_then(|kept| Some((kept, layer(kept)?))) else { return Ok(None) };
    let entry = view.lookup(path, caller)?.filter(|entry| !entry.is_dir() && !is_whiteout(entry));
    Ok(entry.map(|entry| (number, entry)))
}

/// Whether what `number` has at `path` gives way to a file that the lower layer `kept` keeps. A layer that cannot be asked
/// keeps nothing: the listing it is for would fail there anyway.
pub(super) fn gives_way(path: &LayerPath, number: u16, kept: Option<u16>, layer: impl Fn(u16) -> Option<Arc<dyn LayerView>>, caller: Caller) -> bool {
    kept.is_some_and(|kept| number > kept && matches!(kept_file(path, Some(kept), &layer, caller), Ok(Some(_))))
}
