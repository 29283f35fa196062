//! The local chunk store and the block fetcher.
//!
//! * [`cache`] and [`origin`]: what the fetcher needs of the store on disk and of a registry, as traits.
//! * [`store`]: the store on disk. [`remote`]: a registry over HTTP. [`transfer`]: push and pull.
//! * [`fetch`]: the block fetcher: single flight, retries, verification, the launch stream. [`link`] measures the line.
//! * [`reader`], [`recorder`], [`prefetch`]: a layer as the filesystem reads it, what it touched, what comes next; [`guess`]
//!   says so where no model does.
//! * [`complete`]: the rest of an image, while the application runs.
//! * [`session`]: one run of one image, all of the above together; [`stats`] says what it cost.
//! * [`timeline`]: how a run goes in time, for whoever looks at it.
//! * [`view`]: what the VM's filesystem needs of a layer.

mod anonymous;
pub mod cache;
pub mod cache_conformance;
pub mod complete;
pub mod error;
pub mod fetch;
pub mod guess;
pub mod link;
pub mod origin;
pub mod prefetch;
pub mod reader;
pub mod recorder;
pub mod remote;
pub mod session;
pub mod stats;
pub mod store;
pub mod timeline;
pub mod transfer;
pub mod view;

pub use anonymous::anonymous;
pub use cache::ObjectCache;
pub use error::{FetchError, StoreError};
pub use origin::{Origin, OriginError};
pub use prefetch::Policy;
pub use session::{Session, SessionError, SessionOptions};
pub use stats::RunStats;
pub use store::{Store, StoreOptions};
pub use timeline::Timeline;
pub use view::LayerView;
