//! Content-defined cutting, hashing and compression: directories and tars into chunks and trees, and back.
//!
//! [`import_directory`] and [`import_tar`] read a tree, cut each file by content ([`cut`]), and write the chunks, recipe
//! nodes and tree nodes that an [`ObjectSink`] lacks, as packs. [`export_tar`] goes back, from an [`ObjectSource`].
//! [`blob::BlobWriter`] takes in one stream of bytes as it arrives.
//! [`capture()`] makes a layer of a sandbox, reading only what changed, and [`restore()`] makes a sandbox of a layer.
//! [`checkout()`] makes a plain directory of a stack of layers.
//! This crate knows no network and no database, and names nothing that is not in `layer-format`.
//!
//! * **Deterministic**: equal trees give equal objects, and the same packs byte for byte, whatever the number of threads.
//! * **All cores, bounded memory**: see [`pipeline`] for the stages and the bound.
//! * **Nothing is left out silently**: what cannot be read is an error; what a layer cannot hold is in
//!   [`Imported::skipped`].

mod beneath;
pub mod blob;
pub mod capture;
pub mod checkout;
mod clock;
pub mod cut;
pub mod deflate;
mod earlier;
mod error;
mod export;
mod import;
mod import_again;
mod memory;
pub mod pipeline;
mod progress;
mod read;
mod recipe_builder;
pub mod restore;
mod scan;
mod segments;
mod sink;
mod sorted;
mod source;
pub mod tar_import;
pub mod tar_split;
mod xattr;

pub use capture::{CaptureOptions, Captured, capture, undo_unlocked};
pub use checkout::{CheckedOut, CheckoutOptions, checkout};
pub use earlier::Earlier;
pub use error::{ImportError, SinkError};
pub use export::{ExportError, Exported, export_layer, export_tar};
pub use import::{ImportOptions, Imported, Skipped, import_directory};
pub use import_again::{ImportAgain, ImportedAgain, import_directory_again};
pub use memory::MemoryStore;
pub use progress::{Counters, Progress};
pub use restore::{RestoreError, RestoreOptions, Restored, restore};
pub use sink::{ObjectSink, PackSink};
pub use source::{ObjectSource, SourceError};
pub use tar_import::{TarError, import_tar};
