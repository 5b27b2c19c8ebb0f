//! fjall as a back end.

use std::{
    io::ErrorKind,
    ops::{Bound, ControlFlow},
};

use fjall::{
    Database, Keyspace, KeyspaceCreateOptions, PersistMode, Readable, Snapshot,
    config::{BlockSizePolicy, FilterPolicy},
};

use super::{StoreOptions, files::Directory};
use crate::{
    engine::{Bytes, Change, Engine, View, Visit},
    error::StoreError,
    keys::Table,
};

/// Bytes of all journals above which keyspaces are flushed to get rid of the oldest; the least that fjall takes.
const MAX_JOURNAL_BYTES: u64 = 64 << 20;

/// One thread flushes while another compacts.
const WORKERS: usize = 2;

/// A database with its keyspaces. They are dropped before the lock on the directory is.
pub(crate) struct FjallEngine {
    tables: [Keyspace; Table::ALL.len()],
    database: Database,
    directory: Option<Directory>,
}

/// A snapshot of all keyspaces.
pub(crate) struct FjallView<'e> {
    snapshot: Snapshot,
    tables: &'e [Keyspace; Table::ALL.len()],
}

impl FjallEngine {
    pub(super) fn start(directory: &Directory, options: &StoreOptions) -> Result<Self, StoreError> {
        let path = directory.data();
        let database = Database::builder(&path)
            .cache_size(options.cache_bytes)
            .worker_threads(WORKERS)
            .max_journaling_size(MAX_JOURNAL_BYTES)
            // Payloads are compressed by who sends them, or when they are compacted.
            .journal_compression(fjall::CompressionType::None)
            .manual_journal_persist(true)
            .open()
            .map_err(|error| opening_error(error, directory))?;
        let mut tables = Vec::with_capacity(Table::ALL.len());
        for table in Table::ALL {
            let keyspace = database.keyspace(table.name(), || keyspace_options(table, options));
            tables.push(keyspace.map_err(|error| opening_error(error, directory))?);
        }
        let tables = tables.try_into().map_err(|_| StoreError::Closed)?;
        Ok(Self {
            tables,
            database,
            directory: None,
        })
    }

    /// Keeps the directory locked as long as the database is open.
    pub(super) fn with_directory(self, directory: Directory) -> Self {
        Self {
            directory: Some(directory),
            ..self
        }
    }
}

fn keyspace_options(table: Table, options: &StoreOptions) -> KeyspaceCreateOptions {
    let keyspace = KeyspaceCreateOptions::default().manual_journal_persist(true);
    match table {
        // Whoever asks for one of these rows has read its key before: filters would cost memory and exclude nothing.
        Table::Queue | Table::Body => keyspace
            .max_memtable_size(options.memtable_bytes)
            .data_block_size_policy(BlockSizePolicy::all(16 << 10))
            .filter_policy(FilterPolicy::disabled())
            .expect_point_read_hits(true),
        Table::Retained | Table::Dead | Table::Path => keyspace
            .max_memtable_size(options.memtable_bytes / 2)
            .expect_point_read_hits(true),
        _ => keyspace.max_memtable_size(options.memtable_bytes / 4),
    }
}

/// Tells what must not be retried on the same data from what the system refused.
fn opening_error(error: fjall::Error, directory: &Directory) -> StoreError {
    let path = directory.data();
    match error {
        fjall::Error::Locked => StoreError::InUse { path },
        // A file that another one tells of is gone or too short: trying again would not bring it back.
        fjall::Error::Io(source) | fjall::Error::Storage(fjall::LsmError::Io(source))
            if matches!(
                source.kind(),
                ErrorKind::NotFound | ErrorKind::UnexpectedEof | ErrorKind::InvalidData
            ) =>
        {
            StoreError::Damaged {
                what: "the database",
                cause: source.to_string(),
            }
        }
        fjall::Error::Io(source) | fjall::Error::Storage(fjall::LsmError::Io(source)) => {
            StoreError::io("open the database", path, source)
        }
        fjall::Error::InvalidVersion(found) => StoreError::Format {
            path,
            found: found.map_or_else(|| "unknown".to_owned(), |version| format!("fjall {version}")),
            allowed: "fjall 3",
        },
        other => StoreError::Damaged {
            what: "the database",
            cause: other.to_string(),
        },
    }
}

fn failed(action: &'static str) -> impl Fn(fjall::Error) -> StoreError {
    move |error| {
        let cause = match &error {
            fjall::Error::Io(source) | fjall::Error::Storage(fjall::LsmError::Io(source)) => {
                source.to_string()
            }
            fjall::Error::Poisoned => "its background work failed before: see the log".to_owned(),
            other => other.to_string(),
        };
        StoreError::Engine { action, cause }
    }
}

impl View for FjallView<'_> {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        self.snapshot
            .get(&self.tables[table as usize], key)
            .map_err(failed("read"))
    }

    fn scan(
        &self,
        table: Table,
        from: &[u8],
        to: Option<&[u8]>,
        visit: &mut Visit<'_>,
    ) -> Result<(), StoreError> {
        if to.is_some_and(|to| to <= from) {
            return Ok(());
        }
        let bounds = (
            Bound::Included(from),
            to.map_or(Bound::Unbounded, Bound::Excluded),
        );
        for row in self
            .snapshot
            .range::<&[u8], _>(&self.tables[table as usize], bounds)
        {
            let (key, value) = row.into_inner().map_err(failed("read"))?;
            if let ControlFlow::Break(()) = visit(&key, &value)? {
                break;
            }
        }
        Ok(())
    }
}

impl Engine for FjallEngine {
    type View<'e> = FjallView<'e>;

    fn view(&self) -> FjallView<'_> {
        FjallView {
            snapshot: self.database.snapshot(),
            tables: &self.tables,
        }
    }

    fn write(&self, changes: Vec<Change>) -> Result<(), StoreError> {
        let mut batch = fjall::OwnedWriteBatch::with_capacity(self.database.clone(), changes.len())
            .durability(Some(PersistMode::SyncData));
        for Change { table, key, value } in changes {
            let keyspace = &self.tables[table as usize];
            match value {
                Some(value) => batch.insert(keyspace, key, value),
                None if table.written_once() => batch.remove_weak(keyspace, key),
                None => batch.remove(keyspace, key),
            }
        }
        batch.commit().map_err(failed("write"))
    }

    fn close(&self, commits: u64) -> Result<(), StoreError> {
        self.database
            .persist(PersistMode::SyncAll)
            .map_err(failed("close"))?;
        self.directory
            .as_ref()
            .map_or(Ok(()), |directory| directory.mark_clean(commits))
    }
}
