//! The local chunk store and the block fetcher.

pub mod error;
pub mod view;

pub use error::FetchError;
pub use view::LayerView;
