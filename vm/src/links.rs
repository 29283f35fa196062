//! Rules whose paths lead through symbolic links of the host.
//!
//! The kernel follows links before any filesystem of ours is asked, so a rule for `/bin/tool` on a host where `/bin` is a
//! link to `usr/bin` would never be met. What such a path leads to gets the same rule, unless something is stated for it.
//! Links of layers and of the sandbox are not followed: an image knows its own.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use layer_format::LayerPath;
use layer_format::manifest::Mode;

use crate::regions::{Surroundings, Virtual};
use crate::rules::Rules;

/// The rules, and those for what their paths lead to.
pub(crate) fn follow(rules: &Rules, around: &dyn Surroundings) -> Rules {
    let mut all = rules.clone();
    let leads_to = |path: &LayerPath, itself: bool| leads_to(rules, path, itself, around);
    for (path, mode) in rules.stated() {
        // A link that is hidden, or replaced, is a name of its own. One that shows the host shows what it leads to.
        if let Some(target) = leads_to(path, matches!(mode, Mode::Merge | Mode::WriteCopy)) {
            all.state(target, mode);
        }
    }
    for (path, mode) in rules.stated_files() {
        if let Some(target) = leads_to(path, false) {
            all.state_file(target, mode);
        }
    }
    for (path, attributes) in rules.stated_attributes() {
        if let Some(target) = leads_to(path, false) {
            all.add_attributes(target, attributes);
        }
    }
    all
}

/// Where a path leads on the host, if elsewhere, and if the links on the way are to be seen in the VM. `itself` says whether
/// the last component counts.
fn leads_to(rules: &Rules, path: &LayerPath, itself: bool, around: &dyn Surroundings) -> Option<LayerPath> {
    let parent = path.parent()?;
    let last = if itself { path } else { &parent };
    let mut existing = last.clone();
    let resolved = loop {
        match host_path(&existing).canonicalize() {
            Ok(found) => break found,
            Err(_) => existing = existing.parent()?,
        }
    };
    if resolved == host_path(&existing) {
        return None;
    }
    let is_shown = |path: &LayerPath| rules.shows_host(path) || rules.leads_to_host(path);
    let prefixes = std::iter::successors(Some(existing.clone()), LayerPath::parent);
    let links: Vec<LayerPath> = prefixes.filter(|path| host_path(path).is_symlink()).collect();
    if !links.iter().all(|link| is_shown(link) && around.virtual_at(link) == Virtual::Absent) {
        return None;
    }
    let rest = path.as_bytes().get(existing.as_bytes().len()..).unwrap_or_default();
    let target = [resolved.as_os_str().as_bytes(), b"/", rest].concat();
    LayerPath::from_absolute(&target).ok().filter(|target| !target.is_root())
}

fn host_path(path: &LayerPath) -> PathBuf {
    Path::new("/").join(OsStr::from_bytes(path.as_bytes()))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::sync::Arc;

    use client_store::LayerView;
    use layer_format::manifest::{Attributes, FileMode};

    use super::*;
    use crate::fs::Stubs;
    use crate::surroundings::Actual;

    #[test]
    fn what_a_path_leads_to_on_the_host_gets_its_rules() {
        let host = tempfile::tempdir().unwrap();
        let base = host.path().canonicalize().unwrap();
        let at = |name: &str| LayerPath::from_absolute(base.join(name).as_os_str().as_bytes()).unwrap();
        for dir in ["real/in", "own-real/in", "upper"] {
            fs::create_dir_all(base.join(dir)).unwrap();
        }
        symlink("real", base.join("link")).unwrap();
        symlink("own-real", base.join("own")).unwrap();
        symlink("link", base.join("docs")).unwrap();
        let mut stubs = Stubs::default();
        stubs.add_dir(at("own"));
        let layers: [Arc<dyn LayerView>; 1] = [Arc::new(stubs)];
        let mut rules = Rules::new(Mode::WriteCopy);
        rules.state(at("link/in"), Mode::Hide);
        rules.state(at("link/later/on"), Mode::Full);
        rules.state(at("own/in"), Mode::Hide);
        rules.state(at("docs"), Mode::Merge);
        rules.state(at("real/stated"), Mode::Merge);
        rules.state(at("link/stated"), Mode::Hide);
        rules.state_file(at("link/file"), FileMode::Hide);
        rules.add_attributes(at("link/file"), Attributes { read_only: true, ..Attributes::default() });
        let followed = follow(&rules, &Actual::new(&layers, &base.join("upper")));
        let mode = |name: &str| followed.mode(&at(name));
        assert_eq!((mode("real/in"), mode("link/in")), (Mode::Hide, Mode::Hide));
        assert_eq!(mode("real/later/on"), Mode::Full);
        assert_eq!(mode("own-real/in"), Mode::WriteCopy, "a layer has a directory there");
        assert_eq!(mode("real"), Mode::Merge, "it shows what the link leads to");
        assert_eq!(mode("real/stated"), Mode::Merge, "what is stated for it stays");
        assert!(followed.file_mode(&at("real/file")) == Some(FileMode::Hide) && followed.is_read_only(&at("real/file")));
        // Where the host is not to be seen its links mean nothing.
        let mut rules = Rules::new(Mode::Full);
        rules.state(at("link/in"), Mode::Hide);
        assert_eq!(follow(&rules, &Actual::new(&[], &base.join("upper"))).stated().count(), 1);
    }
}
