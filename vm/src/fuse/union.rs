//! Placeholder.
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::{Ids, Settings, serve};
use crate::fs::{HideFs, UnionFs};
use crate::pending::Pending;

pub(crate) fn serve_union(_fs: Arc<UnionFs>, device: OwnedFd, ids: Ids, pending: &Arc<Pending>) -> io::Result<()> {
    serve(Arc::new(HideFs), device, Settings::hide(ids), pending)
}
