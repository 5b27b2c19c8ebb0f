//! What the cloud endpoint keeps: one SQLite database, written by one thread, read by others.
//!
//! | module | what |
//! |---|---|
//! | `schema` | tables, migrations, how the database is opened |
//! | `writer` | the thread that writes: group commit, priorities, faults |
//! | `readers` | connections for queries |
//! | `edges` | admitted edges, join tokens, processes |
//! | `ingest` | keeping a batch: fencing, repeats, counts |
//! | `intervals` | which entries are done |
//! | `registry` | assets and what has a history |
//! | `history` | values: last ones, and all of them by time |
//! | `ledger` | counts of every path |
//! | `retention` | deleting what is too old or too much |

mod caches;
pub(crate) mod edges;
mod error;
pub(crate) mod history;
pub(crate) mod ingest;
mod intervals;
pub(crate) mod ledger;
mod readers;
pub(crate) mod registry;
pub(crate) mod retention;
mod schema;
mod writer;

use std::{
    fs::{self, File, TryLockError},
    os::unix::fs::DirBuilderExt,
    path::Path,
};

use rusqlite::Connection;

pub use error::StoreError;
use readers::Readers;
use writer::Writer;
pub(crate) use writer::{Context, Priority};

use crate::metrics::StoreMetrics;

/// File of the database in the data directory.
const DATABASE: &str = "cloud.db";

/// File whose lock keeps other processes from the data directory.
const LOCK: &str = "lock";

/// The store. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Store {
    writer: Writer,
    readers: Readers,
}

impl Store {
    /// Opens the store in a directory, making both when they do not exist; at most `max_bytes` large. Blocks.
    ///
    /// # Errors
    /// [`StoreError::Locked`], [`StoreError::Newer`], [`StoreError::Open`].
    pub(crate) fn open(
        directory: &Path,
        max_bytes: Option<u64>,
        metrics: StoreMetrics,
    ) -> Result<Self, StoreError> {
        let lock = lock(directory)?;
        let path = directory.join(DATABASE);
        let connection = schema::open_writer(&path, max_bytes)?;
        Ok(Self {
            writer: Writer::start(connection, lock, metrics)?,
            readers: Readers::new(path),
        })
    }

    /// As [`Writer::write`].
    pub(crate) async fn write<T, F>(&self, priority: Priority, weight: u32, work: F) -> Result<T, StoreError>
    where
        F: FnOnce(&mut Context<'_>) -> Result<T, StoreError> + Send + 'static,
        T: Send + 'static,
    {
        self.writer.write(priority, weight, work).await
    }

    /// Runs a query over one state of the database.
    pub(crate) async fn read<T, F>(&self, query: F) -> Result<T, StoreError>
    where
        F: FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
        T: Send + 'static,
    {
        self.readers.read(query).await
    }

    /// Resolves when nothing can be committed any more, with the cause.
    pub(crate) async fn fault(&self) -> StoreError {
        self.writer.fault().await
    }

    /// Commits what waits, and returns when the database is closed.
    pub(crate) async fn close(&self) {
        self.writer.close().await;
    }
}

fn lock(directory: &Path) -> Result<File, StoreError> {
    let path = directory.join(LOCK);
    let failed = |error: std::io::Error| StoreError::Open {
        path: path.clone(),
        cause: error.to_string(),
    };
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .map_err(failed)?;
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(StoreError::Locked {
            path: directory.to_owned(),
        }),
        Err(TryLockError::Error(error)) => Err(failed(error)),
    }
}

#[cfg(test)]
pub(crate) mod tests;
