//! What a run shows, and the threads that answer for it: the plan of its regions, and the filesystems that these need.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use client_store::LayerView;
use layer_format::LayerPath;
use rustix::process::{Resource, Rlimit, getegid, geteuid, getrlimit, setrlimit};

use crate::coherence::Asked;
use crate::error::VmError;
use crate::fs::{HideFs, HostFs, HostHas, ImageFs, Stubs, UnionFs, UnionOptions, Witness};
use crate::fuse::{self, Ids};
use crate::links;
use crate::ns::protocol::Served;
use crate::regions::{self, Kind, Region};
use crate::rules::Rules;
use crate::running::Running;
use crate::sandbox::{self, Made};
use crate::spec::{Mode, RunSpec};
use crate::surroundings::Actual;

/// Files of the host that a VM without host has unless an image brings its own.
const FROM_HOST: [&str; 2] = ["etc/resolv.conf", "etc/hosts"];

/// What a run shows, decided before its namespaces are filled.
pub(crate) struct View {
    rules: Arc<Rules>,
    /// Host paths that are never shown.
    hidden: Vec<PathBuf>,
    upper: PathBuf,
    /// The root first, parents before what is below.
    regions: Vec<Region>,
    /// The filesystems to serve, in the order in which their descriptors come.
    pub(crate) fuse: Vec<Served>,
    /// Directories made in `upper` for the time of the run.
    pub(crate) made: Vec<Made>,
}

impl View {
    /// Plans the view of a run in `sandbox`, an absolute path.
    pub(crate) fn new(spec: &RunSpec, layers: &[Arc<dyn LayerView>], sandbox: &Path) -> Result<Self, VmError> {
        let upper = sandbox.join("upper");
        let hidden = hidden(spec, sandbox);
        let actual = Actual::new(layers, &upper);
        let working_dir = layer_path(&spec.working_dir).unwrap_or_default();
        let hidden_paths: Vec<LayerPath> = hidden.iter().filter_map(|path| layer_path(path)).filter(|path| !path.is_root()).collect();
        let rules = links::follow(&spec.rules, &actual);
        let regions = regions::plan(&rules, &hidden_paths, &working_dir, &actual);
        let has = |kind: Kind| regions.iter().any(|region| region.kind == kind);
        // In this order: mounting the overlay waits for the last two, and a root for what it is made of. So all are served
        // before the application can start, or end.
        let mut fuse = Vec::new();
        fuse.extend(has(Kind::Hide).then_some(Served::Hide));
        fuse.extend(has(Kind::Union).then_some(Served::Union));
        fuse.extend(has(Kind::Overlay).then_some(Served::Images));
        fuse.extend((has(Kind::Overlay) && overlay_shows_host(&rules, &regions)).then_some(Served::Host));
        let mut made = Vec::new();
        if has(Kind::Overlay) && has(Kind::Union) {
            let borders = regions.iter().filter(|region| matches!(region.kind, Kind::Overlay | Kind::Union));
            let parents: BTreeSet<LayerPath> = borders.filter_map(|region| region.path.parent()).collect();
            made = sandbox::make_shared(&upper, &parents, |path| actual.directory_meta(path))?;
        }
        Ok(Self { rules: Arc::new(rules), hidden, upper, regions, fuse, made })
    }

    /// The regions as the VM's processes get them.
    pub(crate) fn regions(&self) -> Vec<(Vec<u8>, Kind)> {
        self.regions.iter().map(|region| (region.path.as_bytes().to_vec(), region.kind)).collect()
    }

    /// Whether `/dev` is the VM's own: where the host is not to be seen.
    pub(crate) fn has_private_dev(&self) -> bool {
        self.rules.mode(&LayerPath::root()) == Mode::Full
    }

    /// Whether `/tmp` is the VM's own.
    pub(crate) fn has_private_tmp(&self) -> bool {
        self.has_private_dev() && self.rules.mode(&fixed("tmp")) == Mode::Full
    }

    /// Whether `/dev/shm` is the host's.
    pub(crate) fn has_host_shm(&self) -> bool {
        self.rules.mode(&fixed("dev/shm")) == Mode::Merge
    }

    /// Starts the threads that answer the kernel on `devices`, which are those of [`Self::fuse`]. `binds` are the sources
    /// and targets of further mounts, whose places must exist.
    pub(crate) fn serve(
        &self,
        spec: &RunSpec,
        layers: Vec<Arc<dyn LayerView>>,
        binds: &[(PathBuf, PathBuf)],
        devices: Vec<OwnedFd>,
        ids: Ids,
        running: &mut Running,
    ) -> Result<(), VmError> {
        let pending = &Arc::clone(running.pending());
        if devices.len() != self.fuse.len() {
            return Err(VmError::Died);
        }
        let failed = |error: io::Error| VmError::set_up("serve FUSE", error);
        let host_fs = self.fuse.contains(&Served::Host).then(|| Arc::new(self.host(binds, running)));
        if self.fuse.iter().any(|served| matches!(served, Served::Host | Served::Union)) {
            allow_many_open_files();
        }
        for (served, device) in self.fuse.iter().zip(devices) {
            match served {
                Served::Images => {
                    let image = self.image(layers.clone(), binds, host_fs.clone());
                    fuse::serve(Arc::new(image), device, fuse::Settings::image(spec, ids), pending).map_err(failed)?;
                }
                Served::Host => {
                    let Some(host) = host_fs.clone() else { continue };
                    fuse::serve(host, device, fuse::Settings::host(ids), pending).map_err(failed)?;
                }
                Served::Union => {
                    let union = UnionFs::new(self.union(layers.clone(), binds)).map_err(|error| VmError::set_up("open the union", error))?;
                    fuse::serve_union(Arc::new(union), device, ids, pending).map_err(failed)?;
                }
                Served::Hide => fuse::serve(Arc::new(HideFs), device, fuse::Settings::hide(ids), pending).map_err(failed)?,
            }
        }
        Ok(())
    }

