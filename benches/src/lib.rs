//! Benchmarks, and the emulated WAN link they run over.
//!
//! `link` joins two network namespaces by a link of a given rate and delay. `app` says what is
//! launched and `rootfs` builds what it runs in, without privilege. `place` and `turbo` start
//! registry and client at the ends of a link, `oracle` is the opponent, `launch` measures and `report` prints.
//! `traces` records what the replay simulator is fed with, and `replay` feeds it.
//! `recording` measures what it costs to record a run.
//! `vm` measures what the VM costs where nothing has to be fetched, `store` the chunk store against other tools, `growth` what a chunk costs
//! as stores grow, `frames` how large frames should be, and `registry` the registry against another.

pub mod app;
pub mod demo;
pub mod frames;
pub mod growth;
pub mod herd;
pub mod launch;
pub mod link;
mod next_version;
pub mod oracle;
pub mod place;
pub mod recording;
pub mod registry;
pub mod replay;
pub mod report;
pub mod rootfs;
pub mod store;
mod sys;
pub mod traces;
pub mod turbo;
pub mod vm;
