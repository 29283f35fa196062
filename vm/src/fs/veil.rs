//! Other names of what the modes keep from sight.
//!
//! A rule names a path; the same file may have other names on the host that no rule mentions: through a symbolic link above
//! it, through a bind mount, in other letters on a filesystem that ignores case. Under each of them it is the same device
//! and inode, and by these it is recognised. Hard links of a file *below* a hidden directory are not: they are names that
//! somebody made elsewhere on purpose.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use layer_format::LayerPath;
use parking_lot::RwLock;
use rustix::fs::{AtFlags, CWD, Stat, statat};

use super::host::host_path;
use crate::rules::Rules;
use crate::spec::Mode;

/// How long the identities are believed: as long as the kernel believes what it knows of the host.
const TTL: Duration = Duration::from_secs(1);

/// What must not be shown under any name.
#[derive(Debug)]
pub(super) struct Veil {
    paths: Vec<LayerPath>,
    /// Also what a symbolic link at these paths leads to: hiding a folder means what is in it.
    followed: Vec<LayerPath>,
    known: RwLock<Known>,
}

#[derive(Debug)]
struct Known {
    since: Instant,
    ids: HashSet<(u64, u64)>,
    inodes: HashSet<u64>,
}

impl Veil {
    /// Of all paths that `rules` keep from sight, and `hidden` ones.
    pub(super) fn new(rules: &Rules, hidden: &[LayerPath]) -> Self {
        let stated: Vec<(&LayerPath, Mode)> = rules.stated().filter(|(_, mode)| *mode >= Mode::Full).collect();
        let files = rules.stated_files().filter(|(path, _)| !rules.shows_host(path)).map(|(path, _)| path);
        let followed = stated.iter().filter(|(_, mode)| *mode == Mode::Hide).map(|(path, _)| *path).chain(hidden);
        let followed: Vec<LayerPath> = followed.filter(|path| !path.is_root()).cloned().collect();
        let paths = stated.iter().map(|(path, _)| *path).chain(files).chain(hidden);
        let paths: Vec<LayerPath> = paths.filter(|path| !path.is_root()).cloned().collect();
        let known = RwLock::new(Known::look(&paths, &followed));
        Self { paths, followed, known }
    }

    /// Whether it is one of them.
    pub(super) fn covers(&self, stat: &Stat) -> bool {
        !self.paths.is_empty() && self.with(|known| known.ids.contains(&(stat.st_dev, stat.st_ino)))
    }

    /// Whether an inode of this number, on whatever device, is one of them.
    pub(super) fn may_cover(&self, inode: u64) -> bool {
        !self.paths.is_empty() && self.with(|known| known.inodes.contains(&inode))
    }

    fn with<T>(&self, ask: impl FnOnce(&Known) -> T) -> T {
        let known = self.known.read();
        if known.since.elapsed() < TTL {
            return ask(&known);
        }
        drop(known);
        let fresh = Known::look(&self.paths, &self.followed);
        let answer = ask(&fresh);
        *self.known.write() = fresh;
        answer
    }
}

impl Known {
    fn look(paths: &[LayerPath], followed: &[LayerPath]) -> Self {
        let since = Instant::now();
        let look = |flags: AtFlags| move |path: &LayerPath| statat(CWD, host_path(path), flags).ok();
        let stats = paths.iter().filter_map(look(AtFlags::SYMLINK_NOFOLLOW)).chain(followed.iter().filter_map(look(AtFlags::empty())));
        // The root of the host has a name that is always shown.
        let root = statat(CWD, "/", AtFlags::empty()).ok().map(|stat| (stat.st_dev, stat.st_ino));
        let ids: HashSet<(u64, u64)> = stats.map(|stat| (stat.st_dev, stat.st_ino)).filter(|id| Some(*id) != root).collect();
        let inodes = ids.iter().map(|(_, inode)| *inode).collect();
        Self { since, ids, inodes }
    }
}
