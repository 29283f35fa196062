//! How much of the host is seen where.

use serde::{Deserialize, Serialize};

use super::is_default;
use crate::codec::FormatError;

/// How much of the host an application sees and touches, per folder. In order of strictness.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// Virtual and host content united; what is not virtual is read and written on the host.
    Merge,
    /// The host is visible below the layers, and never written.
    #[default]
    WriteCopy,
    /// The host is not visible.
    Full,
    /// Nothing is visible.
    Hide,
}

impl std::fmt::Display for Mode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Merge => "merge",
            Self::WriteCopy => "write-copy",
            Self::Full => "full",
            Self::Hide => "hide",
        })
    }
}

/// An isolation mode stated for a path and what is below it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IsolationRule {
    /// Absolute path.
    pub path: String,
    /// The mode.
    pub mode: Mode,
}

impl std::str::FromStr for Mode {
    type Err = FormatError;

    /// `full`, `write-copy` (also `writecopy` and `cow`), `merge` or `hide`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "full" => Ok(Self::Full),
            "write-copy" | "writecopy" | "cow" => Ok(Self::WriteCopy),
            "merge" => Ok(Self::Merge),
            "hide" => Ok(Self::Hide),
            _ => Err(FormatError::invalid("isolation", "a mode is full, write-copy, merge or hide")),
        }
    }
}

/// A mode of a single file, which beats that of its directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FileMode {
    /// Never the host's.
    Full,
    /// As full, and left out of listings; opening it by name works.
    Hide,
    /// Always the host's; where the host lacks it, the layer's copy is placed there first.
    Defaulted,
}

/// A mode stated for one file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRule {
    /// Absolute path.
    pub path: String,
    /// The mode.
    pub mode: FileMode,
}

/// What holds for a path besides its mode.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Attributes {
    /// Left out of listings; opening it by name works, and it is never copied to the sandbox.
    #[serde(default, skip_serializing_if = "is_default")]
    pub hidden: bool,
    /// Writes are refused; of a directory, to all that is below as well.
    #[serde(default, skip_serializing_if = "is_default")]
    pub read_only: bool,
    /// What is written here, or below, is no part of a state.
    #[serde(default, skip_serializing_if = "is_default")]
    pub no_sync: bool,
    /// Layers above this one do not replace it.
    #[serde(default, skip_serializing_if = "is_default")]
    pub no_upgrade: bool,
}

/// Attributes of a file or directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttributeRule {
    /// Absolute path.
    pub path: String,
    /// What holds there.
    #[serde(flatten)]
    pub attributes: Attributes,
}
