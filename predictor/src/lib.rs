//! The Markov model of first touches: learn, merge, prune, predict, replay, score.
//!
//! A launch touches the same things in nearly the same order as the launches before it. A [`Model`] holds what traces
//! of earlier launches taught: *launch lists* for each entry point and processor architecture, one for each of its *variants* (kinds of
//! launches that touch different things), and *transitions* of order 1 and 2 between touches. It answers two questions:
//! * before a launch: what will be touched, when, how surely? [`launch_list`]
//! * after a touch: what follows it? [`Predictor`]
//!
//! Everything here is a pure function of history: no network, no disk, no clock, no randomness, and so no error. Equal
//! input gives equal bytes, on every machine. A model or trace from a stranger may be wrong in any way: it costs bytes within the waste
//! budget of whoever prefetches, never a panic, never more memory than [`Params`] allow.
//!
//! States are (layer, path, bucket), not chunks, so a model of one version of an image serves the next ([`carry`]).
//!
//! | module | |
//! |---|---|
//! | [`learn`](mod@learn) | one trace, or another model, into a model |
//! | `draft`, `variants`, `prune` | a model while it changes; kinds of launches; what to forget |
//! | [`launch`], [`predict`] | the two questions |
//! | `mixture`, `posterior` | launch lists of several kinds as one; which kind a launch is of |
//! | [`replay`], [`score`] | how well it would have done: seconds over a link, and shares without one |
//! | [`compare`](mod@compare) | which of two models is better |

pub mod carry;
pub mod compare;
mod draft;
pub mod launch;
pub mod learn;
mod mixture;
pub mod params;
mod posterior;
pub mod predict;
mod prune;
pub mod replay;
#[cfg(test)]
mod samples;
pub mod score;
mod variants;

pub use carry::{Carried, carry_over};
pub use compare::{CompareParams, Preferred, Verdict, compare};
pub use launch::{Predicted, launch_list};
pub use layer_format::model::Model;
pub use learn::{learn, merge};
pub use params::Params;
pub use predict::Predictor;
