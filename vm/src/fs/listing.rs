//! A directory merged from several layers, listed piece by piece.
//!
//! Each layer's children come sorted by name, so the union is a merge of sorted lists; it is read only as far as it is
//! asked for. Its order depends on nothing but the layers, so a position in it stays right when the listing is made anew.

use std::collections::VecDeque;
use std::sync::Arc;

use client_store::view::Caller;
use client_store::{FetchError, LayerView};
use layer_format::LayerPath;
use layer_format::entry::Entry;

use super::merge::Verdict;

/// How many entries are asked of a layer at a time.
const PAGE: usize = 512;

#[derive(Debug)]
struct Source {
    layer: u16,
    ready: VecDeque<Entry>,
    /// The last name received.
    after: Option<Vec<u8>>,
    ended: bool,
}

/// The union of one directory in some layers.
#[derive(Debug)]
pub(super) struct Listing {
    directory: LayerPath,
    /// Highest layer first.
    sources: Vec<Source>,
    /// For [`Verdict::host`].
    host: bool,
    found: Vec<Arc<Verdict>>,
    ended: bool,
}

impl Listing {
    pub(super) fn new(directory: LayerPath, layers: &[u16], host: bool) -> Self {
        let source = |layer: &u16| Source { layer: *layer, ready: VecDeque::new(), after: None, ended: false };
        Self { directory, sources: layers.iter().map(source).collect(), host, found: Vec::new(), ended: false }
    }

    /// The entries `index..index + max` of those that `keep` accepts, fewer at the end.
    pub(super) fn get(
        &mut self,
        index: usize,
        max: usize,
        layer: &impl Fn(u16) -> Option<Arc<dyn LayerView>>,
        keep: &impl Fn(&Verdict) -> bool,
        accept: &impl Fn(u16, &Entry) -> bool,
        caller: Caller,
    ) -> Result<Vec<Arc<Verdict>>, FetchError> {
        while !self.ended && self.found.len() < index + max {
            match self.next(layer, accept, caller)? {
                Some(verdict) if keep(&verdict) => self.found.push(Arc::new(verdict)),
                Some(_) => {}
                None => self.ended = true,
            }
        }
        Ok(self.found.get(index..).unwrap_or_default().iter().take(max).cloned().collect())
    }

    fn next(
        &mut self,
        layer: &impl Fn(u16) -> Option<Arc<dyn LayerView>>,
        accept: &impl Fn(u16, &Entry) -> bool,
        caller: Caller,
    ) -> Result<Option<Verdict>, FetchError> {
        for source in &mut self.sources {
            if source.ready.is_empty() && !source.ended {
                let view = layer(source.layer);
                let page = view.map_or(Ok(Vec::new()), |view| view.list(&self.directory, source.after.as_deref(), PAGE, caller))?;
                source.ended = page.is_empty();
                source.after = page.last().map(|entry| entry.path.name().to_vec());
                source.ready.extend(page);
            }
        }
        let fronts = self.sources.iter().filter_map(|source| source.ready.front());
        let Some(name) = fronts.map(|entry| entry.path.name()).min().map(<[u8]>::to_vec) else { return Ok(None) };
        let mut verdict = Verdict { host: self.host, ..Verdict::default() };
        let mut open = true;
        for source in &mut self.sources {
            if source.ready.front().is_some_and(|entry| entry.path.name() == name)
                && let Some(entry) = source.ready.pop_front()
                && open
                && accept(source.layer, &entry)
            {
                open = verdict.add(source.layer, entry);
            }
        }
        Ok(Some(verdict))
    }
}
