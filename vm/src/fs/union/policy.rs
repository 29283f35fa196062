//! What the rules say about a path.

use layer_format::LayerPath;
use layer_format::manifest::{Attributes, FileMode, Mode};
use rustix::io::Errno;

use super::UnionFs;

/// What holds for one path.
#[derive(Clone, Copy, Debug)]
pub(super) struct Policy {
    pub(super) mode: Mode,
    pub(super) file: Option<FileMode>,
    /// Whether listings leave it out.
    pub(super) unlisted: bool,
    pub(super) read_only: bool,
}

impl Policy {
    /// Whether what the host has here is to be seen.
    pub(super) fn shows_host(&self) -> bool {
        match self.file {
            Some(FileMode::Full | FileMode::Hide) => false,
            Some(FileMode::Defaulted) => true,
            None => matches!(self.mode, Mode::WriteCopy | Mode::Merge),
        }
    }

    /// Whether what the host has here is written in place.
    pub(super) fn writes_host(&self) -> bool {
        match self.file {
            Some(mode) => mode == FileMode::Defaulted,
            None => self.mode == Mode::Merge,
        }
    }

    pub(super) fn is_defaulted(&self) -> bool {
        self.file == Some(FileMode::Defaulted)
    }

    /// Whether the path does not exist, whatever there is.
    pub(super) fn hides(&self) -> bool {
        self.mode == Mode::Hide && self.file.is_none()
    }

    /// # Errors
    /// `EACCES` if writes are refused.
    pub(super) fn may_write(&self) -> Result<(), Errno> {
        if self.read_only { Err(Errno::ACCESS) } else { Ok(()) }
    }
}

impl UnionFs {
    pub(super) fn policy(&self, path: &LayerPath) -> Policy {
        if self.bare {
            return Policy { mode: self.rules.mode(&LayerPath::root()), file: None, unlisted: false, read_only: false };
        }
        let rules = &self.rules;
        Policy { mode: rules.mode(path), file: rules.file_mode(path), unlisted: rules.is_hidden(path), read_only: rules.is_read_only(path) }
    }

    /// What holds for names in a directory that nothing is stated about.
    pub(super) fn policy_below(&self, directory: &LayerPath) -> Policy {
        Policy { file: None, unlisted: false, ..self.policy(directory) }
    }

    /// Whether the host's content at a path is never shown, for it is the VM's own.
    pub(super) fn is_ours(&self, path: &LayerPath) -> bool {
        self.hidden.iter().any(|hidden| path.starts_with(hidden))
    }

    /// Whether a directory must be found at a path.
    pub(super) fn is_passage(&self, path: &LayerPath) -> bool {
        self.passages.iter().any(|passage| passage.starts_with(path))
    }

    /// Whether a path must not be moved or removed, since something of the VM's own is there or below.
    pub(super) fn is_pinned(&self, path: &LayerPath) -> bool {
        self.is_passage(path) || self.hidden.iter().any(|hidden| hidden.starts_with(path))
    }

    /// Whether one mode holds for all that is below a path.
    pub(super) fn is_uniform_below(&self, path: &LayerPath) -> bool {
        let below = |stated: &LayerPath| stated != path && stated.starts_with(path);
        self.bare || !self.rules.stated().any(|(stated, _)| below(stated)) && !self.rules.stated_files().any(|(stated, _)| below(stated))
    }

    /// Whether something below a path has an attribute.
    pub(super) fn has_below(&self, path: &LayerPath, wanted: impl Fn(Attributes) -> bool) -> bool {
        let below = |stated: &LayerPath| stated != path && stated.starts_with(path);
        self.rules.stated_attributes().any(|(stated, attributes)| below(stated) && wanted(attributes))
    }
}
