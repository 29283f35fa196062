//! Making an index: beside its place, so that there is a whole one or none.
//!
//! LMDB writes the first pages of a new file and syncs them with the first commit: what a power cut leaves of it before that
//! is not an index, and LMDB refuses it. So it is made below `tmp/`, synced, and renamed.

use std::fs::File;
use std::path::Path;

use heed::types::Bytes;
use heed::{CommitOrAbort, Env, WithoutTls};

use super::{TABLES, Table, index_error, open_env};
use crate::error::StoreError;
use crate::store::layout::{Layout, create_dir, io_error, sync_parent};

/// Makes sure that there is an index: an empty one if there is none.
pub(super) fn ensure(layout: &Layout) -> Result<(), StoreError> {
    let (place, beside) = (layout.index(), layout.tmp().join("index"));
    let exists = || place.join("data.mdb").exists();
    if exists() {
        return Ok(());
    }
    // One process makes it, the others wait.
    let home = layout.home();
    let lock = File::open(home).map_err(io_error("opening", home))?;
    lock.lock().map_err(io_error("locking", home))?;
    if exists() {
        return Ok(());
    }
    // What a crash left of an earlier attempt, and what is left of an index without its data.
    for folder in [&beside, &place] {
        match std::fs::remove_dir_all(folder) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(io_error("removing", folder)(error)),
            _ => {}
        }
    }
    create_dir(&beside)?;
    let env = open_env(&beside)?;
    create_tables(&env, &beside)?;
    env.prepare_for_closing().wait();
    let _ = std::fs::remove_file(beside.join("lock.mdb"));
    sync_parent(&beside.join("data.mdb"))?;
    std::fs::rename(&beside, &place).map_err(io_error("renaming", &beside))?;
    sync_parent(&place)
}

/// Makes the tables that are not there.
pub(super) fn create_tables(env: &Env<WithoutTls>, path: &Path) -> Result<[Table; TABLES.len()], StoreError> {
    let fail = |error| index_error(path, error);
    let wtxn = env.write_txn().map_err(fail)?;
    let made = env.create_databases_and_commit(wtxn, |opener, wtxn| {
        let [a, b, c, d, e, f, g] = TABLES.map(|name| opener.create_database::<Bytes, Bytes>(wtxn, Some(name)));
        Ok(CommitOrAbort::<_, ()>::Commit([a?, b?, c?, d?, e?, f?, g?]))
    });
    let made: Option<[Table; TABLES.len()]> = made.map_err(fail)?.commit();
    made.ok_or_else(|| StoreError::Index { message: "its tables could not be made".into() })
}
