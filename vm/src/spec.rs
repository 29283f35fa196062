//! What to run, and what it may see.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Instant;

use layer_format::LayerPath;
pub use layer_format::manifest::Mode;

use crate::error::VmError;
use crate::rules::Rules;

/// A folder or file of the host that is visible and writable in the VM, whatever the mode there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BindMount {
    /// Path on the host. If it does not exist, the mount is left out with a warning.
    pub source: PathBuf,
    /// Absolute path in the VM; `source`, made absolute, if `None`.
    pub target: Option<PathBuf>,
}

/// One run of one command. All paths but those of [`Self::command`] and [`Self::working_dir`] are paths on the host.
#[derive(Clone, Debug)]
pub struct RunSpec {
    /// Isolation modes and attributes.
    pub rules: Rules,
    /// The container's directory; made if missing. `upper` in it receives what the application writes, in overlayfs's
    /// form (a deleted name is a character device 0:0, an opaque directory has the attribute `user.overlay.opaque`).
    /// `work` and `mnt` belong to the VM and are empty or absent between runs. Only one run at a time may use it: the
    /// caller locks it. Not on overlayfs, NFS or FUSE.
    pub sandbox: PathBuf,
    /// Program and arguments. A program without a slash is searched in the `PATH` of [`Self::env`], inside the VM.
    pub command: Vec<OsString>,
    /// The complete environment.
    pub env: Vec<(OsString, OsString)>,
    /// Where the command starts: an absolute path in the VM.
    pub working_dir: PathBuf,
    /// Whether a missing working directory is an error; otherwise the command starts in `/`.
    pub working_dir_required: bool,
    /// Host folders to show as they are.
    pub mounts: Vec<BindMount>,
    /// Whether the application sees itself as uid 0 and gid 0, rather than as the calling user.
    pub map_root: bool,
    /// How many bytes after those asked for the kernel may read in advance from an image file. Each is fetched over the
    /// network if it is not local. At most what the kernel allows (usually 131072).
    pub max_readahead: u32,
    /// Whether it is known that no layer has an extended attribute or an opaque directory. The kernel then stops asking,
    /// which saves a round trip of about 10 µs for the first look at each file. If set wrongly, attributes are not seen.
    pub plain_layers: bool,
    /// Directories of the host that the VM must not reach in any mode (the store, say), besides [`Self::sandbox`]. A mount
    /// from [`Self::mounts`] that contains one shows it.
    pub hidden: Vec<PathBuf>,
    /// From when [`crate::Timings`] count.
    pub since: Instant,
}

/// Default of [`RunSpec::max_readahead`], in bytes.
pub const DEFAULT_READAHEAD: u32 = 32 * 1024;

impl RunSpec {
    /// A run of `command` in `sandbox`, in `/`, with an empty environment and default settings.
    pub fn new(sandbox: impl Into<PathBuf>, command: impl IntoIterator<Item = impl Into<OsString>>) -> Self {
        Self {
            rules: Rules::default(),
            sandbox: sandbox.into(),
            command: command.into_iter().map(Into::into).collect(),
            env: Vec::new(),
            working_dir: PathBuf::from("/"),
            working_dir_required: false,
            mounts: Vec::new(),
            map_root: false,
            max_readahead: DEFAULT_READAHEAD,
            plain_layers: false,
            hidden: Vec::new(),
            since: Instant::now(),
        }
    }

    /// Refuses what cannot be run.
    pub(crate) fn check(&self) -> Result<(), VmError> {
        if self.command.is_empty() {
            return Err(VmError::NoCommand);
        }
        if self.rules.mode(&LayerPath::root()) == Mode::Hide {
            return Err(VmError::HiddenRoot);
        }
        Ok(())
    }
}
