//! System calls that need `unsafe`, each behind a safe function. The only module of the crate that may use it.
#![allow(unsafe_code)]

pub(crate) mod confine;
#[cfg(test)]
pub(crate) mod memory;
pub(crate) mod process;
pub(crate) mod signals;
