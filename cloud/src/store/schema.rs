//! Tables, and how the database is opened.

use std::{path::Path, time::Duration};

use rusqlite::{Connection, OpenFlags, Transaction};

use super::StoreError;

/// Marks the file as ours (`PRAGMA application_id`): "FSCL".
const APPLICATION_ID: i64 = 0x4653_434c;

/// What leads from one format to the next; the format of a database is how many of them it has seen.
const MIGRATIONS: &[&str] = &[
    include_str!("schema.sql"),
    // Version of the registry that an edge told last; an asset with a description is in it.
    "ALTER TABLE edges ADD COLUMN registry_version BLOB;",
];

/// How long a lock of another process is waited for. Ours do not wait for each other: one connection writes, and
/// readers never block it (write-ahead log).
const BUSY_TIMEOUT: Duration = Duration::from_secs(2);

/// Pages of the write-ahead log after which it is written back into the database.
const CHECKPOINT_PAGES: u32 = 4_000;

/// Bytes to which the file of the write-ahead log is cut back after it has grown.
const JOURNAL_LIMIT: i64 = 64 << 20;

/// Memory for pages, in KiB.
const WRITER_CACHE_KIB: i64 = 16 << 10;
const READER_CACHE_KIB: i64 = 1 << 10;

/// Opens the database for its one writer, and brings it to the present format.
///
/// Everything in the write-ahead log is written back and synced first: after a sync that failed, the page cache may
/// hold what the disk does not.
pub(super) fn open_writer(path: &Path, max_bytes: Option<u64>) -> Result<Connection, StoreError> {
    let opened = |error: rusqlite::Error| StoreError::Open {
        path: path.to_owned(),
        cause: error.to_string(),
    };
    let mut connection = Connection::open(path).map_err(opened)?;
    connection.busy_timeout(BUSY_TIMEOUT).map_err(opened)?;
    let application: i64 = connection
        .pragma_query_value(None, "application_id", get)
        .map_err(opened)?;
    let format: i64 = connection
        .pragma_query_value(None, "user_version", get)
        .map_err(opened)?;
    let is_new = (application, format) == (0, 0);
    if application != APPLICATION_ID && !is_new {
        return Err(StoreError::Open {
            path: path.to_owned(),
            cause: "not a database of a cloud endpoint".to_owned(),
        });
    }
    let supported = MIGRATIONS.len() as i64;
    if format > supported {
        return Err(StoreError::Newer {
            path: path.to_owned(),
            found: format,
            supported,
        });
    }
    connection
        .pragma_update(None, "journal_mode", "WAL")
        .map_err(opened)?;
    connection
        .pragma_update(None, "synchronous", "FULL")
        .map_err(opened)?;
    connection
        .pragma_update(None, "wal_autocheckpoint", CHECKPOINT_PAGES)
        .map_err(opened)?;
    connection
        .pragma_update(None, "journal_size_limit", JOURNAL_LIMIT)
        .map_err(opened)?;
    connection
        .pragma_update(None, "cache_size", -WRITER_CACHE_KIB)
        .map_err(opened)?;
    connection
        .pragma_update(None, "temp_store", "MEMORY")
        .map_err(opened)?;
    connection
        .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
        .map_err(opened)?;
    migrate(&mut connection, format).map_err(opened)?;
    if let Some(max_bytes) = max_bytes {
        let page_size: u64 = connection
            .pragma_query_value(None, "page_size", get)
            .map_err(opened)?;
        let pages = (max_bytes / page_size).max(1);
        // Answers with what is in force, which is never less than what is there.
        connection
            .query_row(&format!("PRAGMA max_page_count = {pages}"), [], |_| Ok(()))
            .map_err(opened)?;
    }
    connection.set_prepared_statement_cache_capacity(128);
    Ok(connection)
}

/// Opens the database for queries.
pub(super) fn open_reader(path: &Path) -> Result<Connection, StoreError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.pragma_update(None, "cache_size", -READER_CACHE_KIB)?;
    connection.pragma_update(None, "temp_store", "MEMORY")?;
    Ok(connection)
}

fn migrate(connection: &mut Connection, format: i64) -> rusqlite::Result<()> {
    let seen = usize::try_from(format).unwrap_or_default();
    for (place, migration) in MIGRATIONS.iter().enumerate().skip(seen) {
        let transaction: Transaction<'_> = connection.transaction()?;
        transaction.execute_batch(migration)?;
        transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
        transaction.pragma_update(None, "user_version", place as i64 + 1)?;
        transaction.commit()?;
    }
    Ok(())
}

fn get<T: rusqlite::types::FromSql>(row: &rusqlite::Row<'_>) -> rusqlite::Result<T> {
    row.get(0)
}
