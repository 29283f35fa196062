//! Placeholder.
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use client_store::LayerView;
use layer_format::LayerPath;

use crate::rules::Rules;

/// Placeholder.
#[allow(missing_docs, missing_debug_implementations)]
pub struct UnionOptions {
    pub layers: Vec<Arc<dyn LayerView>>,
    pub rules: Arc<Rules>,
    pub upper: PathBuf,
    pub hidden: Vec<PathBuf>,
    pub passages: Vec<LayerPath>,
    pub uid: u32,
    pub gid: u32,
}

/// Placeholder.
#[derive(Debug)]
pub struct UnionFs;

impl UnionFs {
    /// Placeholder.
    ///
    /// # Errors
    /// None.
    pub fn new(_options: UnionOptions) -> io::Result<Self> {
        Ok(Self)
    }
}
