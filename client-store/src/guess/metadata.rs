//! The nodes of the layers' trees ahead of use, breadth first, those near what the application touched first; then the
//! recipe nodes of large files near that.
//!
//! Nodes are small: those of an image of half a gigabyte arrive within a second, and after that no lookup waits.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use layer_format::Digest;
use layer_format::entry::Kind;
use layer_format::recipe::Recipe;
use layer_format::tree::Node;

use super::File;
use crate::fetch::{Candidate, Fetcher};
use crate::prefetch::NODE_LEN;
use crate::reader::Nodes;

/// Most bytes of nodes, and how long the link may take for them.
const MAX_BYTES: u64 = 8 << 20;
const MAX_SECONDS: f64 = 1.0;
/// Nodes asked for at a time.
const BATCH: usize = 64;
/// Nodes of each side of what was touched lately that go first.
const NEAR: usize = 8;
/// How many touches are remembered.
const FOCUS: usize = 8;
/// How likely a node is needed: they are cheap, and a miss costs a round trip.
const PROBABILITY: f32 = 0.65;
/// They go behind what is needed within this time, in microseconds.
const WITHIN_US: u32 = 150_000;
/// How long a node that was asked for is waited for.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Debug)]
enum Below {
    Tree,
    Recipe,
}

#[derive(Debug)]
struct Asked {
    layer: u8,
    digest: Digest,
    until: Instant,
}

/// Which nodes to fetch next.
#[derive(Debug)]
pub(crate) struct Metadata {
    /// Known and not asked for, by where they are.
    known: BTreeMap<File, Vec<(Digest, Below)>>,
    /// Asked for; what is below them is not known yet.
    asked: Vec<Asked>,
    focus: VecDeque<File>,
    bytes: u64,
    /// Nothing is left that is near, nor any tree node.
    is_idle: bool,
}

impl Metadata {
    pub(crate) fn new(roots: &[Digest]) -> Self {
        let asked = (0..=u8::MAX).zip(roots).map(|(layer, root)| Asked { layer, digest: *root, until: Instant::now() + PATIENCE }).collect();
        Self { known: BTreeMap::new(), asked, focus: VecDeque::new(), bytes: 0, is_idle: false }
    }

    /// The application is here.
    pub(crate) fn focus(&mut self, file: &File) {
        if self.focus.front() != Some(file) {
            self.focus.push_front(file.clone());
            self.focus.truncate(FOCUS);
            self.is_idle = false;
        }
    }

    /// Whether nothing is left to do, or to spend.
    pub(crate) fn is_done(&self) -> bool {
        self.bytes >= MAX_BYTES || (self.asked.is_empty() && self.is_idle)
    }

    /// Takes in the nodes that have arrived, and names the next ones.
    pub(crate) fn step(&mut self, nodes: &Nodes, fetcher: &Fetcher, candidates: &mut Vec<Candidate>) {
        let budget = MAX_BYTES.min((fetcher.rate() * MAX_SECONDS) as u64);
        if self.is_done() || self.bytes >= budget {
            return;
        }
        let now = Instant::now();
        for asked in std::mem::take(&mut self.asked) {
            match nodes.local_tree(&asked.digest) {
                Some(node) => self.arrived(asked.layer, &node),
                None if asked.until > now => self.asked.push(asked),
                None => {}
            }
        }
        if self.asked.len() >= BATCH {
            return;
        }
        let next = self.nearest();
        self.is_idle = next.is_empty();
        for (at, (digest, below)) in next {
            self.bytes += u64::from(NODE_LEN);
            fetcher.allow(NODE_LEN.into());
            candidates.push(Candidate { digest, len: NODE_LEN, probability: PROBABILITY, within_us: WITHIN_US });
            if matches!(below, Below::Tree) {
                self.asked.push(Asked { layer: at.0, digest, until: now + PATIENCE });
            }
        }
    }

    fn arrived(&mut self, layer: u8, node: &Node) {
        match node {
            Node::Index { children, .. } => {
                for child in children {
                    self.known.entry((layer, child.first.clone())).or_default().push((child.digest, Below::Tree));
                }
            }
            Node::Leaf(entries) => {
                for entry in entries {
                    let Kind::File(Recipe::Nodes { nodes, .. }) = &entry.kind else { continue };
                    let list = self.known.entry((layer, entry.path.clone())).or_default();
                    // The first tells the start of the file; a huge file's others come as they are needed.
                    list.extend(nodes.iter().take(NEAR).map(|node| (node.digest, Below::Recipe)));
                }
            }
        }
    }

    /// The next nodes: near what was touched lately, then tree nodes in order.
    fn nearest(&mut self) -> Vec<(File, (Digest, Below))> {
        let mut places: Vec<File> = Vec::new();
        for focus in &self.focus {
            places.extend(self.known.range(focus.clone()..).take(NEAR).map(|(at, _)| at.clone()));
            places.extend(self.known.range(..focus.clone()).rev().take(NEAR).map(|(at, _)| at.clone()));
        }
        let is_tree = |list: &[(Digest, Below)]| list.iter().any(|(_, below)| matches!(below, Below::Tree));
        places.extend(self.known.iter().filter(|(_, list)| is_tree(list)).take(BATCH).map(|(at, _)| at.clone()));
        let mut found = Vec::new();
        for at in places {
            if found.len() >= BATCH {
                break;
            }
            if let Some(list) = self.known.remove(&at) {
                found.extend(list.into_iter().map(|node| (at.clone(), node)));
            }
        }
        found
    }
}
