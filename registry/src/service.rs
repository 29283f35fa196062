//! What the registry does, in steps over storage and database. No HTTP types, no SQL.

pub(crate) mod admission;
pub(crate) mod cache;
pub(crate) mod carry;
pub(crate) mod closure;
pub(crate) mod encode;
pub(crate) mod frames;
pub(crate) mod gate;
pub(crate) mod image;
pub(crate) mod launch;
pub(crate) mod launches;
pub(crate) mod learn;
pub(crate) mod level;
pub(crate) mod models;
pub(crate) mod nodes;
pub(crate) mod objects;
pub(crate) mod oci;
pub(crate) mod outlet;
pub(crate) mod pack_upload;
pub(crate) mod pack_verifier;
pub(crate) mod plausible;
pub(crate) mod predict;
pub(crate) mod resolve;
pub(crate) mod sources;
pub(crate) mod state;
pub(crate) mod stream;
pub(crate) mod train;
