//! A name that is about to change.

use std::sync::Arc;

use client_store::view::Caller;
use layer_format::LayerPath;
use rustix::fs::Stat;
use rustix::io::Errno;

use super::super::merge::Verdict;
use super::UnionFs;
use super::node::Node;
use super::policy::Policy;
use super::view::{DirView, Found};

/// A name that is to be changed: what is known of it before any lock is taken.
#[derive(Debug)]
pub(super) struct Spot {
    pub(super) dir: Arc<Node>,
    pub(super) view: DirView,
    pub(super) path: LayerPath,
    pub(super) policy: Policy,
    /// What the layers have.
    pub(super) verdict: Verdict,
}

impl Spot {
    pub(super) fn name(&self) -> &[u8] {
        self.path.name()
    }

    pub(super) fn at(&self) -> (u64, &[u8]) {
        (self.dir.ino, self.path.name())
    }
}

/// Where something new goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ground {
    Sandbox,
    Host,
}

impl UnionFs {
    /// All that is to be known of a name before locks are taken. May wait for the network.
    pub(super) fn survey(&self, parent: u64, name: &[u8], caller: Caller) -> Result<Spot, Errno> {
        let dir = self.directory(parent)?;
        let view = self.view(&dir)?;
        let path = view.path.join(name).map_err(|_| Errno::NAMETOOLONG)?;
        let policy = self.policy(&path);
        let verdict = self.in_layers(&view, &path, caller)?;
        Ok(Spot { dir, view, path, policy, verdict })
    }

    /// Brings a spot up to date; `false` if it has to be surveyed anew.
    pub(super) fn confirm(&self, spot: &mut Spot) -> Result<bool, Errno> {
        let now = self.view(&spot.dir)?;
        let same = now.path == spot.view.path && now.layers == spot.view.layers;
        spot.view = now;
        Ok(same)
    }

    /// Changes a name, with the directory locked.
    pub(super) fn change_name<R>(&self, parent: u64, name: &[u8], caller: Caller, mut act: impl FnMut(&Spot) -> Result<R, Errno>) -> Result<R, Errno> {
        loop {
            let mut spot = self.survey(parent, name, caller)?;
            let dir = Arc::clone(&spot.dir);
            let _gate = self.gate.read();
            let _entries = dir.entries.lock();
            if self.confirm(&mut spot)? {
                return act(&spot);
            }
        }
    }

    /// What is at a spot now. Never waits for the network.
    pub(super) fn find_spot(&self, spot: &Spot) -> Result<Option<Found>, Errno> {
        let found = self.find_as(&spot.view, &spot.path, spot.policy, || Ok(spot.verdict.clone()))?;
        Ok(found.filter(|found| !found.seed))
    }

    /// What the host has at a spot behind what is seen there, if the mode shows the host.
    pub(super) fn behind(&self, spot: &Spot) -> Result<Option<Stat>, Errno> {
        self.on_host(spot.view.closed, &spot.path, spot.policy)
    }

    /// Whether a layer has the name, if only a tombstone.
    pub(super) fn is_held(spot: &Spot) -> bool {
        spot.verdict.found.is_some()
    }
}
