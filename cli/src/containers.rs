//! Containers on disk: `containers/<id>/` in the home folder, each with its settings, sandbox and lock.
//!
//! ```text
//! containers/<32 hex digits>/container.json   what it is (replaced as a whole)
//!                            lock             held (flock) by the turbo that runs it: a crash frees it
//!                            control          socket of the turbo that runs it
//!                            sandbox/         what the application wrote
//!                            capture.index    which content its files had when they were last captured
//!                            stdout, stderr   output of a detached run
//! ```

pub mod lock;

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use layer_format::Digest;
use layer_format::manifest::{StateImage, StateSettings};
use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

/// What a container is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Container {
    /// 32 hex digits.
    pub id: String,
    /// Name, unique among containers.
    pub name: String,
    /// Image references, in the order given.
    pub images: Vec<String>,
    /// When it was created, in seconds since 1970.
    pub created_s: u64,
    /// When it was last started, in seconds since 1970.
    pub started_s: u64,
    /// Whether it is deleted when it ends.
    #[serde(default)]
    pub temporary: bool,
    /// Exit code of the last run, if it has ended.
    #[serde(default)]
    pub exit_code: Option<u8>,
    /// What it remembers of how it is started.
    #[serde(default)]
    pub settings: StateSettings,
    /// Folders of the host that it shows: source and target. No state has them.
    #[serde(default)]
    pub mounts: Vec<(PathBuf, Option<PathBuf>)>,
    /// Whether the application is user 0 inside. No state has it.
    #[serde(default)]
    pub admin: bool,
    /// Program and arguments of its last start.
    #[serde(default)]
    pub command: Vec<String>,
    /// The images of its last start with what they depend on, lowest first, as they were found then.
    #[serde(default)]
    pub stack: Vec<StateImage>,
    /// Its states, newest last.
    #[serde(default)]
    pub states: Vec<ContainerState>,
    /// Whether the sandbox may differ from the newest state: set before a start, cleared by the capture after it.
    #[serde(default)]
    pub dirty: bool,
    /// Paths that are no part of states, as they were at the last start; `None` if it never started here.
    #[serde(default)]
    pub no_sync: Option<Vec<String>>,
}

/// A state that was taken of a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerState {
    /// Digest of its manifest.
    pub id: Digest,
    /// When, in seconds since 1970.
    pub taken_s: u64,
    /// Whether the registry has it.
    #[serde(default)]
    pub saved: bool,
}

/// All containers of a home folder.
#[derive(Clone, Debug)]
pub struct Containers {
    folder: PathBuf,
}

/// A container that this process runs: no other process can run or remove it.
#[derive(Debug)]
pub struct Locked {
    /// The container.
    pub container: Container,
    /// Its folder.
    pub folder: PathBuf,
    /// Whether this process created it: if its first start fails, nothing is lost with it.
    pub is_new: bool,
    lock: Arc<File>,
}

impl Containers {
    /// The containers of this home folder.
    pub fn new(home: &Path) -> Self {
        Self { folder: home.join("containers") }
    }

