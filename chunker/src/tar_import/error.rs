//! What can be wrong with a tar.

use std::io;

/// Why a tar was refused. `name` is an entry's name as far as it is known.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TarError {
    /// The stream could not be read or decompressed.
    #[error("could not read the archive at byte {offset} of the uncompressed stream")]
    Read {
        /// Where.
        offset: u64,
        /// What the system or the decompressor said.
        source: io::Error,
    },
    /// The stream ended before the archive did.
    #[error("the archive is cut short at byte {offset} of the uncompressed stream: fetch or create it again")]
    Truncated {
        /// Where.
        offset: u64,
    },
    /// The stream is longer than the caller allows.
    #[error("the archive has more than {max} bytes uncompressed: it is hostile, or too large to be taken")]
    TooLong {
        /// Most bytes.
        max: u64,
    },
    /// The first block is not a header.
    #[error("this is not a tar archive, plain or compressed with gzip or zstd")]
    NotATar,
    /// A header's checksum is wrong.
    #[error("the header at byte {offset} of the uncompressed stream is damaged (wrong checksum): fetch or create the archive again")]
    Checksum {
        /// Where the header starts.
        offset: u64,
    },
    /// A header breaks a rule of the format.
    #[error("`{name}`: {rule}")]
    Invalid {
        /// The entry.
        name: String,
        /// The rule.
        rule: &'static str,
    },
    /// A number is beyond what a layer can hold.
    #[error("`{name}`: {what} is {value}, more than the allowed {max}")]
    TooLarge {
        /// The entry.
        name: String,
        /// The field.
        what: &'static str,
        /// What was found.
        value: u64,
        /// The bound.
        max: u64,
    },
    /// A name would leave the directory that the archive is extracted to.
    #[error("`{name}`: {rule}; the archive is hostile or broken")]
    Escape {
        /// The entry.
        name: String,
        /// How.
        rule: &'static str,
    },
    /// A hard link to something that is not there (yet).
    #[error("`{name}` is a hard link to `{target}`, which is not earlier in the archive")]
    LinkTarget {
        /// The link.
        name: String,
        /// What it names.
        target: String,
    },
}

impl TarError {
    pub(super) fn invalid(name: &[u8], rule: &'static str) -> Self {
        Self::Invalid { name: show(name), rule }
    }

    pub(super) fn too_large(name: &[u8], what: &'static str, value: u64, max: u64) -> Self {
        Self::TooLarge { name: show(name), what, value, max }
    }

    pub(super) fn escape(name: &[u8], rule: &'static str) -> Self {
        Self::Escape { name: show(name), rule }
    }
}

/// A name for a message: bounded, and without control characters that would reach a terminal.
pub(super) fn show(name: &[u8]) -> String {
    let text = String::from_utf8_lossy(&name[..name.len().min(300)]);
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}
