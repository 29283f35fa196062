//! Turbo's shared vocabulary and every byte format.
//!
//! This crate is pure: it parses and encodes bytes, and does no I/O. Every parser takes `&[u8]`, bounds each
//! length before it allocates, never panics on hostile input, and has a fuzz entry point in [`fuzz`].
//! `docs/formats/` has one page for each format; golden vectors at the bottom of each file pin the bytes.
//!
//! From small to large:
//! * [`Digest`] names an object: BLAKE3-256 of its uncompressed bytes.
//! * [`chunk`] and [`recipe`]: pieces of a file's content, and the list of them that rebuilds the file.
//! * [`entry`] and [`tree`]: one file, directory or link; the search tree of all entries of a layer.
//! * [`manifest`]: layer, image and state manifests, canonical JSON.
//! * [`frame`] and [`pack`]: how objects are compressed together and kept in files; [`delta`]: against what else.
//! * [`trace`] and [`model`]: what a run touched first, and what was learned from many runs.
//! * [`oci`]: the manifests and configurations of container tools, and what they mean for ours.
//! * [`rebuild`]: how a compressed blob is made again from plain chunks.
//! * [`recording`]: a trace with how the run went in time, for whoever looks at it.
//! * [`api`]: bodies of the registry's native HTTP API. [`mod@reference`] parses image names.

pub mod api;
pub mod chunk;
pub mod codec;
pub mod delta;
pub mod digest;
pub mod entry;
pub mod frame;
pub mod fuzz;
pub mod manifest;
pub mod model;
pub mod oci;
pub mod pack;
pub mod path;
pub mod rebuild;
pub mod recipe;
pub mod recording;
pub mod reference;
pub mod trace;
pub mod tree;

pub use codec::FormatError;
pub use digest::Digest;
pub use path::LayerPath;