    fn host(&self, binds: &[(PathBuf, PathBuf)], running: &mut Running) -> HostFs {
        let watched = watch(running).map_err(|error| tracing::debug!("new names on the host will not be noticed: {error}"));
        // Where the host is visible its own directories stand at the mount points, with their own modes.
        HostFs::new(Arc::clone(&self.rules), self.places(binds), &self.hidden).covering(self.covered()).witnessed(watched.ok())
    }

    fn image(&self, layers: Vec<Arc<dyn LayerView>>, binds: &[(PathBuf, PathBuf)], host: Option<Arc<HostFs>>) -> ImageFs {
        let mut always = Stubs::default();
        for name in ["proc", "sys", "dev"].into_iter().chain(self.has_private_tmp().then_some("tmp")) {
            always.add_dir(fixed(name));
        }
        let mut stubs = if host.is_some() { Stubs::default() } else { self.places(binds) };
        for path in FROM_HOST.into_iter().filter(|path| !self.rules.shows_host(&fixed(path))) {
            if let Ok(content) = std::fs::read(Path::new("/").join(path)) {
                stubs.add_file(fixed(path), content);
            }
        }
        let host_has = host.map(|host| Box::new(move |path: &LayerPath| host.has_directory(path)) as HostHas);
        ImageFs::new(layers, always, stubs, host_has).keeping(Arc::clone(&self.rules)).covering(self.covered())
    }

    fn union(&self, layers: Vec<Arc<dyn LayerView>>, binds: &[(PathBuf, PathBuf)]) -> UnionOptions {
        let mut passages: BTreeSet<LayerPath> = self.regions.iter().filter(|region| region.kind == Kind::Union).map(|region| region.path.clone()).collect();
        passages.extend(binds.iter().filter(|(source, _)| source.is_dir()).filter_map(|(_, target)| layer_path(target)));
        passages.extend(["proc", "sys", "dev"].into_iter().chain(self.has_private_tmp().then_some("tmp")).map(fixed));
        UnionOptions {
            layers,
            rules: Arc::clone(&self.rules),
            upper: self.upper.clone(),
            hidden: self.hidden.clone(),
            passages: passages.into_iter().filter(|path| !path.is_root()).collect(),
            uid: geteuid().as_raw(),
            gid: getegid().as_raw(),
        }
    }

    /// Stubs for mount points that nothing has.
    fn places(&self, binds: &[(PathBuf, PathBuf)]) -> Stubs {
        let mut places = Stubs::default();
        for (source, target) in binds {
            if let Some(path) = layer_path(target) {
                if source.is_dir() { places.add_dir(path) } else { places.add_file(path, Vec::new()) }
            }
        }
        for region in self.regions.iter().filter(|region| region.kind == Kind::Union) {
            places.add_dir(region.path.clone());
        }
        places
    }

    /// All directories with the mode Hide.
    fn covered(&self) -> BTreeSet<LayerPath> {
        self.rules.stated().filter(|(_, mode)| *mode == Mode::Hide).map(|(path, _)| path.clone()).collect()
    }
}

/// Watches what of the host the VM looks at.
fn watch(running: &mut Running) -> io::Result<Arc<dyn Witness>> {
    let asked = Arc::new(Asked::new());
    Arc::clone(&asked).watch(running.control()?, running.socket().try_clone()?)?;
    Ok(asked)
}

/// Whether the overlay needs the host below it.
fn overlay_shows_host(rules: &Rules, regions: &[Region]) -> bool {
    let overlays = regions.iter().filter(|region| region.kind == Kind::Overlay);
    overlays.map(|region| &region.path).any(|path| rules.shows_host(path) || rules.leads_to_host(path))
        || regions.first().is_some_and(|root| root.kind == Kind::Overlay && rules.show_host_anywhere())
}

/// The sandbox and what else is not to be seen: as named, and by the path without symbolic links, under which a program
/// finds it.
fn hidden(spec: &RunSpec, sandbox: &Path) -> Vec<PathBuf> {
    let named = spec.hidden.iter().map(PathBuf::as_path).chain([sandbox]);
    let both: BTreeSet<PathBuf> = named.flat_map(|path| [Some(path.to_owned()), path.canonicalize().ok()]).flatten().collect();
    both.into_iter().collect()
}

fn layer_path(path: &Path) -> Option<LayerPath> {
    LayerPath::from_absolute(path.as_os_str().as_bytes()).ok()
}

/// A path that is valid, since it is written in this file.
fn fixed(path: &str) -> LayerPath {
    LayerPath::new(path).unwrap_or_default()
}

/// Each host file that the application has open is open here, too.
fn allow_many_open_files() {
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}