    /// All containers, newest first. A folder that a crash left without settings is passed over.
    pub fn list(&self) -> Result<Vec<Container>> {
        let entries = match std::fs::read_dir(&self.folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error).with_context(|| format!("reading {}", self.folder.display())),
        };
        let mut found = Vec::new();
        for entry in entries {
            found.extend(read(&entry?.path().join("container.json"))?);
        }
        found.sort_by_key(|container| (std::cmp::Reverse(container.created_s), container.id.clone()));
        Ok(found)
    }

    /// The container of this name, or whose id starts with this (four digits or more).
    pub fn find(&self, name_or_id: &str) -> Result<Option<Container>> {
        let all = self.list()?;
        if let Some(found) = all.iter().find(|container| container.name == name_or_id) {
            return Ok(Some(found.clone()));
        }
        let short = name_or_id.rsplit_once('#').map_or(name_or_id, |(_, id)| id);
        let mut matches = all.into_iter().filter(|container| short.len() >= 4 && container.id.starts_with(short));
        match (matches.next(), matches.next()) {
            (Some(one), Some(other)) => bail!("`{name_or_id}` is the start of more than one container: {} and {}", one.shown(), other.shown()),
            (found, _) => Ok(found),
        }
    }

    /// Creates a container and locks it.
    pub fn create(&self, name: &str, images: Vec<String>, temporary: bool) -> Result<Locked> {
        self.create_filled(name, images, temporary, |_| Ok(()))
    }

    /// Creates a container, locks it, and fills it before anyone can see it: if that fails, or is killed, there is none.
    pub fn create_filled(&self, name: &str, images: Vec<String>, temporary: bool, fill: impl FnOnce(&mut Locked) -> Result<()>) -> Result<Locked> {
        let mut random = [0; 16];
        rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty()).context("the system has no randomness")?;
        let id = random.iter().fold(String::new(), |id, byte| id + &format!("{byte:02x}"));
        let container = Container {
            id,
            name: name.into(),
            images,
            created_s: now_s(),
            started_s: now_s(),
            temporary,
            exit_code: None,
            settings: StateSettings::default(),
            mounts: Vec::new(),
            admin: false,
            command: Vec::new(),
            stack: Vec::new(),
            states: Vec::new(),
            dirty: false,
            no_sync: None,
        };
        let folder = self.folder.join(&container.id);
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder.join("sandbox")).with_context(|| format!("creating {}", folder.display()))?;
        let lock = lock::take(&folder)?.context("a new container is in use")?;
        let mut locked = Locked { container, folder, is_new: true, lock: Arc::new(lock) };
        match fill(&mut locked).and_then(|()| locked.save()) {
            Ok(()) => Ok(locked),
            Err(error) => {
                let _ = locked.remove();
                Err(error)
            }
        }
    }

    /// Locks a container; `None` if it is running. What it is, is read anew: it may have run since it was found.
    pub fn lock(&self, container: &Container) -> Result<Option<Locked>> {
        let folder = self.folder.join(&container.id);
        let gone = || format!("there is no container {} any more", container.shown());
        if !folder.exists() {
            bail!(gone());
        }
        let Some(lock) = lock::take(&folder)? else { return Ok(None) };
        let container = read(&folder.join("container.json"))?.with_context(gone)?;
        Ok(Some(Locked { container, folder, is_new: false, lock: Arc::new(lock) }))
    }

    /// A container whose lock another process handed to this one.
    pub fn adopt(&self, id: &str, file: File) -> Result<Locked> {
        let folder = self.folder.join(id);
        lock::adopt(&file);
        let container = read(&folder.join("container.json"))?.with_context(|| format!("there is no container {id}"))?;
        Ok(Locked { container, folder, is_new: false, lock: Arc::new(file) })
    }

    /// Removes what a crash left of containers that were being made or removed.
    pub fn sweep(&self) -> Result<()> {
        // Containers are made with the names locked.
        let _names = self.lock_names()?;
        for entry in std::fs::read_dir(&self.folder).with_context(|| format!("reading {}", self.folder.display()))? {
            let folder = entry?.path();
            if !folder.is_dir() || folder.join("container.json").exists() {
                continue;
            }
            if let Some(_lock) = lock::take(&folder)? {
                remove_tree(&folder).with_context(|| format!("removing {}", folder.display()))?;
            }
        }
        Ok(())
    }

    /// Keeps other processes from choosing names, until it is dropped.
    pub fn lock_names(&self) -> Result<File> {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.folder).with_context(|| format!("creating {}", self.folder.display()))?;
        let path = self.folder.join(".names");
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path).with_context(|| format!("opening {}", path.display()))?;
        rustix::fs::flock(&file, FlockOperation::LockExclusive).with_context(|| format!("locking {}", path.display()))?;
        Ok(file)
    }

    /// Whether the container is running.
    pub fn is_running(&self, container: &Container) -> bool {
        lock::has_owner(&self.folder.join(&container.id))
    }

    /// The process that holds the container's lock, as it said when it took it.
    pub fn owner(&self, container: &Container) -> Option<u32> {
        lock::owner(&self.folder.join(&container.id))
    }

    /// What the container is by now; `None` if it was removed.
    pub fn reload(&self, container: &Container) -> Result<Option<Container>> {
        read(&self.folder.join(&container.id).join("container.json"))
    }

    /// The container of this name, or whose id starts with this.
    ///
    /// # Errors
    /// If there is none, or more than one.
    pub fn get(&self, name_or_id: &str) -> Result<Container> {
        self.find(name_or_id)?.with_context(|| format!("there is no container `{name_or_id}`; `turbo sessions` lists them"))
    }

    /// A name that no container has: `wanted`, or that with a number. Call it with the names locked.
    pub fn free_name(&self, wanted: &str) -> Result<String> {
        let all = self.list()?;
        let is_free = |name: &String| !all.iter().any(|container| container.name == *name);
        let numbered = (2..).map(|number| format!("{wanted}-{number}"));
        std::iter::once(wanted.to_owned()).chain(numbered).find(is_free).context("no name is free")
    }

    /// Folder of a container.
    pub fn folder(&self, container: &Container) -> PathBuf {
        self.folder.join(&container.id)
    }
}

/// What a container is; `None` if there is none.
fn read(path: &Path) -> Result<Option<Container>> {
    match std::fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map(Some).with_context(|| format!("{} is damaged; remove its folder to go on", path.display())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ENOTDIR) => Ok(None),
        Err(error) => Err(error).with_context(|| format!("reading {}", path.display())),
    }
}

/// Writes what a container is, as a whole.
fn write(folder: &Path, container: &Container) -> Result<()> {
    let path = folder.join("container.json");
    let temporary = folder.join("container.json.tmp");
    let write = || {
        let mut file = File::create(&temporary)?;
        file.write_all(&serde_json::to_vec_pretty(container)?)?;
        file.sync_all()?;
        std::fs::rename(&temporary, &path)
    };
    write().with_context(|| format!("writing {}", path.display()))
}

