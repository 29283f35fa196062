//! The block fetcher, the layer reader and the session over a registry that can be slow, cut, damaged, busy or hostile.

mod complete;
mod demand;
mod launch;
mod reader;
mod recording;
mod schedule;
mod stress;
mod support;
