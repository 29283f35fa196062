//! The block fetcher, the layer reader and the session over a registry that can be slow, cut, damaged, busy or hostile.

mod demand;
mod launch;
mod reader;
mod recording;
mod stress;
mod support;
