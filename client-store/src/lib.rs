//! The local chunk store and the block fetcher.
//!
//! * [`cache`] and [`origin`]: what the fetcher needs of the store on disk and of a registry, as traits.
//! * [`view`]: what the VM's filesystem needs of a layer.

pub mod cache;
pub mod error;
pub mod origin;
pub mod view;

pub use cache::ObjectCache;
pub use error::{FetchError, StoreError};
pub use origin::{Origin, OriginError};
pub use view::LayerView;