/// Lists a state of the container in `folder`, which this process runs: for another thread than the one that has the container.
pub fn add_state(folder: &Path, state: &ContainerState) -> Result<()> {
    let mut container = read(&folder.join("container.json"))?.context("the container was removed")?;
    container.states.push(state.clone());
    write(folder, &container)
}

impl Container {
    /// `name#8hex`.
    pub fn shown(&self) -> String {
        format!("{}#{}", self.name, &self.id[..self.id.len().min(8)])
    }
}

impl Locked {
    /// Writes the settings.
    pub fn save(&self) -> Result<()> {
        write(&self.folder, &self.container)
    }

    /// Removes the output of an earlier detached run.
    pub fn forget_logs(&self) {
        for name in ["stdout", "stderr"] {
            let _ = std::fs::remove_file(self.folder.join(name));
        }
    }

    /// The lock, for processes that must have ended before it is free.
    pub fn lock_file(&self) -> Arc<File> {
        Arc::clone(&self.lock)
    }

    /// Whether nothing was ever written in it: it was made for a launch that failed.
    pub fn is_unused(&self) -> bool {
        self.container.exit_code.is_none() && std::fs::read_dir(self.folder.join("sandbox/upper")).is_ok_and(|mut entries| entries.next().is_none())
            || !self.folder.join("sandbox/upper").exists()
    }

    /// Drops all that was written, and keeps everything else. After a crash it has happened or it has not.
    pub fn revert(&mut self) -> Result<()> {
        self.container.dirty = true;
        self.save()?;
        let (sandbox, aside) = (self.folder.join("sandbox"), self.folder.join("sandbox.old"));
        if aside.exists() {
            remove_tree(&aside).with_context(|| format!("removing {}", aside.display()))?;
        }
        std::fs::rename(&sandbox, &aside).or_else(ignore_absent).with_context(|| format!("renaming {}", sandbox.display()))?;
        std::fs::DirBuilder::new().mode(0o700).create(&sandbox).with_context(|| format!("creating {}", sandbox.display()))?;
        if aside.exists() {
            remove_tree(&aside).with_context(|| format!("removing {}", aside.display()))?;
        }
        Ok(())
    }

    /// Removes the container with all that it wrote.
    pub fn remove(self) -> Result<()> {
        // The settings go first: what a crash leaves of the rest is no container any more.
        let settings = self.folder.join("container.json");
        std::fs::remove_file(&settings).or_else(ignore_absent).with_context(|| format!("removing {}", settings.display()))?;
        remove_tree(&self.folder).with_context(|| format!("removing {}", self.folder.display()))
    }
}

fn ignore_absent(error: std::io::Error) -> std::io::Result<()> {
    if error.kind() == std::io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
}

/// Removes a folder, also where the application took its own rights away.
fn remove_tree(folder: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let mut pending = vec![folder.to_owned()];
    while let Some(folder) = pending.pop() {
        std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o700))?;
        for entry in std::fs::read_dir(&folder)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                pending.push(entry.path());
            }
        }
    }
    std::fs::remove_dir_all(folder)
}

/// Seconds since 1970.
pub fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// How long ago, for people.
pub fn ago(then_s: u64) -> String {
    let seconds = now_s().saturating_sub(then_s);
    let (count, unit) = match seconds {
        0..60 => return "just now".into(),
        60..3600 => (seconds / 60, "minute"),
        3600..86_400 => (seconds / 3600, "hour"),
        _ => (seconds / 86_400, "day"),
    };
    format!("{count} {unit}{} ago", if count == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_has_one_owner_and_is_found_by_name_and_prefix() {
        let home = tempfile::tempdir().unwrap();
        let containers = Containers::new(home.path());
        assert_eq!(containers.list().unwrap(), []);
        let locked = containers.create("app", vec!["tools/app".into()], false).unwrap();
        let container = locked.container.clone();
        assert!(containers.is_running(&container));
        assert!(containers.lock(&container).unwrap().is_none());
        assert_eq!(containers.find("app").unwrap().as_ref(), Some(&container));
        assert_eq!(containers.find(&container.id[..6]).unwrap().as_ref(), Some(&container));
        assert_eq!(containers.find(&container.shown()).unwrap().as_ref(), Some(&container));
        assert_eq!(containers.find("zz").unwrap(), None);
        drop(locked);
        assert!(!containers.is_running(&container));
        let sandbox = containers.folder(&container).join("sandbox");
        std::fs::create_dir(sandbox.join("locked")).unwrap();
        std::fs::write(sandbox.join("locked/file"), "x").unwrap();
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(sandbox.join("locked"), std::fs::Permissions::from_mode(0o000)).unwrap();
        containers.lock(&container).unwrap().unwrap().remove().unwrap();
        assert_eq!(containers.list().unwrap(), []);
    }
}
