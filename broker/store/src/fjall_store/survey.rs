//! What there is of a database, and what of it is damaged, without opening it.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use super::{
    lsm::{Damage, archive::Archive, manifest, table},
    sectors,
};
use crate::{error::StoreError, keys::Table};

/// What fjall writes to `version`.
const VERSION: &[u8] = b"FJL\x03";

/// A table's file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TableFile {
    pub(super) path: PathBuf,
    /// XXH3-128 of the whole file, if the list of tables could be read.
    pub(super) checksum: Option<u128>,
}

/// Files of a keyspace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct KeyspaceFiles {
    pub(super) id: u64,
    /// The tables that belong to it; all that are there, if there is no telling.
    pub(super) tables: Vec<TableFile>,
}

/// Keyspaces and their files.
pub(super) fn keyspaces(data: &Path, damage: &mut Damage) -> Result<Vec<KeyspaceFiles>, StoreError> {
    let folder = data.join("keyspaces");
    let failed = |error| StoreError::io("read the keyspaces of", data, error);
    let mut found = Vec::new();
    let entries = match fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
        Err(error) => return Err(failed(error)),
    };
    for entry in entries {
        let path = entry.map_err(failed)?.path();
        if let Some(id) = number(&path) {
            let tables = tables(&path, damage).map_err(failed)?;
            found.push(KeyspaceFiles { id, tables });
        }
    }
    found.sort_by_key(|keyspace| keyspace.id);
    Ok(found)
}

fn number(path: &Path) -> Option<u64> {
    path.file_name()?.to_str()?.parse().ok()
}

fn tables(keyspace: &Path, damage: &mut Damage) -> io::Result<Vec<TableFile>> {
    let folder = keyspace.join("tables");
    if let Some(listed) = damage.note(keyspace, manifest::read(keyspace))? {
        let tables = listed.into_iter().map(|table| TableFile {
            path: folder.join(table.id.to_string()),
            checksum: Some(table.checksum),
        });
        return Ok(tables.collect());
    }
    // Tables that compaction had replaced may be among them, if the process was killed before it removed them. All that
    // they hold is in others too, but for what was deleted meanwhile.
    let mut tables = Vec::new();
    let entries = match fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(tables),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let path = entry?.path();
        if number(&path).is_some() {
            tables.push(TableFile { path, checksum: None });
        }
    }
    tables.sort_by_key(|table| number(&table.path));
    Ok(tables)
}

/// Looks at what fjall takes on trust when it opens a database: lists of tables, and where parts of tables are.
pub(crate) fn check(data: &Path) -> Result<Damage, StoreError> {
    let mut damage = Damage::default();
    for keyspace in keyspaces(data, &mut damage)? {
        for TableFile { path, .. } in keyspace.tables {
            let read = fs::File::open(&path)
                .map_err(Into::into)
                .and_then(|file| Archive::read(&file));
            let noted = damage.note(&path, read);
            noted.map_err(|error| StoreError::io("read", &path, error))?;
        }
    }
    Ok(damage)
}

/// Writes the version anew if it is not what it was; tells whether it was damaged. That fjall's format 3 is there is known
/// from the store's own format.
pub(super) fn restore_version(data: &Path) -> Result<bool, StoreError> {
    let path = data.join("version");
    let failed = |error| StoreError::io("restore", &path, error);
    match fs::read(&path) {
        Ok(found) if found == VERSION => return Ok(false),
        Err(error) if error.kind() == io::ErrorKind::NotFound && !has_keyspaces(data)? => return Ok(false),
        Err(error) if error.kind() != io::ErrorKind::NotFound && !sectors::is_unreadable(&error) => {
            return Err(failed(error));
        }
        _ => {}
    }
    let new = data.join("version.new");
    let write = || {
        fs::write(&new, VERSION)?;
        fs::File::open(&new)?.sync_all()?;
        fs::rename(&new, &path)
    };
    write().map_err(failed)?;
    super::files::sync_directory(data)?;
    Ok(true)
}

/// Whether a keyspace was made. fjall writes its version before it makes the first one.
pub(super) fn has_keyspaces(data: &Path) -> Result<bool, StoreError> {
    let folder = data.join("keyspaces");
    match fs::read_dir(&folder) {
        Ok(mut keyspaces) => Ok(keyspaces.next().is_some()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(StoreError::io("read the directory", folder, error)),
    }
}

/// Which of the store's tables a keyspace is, by its number. fjall keeps the names in a keyspace of its own; where they
/// can't be read, the order tells in which the store makes its keyspaces.
pub(super) fn names(
    keyspaces: &[KeyspaceFiles],
    damage: &mut Damage,
) -> Result<BTreeMap<u64, Table>, StoreError> {
    let mut names = BTreeMap::new();
    let meta = keyspaces.iter().filter(|keyspace| keyspace.id == 0);
    for TableFile { path, .. } in meta.flat_map(|keyspace| &keyspace.tables) {
        let failed = |error| StoreError::io("read", path, error);
        let Some(file) = table::Table::open(path, damage).map_err(failed)? else {
            continue;
        };
        let mut rows = file.rows();
        while let Some(row) = rows.next(damage).map_err(failed)? {
            let id = row
                .key
                .user_key
                .strip_prefix(b"n")
                .and_then(crate::keys::split_number);
            let is_named = |table: &Table| table.name().as_bytes() == &*row.value;
            if let (Some(id), Some(table)) = (id, Table::ALL.into_iter().find(is_named)) {
                names.insert(id, table);
            }
        }
    }
    for (place, table) in Table::ALL.into_iter().enumerate() {
        let id = place as u64 + 1;
        if !names.contains_key(&id) && names.values().all(|named| *named != table) {
            names.insert(id, table);
        }
    }
    Ok(names)
}
