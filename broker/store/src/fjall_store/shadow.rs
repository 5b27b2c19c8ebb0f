//! Reading a store without changing it.
//!
//! fjall can only open a database by changing it: it cuts journals off, removes files that nothing refers to, and makes
//! keyspaces that are missing. So it gets a database of its own in a scratch folder, whose tables, which hold nearly all
//! of the bytes and are never written to again, are links to those of the store. Only what is small is copied: the
//! lists of tables, and the whole batches of the journals.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::symlink,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
};

use super::{StoreOptions, engine::FjallEngine, journal::Journal};
use crate::error::StoreError;

/// Folder of a keyspace's tables.
const TABLES: &str = "tables";

/// Opens a database that reads what the store at `data` holds. Nothing in `data` is written to.
pub(crate) fn open(
    data: &Path,
    journals: &[Journal],
    scratch: &Path,
    options: &StoreOptions,
) -> Result<FjallEngine, StoreError> {
    let shadow = scratch.join("shadow");
    // Links have to lead to the store from wherever they are.
    let data = fs::canonicalize(data).map_err(|error| StoreError::io("find", data, error))?;
    build(&data, &shadow).map_err(|error| StoreError::io("prepare in the scratch folder", &shadow, error))?;
    for journal in journals {
        journal.copy_to(&shadow)?;
    }
    let open = || FjallEngine::start_idle_at(shadow.clone(), options);
    catch_unwind(AssertUnwindSafe(open)).unwrap_or_else(|_| {
        Err(StoreError::Damaged {
            what: "the database",
            cause: "its recovery panicked".to_owned(),
        })
    })
}

/// Makes the folders, links the tables and copies everything else but journals.
fn build(data: &Path, shadow: &Path) -> io::Result<()> {
    fs::create_dir_all(shadow)?;
    fs::copy(data.join("version"), shadow.join("version"))?;
    // fjall locks a file that it expects to find.
    File::create(shadow.join("lock"))?;
    for keyspace in fs::read_dir(data.join("keyspaces"))? {
        let keyspace = keyspace?;
        let target = shadow.join("keyspaces").join(keyspace.file_name());
        if !keyspace.file_type()?.is_dir() {
            continue;
        }
        fs::create_dir_all(target.join(TABLES))?;
        for file in fs::read_dir(keyspace.path())? {
            let file = file?;
            if file.file_type()?.is_file() {
                fs::copy(file.path(), target.join(file.file_name()))?;
            }
        }
        let tables = keyspace.path().join(TABLES);
        if !tables.exists() {
            continue;
        }
        for table in fs::read_dir(tables)? {
            let table = table?;
            symlink(table.path(), target.join(TABLES).join(table.file_name()))?;
        }
    }
    Ok(())
}
