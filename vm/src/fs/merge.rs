//! The rules by which entries of one name in several layers become one.

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
