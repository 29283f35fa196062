//! What to run, and what it may see.

use std::ffi::OsString;
use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
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
    /// Further commands, started beside it with the same environment and working directory. The run ends when all have
    /// ended, with the exit of [`Self::command`]; one that cannot be started is told on its stderr, and ends with 127.
    pub beside: Vec<Vec<OsString>>,
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
    /// Programs that run in the VM besides the command, once for the run. Not run if it is [`Self::idle`].
    pub scripts: ScriptsOfRun,
    /// Whether the VM runs no command: it stands, to be looked into from outside, until [`crate::Running`] is dropped.
    pub idle: bool,
    /// Kept open by the VM's processes until the last of them ends: a lock, say, that a crash of this process must not free
    /// earlier than that.
    pub held: Option<Arc<File>>,
    /// From when [`crate::Timings`] count.
    pub since: Instant,
}

/// Programs, each with its arguments, that run in the VM with the command's environment and working directory, one after
/// the other. They read nothing, and what they print goes to stderr.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ScriptsOfRun {
    /// Before the command. One that fails ends the start.
    pub startup: Vec<Vec<OsString>>,
    /// After the command ended, however it did, and all other processes were killed; `TURBO_EXIT_CODE` has its code, or 128
    /// plus the signal that killed it. One that fails costs a warning.
    pub shutdown: Vec<Vec<OsString>>,
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
            beside: Vec::new(),
            env: Vec::new(),
            working_dir: PathBuf::from("/"),
            working_dir_required: false,
            mounts: Vec::new(),
            map_root: false,
            max_readahead: DEFAULT_READAHEAD,
            plain_layers: false,
            hidden: Vec::new(),
            scripts: ScriptsOfRun::default(),
            idle: false,
            held: None,
            since: Instant::now(),
        }
    }

    /// Refuses what cannot be run.
    pub(crate) fn check(&self) -> Result<(), VmError> {
        if self.command.is_empty() && !self.idle {
            return Err(VmError::NoCommand);
        }
        if self.rules.mode(&LayerPath::root()) == Mode::Hide {
            return Err(VmError::HiddenRoot);
        }
        Ok(())
    }
}
