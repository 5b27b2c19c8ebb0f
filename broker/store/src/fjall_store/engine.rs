//! fjall as a back end.

use std::{
    fs,
    io::ErrorKind,
    ops::{Bound, ControlFlow},
    path::{Path, PathBuf},
    sync::OnceLock,
    time::{Duration, Instant},
};

use fjall::{
    Database, DatabaseBuilder, Keyspace, KeyspaceCreateOptions, LsmError, OwnedWriteBatch, PersistMode,
    Readable, Snapshot,
    config::{BlockSizePolicy, BloomConstructionPolicy, FilterPolicy, FilterPolicyEntry},
};
use parking_lot::{Mutex, RwLock};

use super::{
    StoreOptions,
    files::{self, Directory},
    journal,
    marks::{self, Marks},
    rewrite::Rewriting,
    sectors,
};
use crate::{
    cipher::{self, Cipher, Encryption},
    engine::{Change, Engine, View, Visit},
    error::StoreError,
    keys::{self, Bytes, Table},
};

/// Bytes of all journals above which keyspaces are flushed to get rid of the oldest; the least that fjall takes.
const MAX_JOURNAL_BYTES: u64 = 64 << 20;

/// Bits of a filter for each key.
const FILTER: FilterPolicyEntry = FilterPolicyEntry::Bloom(BloomConstructionPolicy::BitsPerKey(10.0));

/// Bytes of rows in the memtables of all keyspaces together above which they are flushed.
const YOUNG_BYTES: usize = 256 << 10;

/// Time between two such flushes: who writes much fills memtables anyway, and each is flushed when it is full.
const YOUNG_AGE: Duration = Duration::from_secs(10);

/// Time between two looks at whether a memtable was flushed.
const FLUSH_POLL: Duration = Duration::from_millis(10);

/// One thread flushes while another compacts.
const WORKERS: usize = 2;

/// Keyspace of the one row that marks batches; it is none of the store's tables.
const MARKS: &str = "marks";

/// Types of items in the journal: a row, its removal, its removal where it was written once.
const PUT: u8 = 0;
const REMOVE: u8 = 1;
const REMOVE_WEAKLY: u8 = 2;

/// A database with its keyspaces. They are dropped before the lock on the directory is.
pub(crate) struct FjallEngine {
    tables: [Keyspace; Table::ALL.len()],
    /// Takes the marks of batches.
    marked: Keyspace,
    marks: Marks,
    database: Database,
    /// The store as the last batch left it. A snapshot that is taken while a batch is written may show a part of that
    /// batch, or all of it later: a flush or compaction that ends meanwhile makes its own sequence number visible, and with it
    /// the smaller one of the batch.
    latest: RwLock<Snapshot>,
    directory: Option<Directory>,
    /// Seals what is written and opens what is read, if the store is encrypted.
    cipher: Option<Cipher>,
    pub(super) rewriting: Mutex<Rewriting>,
    young: Mutex<Young>,
    /// What can't be read any more.
    damage: OnceLock<StoreError>,
}

/// What was written to each keyspace since it was last flushed because all together held much. fjall bounds each
/// memtable, not all of them, and a store that is hardly used would hold as much memory as a busy one.
#[derive(Debug)]
struct Young {
    bytes: [usize; Table::ALL.len()],
    since: Instant,
}

impl Young {
    fn new(now: Instant) -> Self {
        Self {
            bytes: [0; Table::ALL.len()],
            since: now,
        }
    }

    /// Adds what was written, and tells which memtables are to be flushed now.
    fn add(&mut self, written: &[usize; Table::ALL.len()], now: Instant) -> [bool; Table::ALL.len()] {
        for (bytes, written) in self.bytes.iter_mut().zip(written) {
            *bytes += written;
        }
        if self.bytes.iter().sum::<usize>() < YOUNG_BYTES || now - self.since < YOUNG_AGE {
            return [false; Table::ALL.len()];
        }
        self.since = now;
        self.bytes.each_mut().map(|bytes| {
            // What is left alone costs little, and would be a small table.
            let is_due = *bytes > YOUNG_BYTES / 16;
            if is_due {
                *bytes = 0;
            }
            is_due
        })
    }
}

/// A snapshot of all keyspaces.
pub(crate) struct FjallView<'e> {
    snapshot: Snapshot,
    engine: &'e FjallEngine,
}

impl FjallEngine {
    /// Opens the database of a directory, or creates one.
    pub(crate) fn start(directory: &Directory, options: &StoreOptions) -> Result<Self, StoreError> {
        Self::start_at(directory.data(), options)
    }

    /// Opens a database, or creates one.
    pub(super) fn start_at(path: PathBuf, options: &StoreOptions) -> Result<Self, StoreError> {
        fs::create_dir_all(&path).map_err(|error| StoreError::io("create the directory", &path, error))?;
        let marks = match Marks::read(&path)?.marks {
            Some(marks) => marks,
            None => Self::begin_marks(&path, options)?,
        };
        Self::start_with(path, options, marks, |database| database.worker_threads(WORKERS))
    }

    /// Makes the marks of a database. If batches were written without, their rows are brought to tables first.
    fn begin_marks(path: &Path, options: &StoreOptions) -> Result<Marks, StoreError> {
        let marks = Marks::random();
        if journal::is_there(path)? && path.join("version").exists() {
            let unmarked = Self::start_with(path.to_owned(), options, marks.clone(), |database| {
                database.worker_threads(WORKERS)
            })?;
            for keyspace in &unmarked.tables {
                let flushed = unmarked.flush_keyspace(keyspace);
                flushed.map_err(|error| unmarked.failed("flush", error))?;
            }
            drop(unmarked);
            journal::forget(path)?;
        }
        marks.write(path)?;
        Ok(marks)
    }

    /// Opens a database only to read from it: nothing is written, flushed or compacted.
    pub(super) fn start_idle_at(path: PathBuf, options: &StoreOptions) -> Result<Self, StoreError> {
        Self::start_with(path, options, Marks::random(), |database| {
            database.worker_threads_unchecked(0)
        })
    }

    fn start_with(
        path: PathBuf,
        options: &StoreOptions,
        marks: Marks,
        workers: impl FnOnce(DatabaseBuilder<Database>) -> DatabaseBuilder<Database>,
    ) -> Result<Self, StoreError> {
        let database = workers(Database::builder(&path))
            .cache_size(options.cache_bytes)
            .max_journaling_size(MAX_JOURNAL_BYTES)
            // Payloads are compressed by who sends them, or when they are compacted.
            .journal_compression(fjall::CompressionType::None)
            .manual_journal_persist(true)
            .open()
            .map_err(|error| opening_error(error, &path))?;
        let mut tables = Vec::with_capacity(Table::ALL.len());
        for table in Table::ALL {
            let keyspace = database.keyspace(table.name(), || keyspace_options(table, options));
            tables.push(keyspace.map_err(|error| opening_error(error, &path))?);
        }
        let marked = database.keyspace(MARKS, || {
            let keyspace = KeyspaceCreateOptions::default().manual_journal_persist(true);
            keyspace.max_memtable_size(options.memtable_bytes / 4)
        });
        let marked = marked.map_err(|error| opening_error(error, &path))?;
        // fjall syncs what is in its folder and in that of a keyspace, but not the names of the two.
        files::sync_directory(&path.join("keyspaces"))?;
        path.parent().map_or(Ok(()), files::sync_directory)?;
        let tables = tables.try_into().map_err(|_| StoreError::Closed)?;
        Ok(Self {
            tables,
            marked,
            marks,
            latest: RwLock::new(database.snapshot()),
            database,
            directory: None,
            cipher: None,
            rewriting: Mutex::default(),
            young: Mutex::new(Young::new(Instant::now())),
            damage: OnceLock::new(),
        })
    }

    /// Keeps the directory locked as long as the database is open.
    pub(crate) fn with_directory(self, directory: Directory) -> Self {
        Self {
            directory: Some(directory),
            ..self
        }
    }

    /// Seals what is written and opens what is read, if there is what does.
    pub(crate) fn with_cipher(self, cipher: Option<Cipher>) -> Self {
        Self { cipher, ..self }
    }

    pub(crate) fn cipher(&self) -> Option<&Cipher> {
        self.cipher.as_ref()
    }

    /// Closes the database and keeps the directory locked.
    pub(crate) fn into_directory(self) -> Option<Directory> {
        let Self { directory, .. } = self;
        directory
    }

    pub(super) fn directory(&self) -> Option<&Directory> {
        self.directory.as_ref()
    }

    /// A row as others know it. What is not encrypted is not copied.
    pub(crate) fn opened(&self, table: Table, key: &Bytes, value: &Bytes) -> (Bytes, Bytes) {
        match &self.cipher {
            Some(cipher) => {
                let opened = cipher.open(table, key, value);
                (opened.key.as_ref().into(), opened.value.as_ref().into())
            }
            None => (key.clone(), value.clone()),
        }
    }

    /// Visits rows as they are on disk, as long as they can be read.
    pub(super) fn read_from(
        &self,
        table: Table,
        from: &Bound<Vec<u8>>,
        mut visit: impl FnMut(&Bytes, &Bytes) -> ControlFlow<()>,
    ) -> Result<(), fjall::Error> {
        for row in self.tables[table as usize].range((from.clone(), Bound::Unbounded)) {
            let (key, value) = row.into_inner()?;
            if visit(&key, &value).is_break() {
                break;
            }
        }
        Ok(())
    }

    /// Syncs what was written without.
    pub(super) fn sync(&self) -> Result<(), StoreError> {
        let synced = self.database.persist(PersistMode::SyncData);
        synced.map_err(|error| self.failed("sync", error))
    }

    /// Writes rows as they are to be on disk, without a sync.
    pub(super) fn write_lazily(&self, changes: Vec<Change>) -> Result<(), StoreError> {
        self.write_with(changes, None)
    }

    fn write_with(&self, changes: Vec<Change>, durability: Option<PersistMode>) -> Result<(), StoreError> {
        if changes.is_empty() {
            return Ok(());
        }
        let mut batch =
            OwnedWriteBatch::with_capacity(self.database.clone(), changes.len() + 1).durability(durability);
        batch.insert(&self.marked, *self.marks.name(), self.mark(&changes));
        let mut bytes = [0; Table::ALL.len()];
        for Change { table, key, value } in changes {
            let keyspace = &self.tables[table as usize];
            bytes[table as usize] += key.len() + value.as_ref().map_or(0, |value| value.len());
            match value {
                Some(value) => batch.insert(keyspace, key, value),
                None if self.may_remove_weakly(table, &key) => batch.remove_weak(keyspace, key),
                None => batch.remove(keyspace, key),
            }
        }
        let commit = || {
            batch.commit()?;
            // Nobody else writes.
            *self.latest.write() = self.database.snapshot();
            self.flush_young(&bytes)
        };
        let committed = commit();
        committed.map_err(|error| self.failed("write", error))
    }

    /// Whether there is only one version of a row to be removed.
    fn may_remove_weakly(&self, table: Table, key: &[u8]) -> bool {
        table.written_once()
            && !self
                .cipher
                .as_ref()
                .is_some_and(|cipher| cipher.was_rewritten(cipher::id_of(key)))
    }

    /// The mark of a batch: over what the journal will hold of it.
    fn mark(&self, changes: &[Change]) -> [u8; marks::LEN] {
        let mut mark = self.marks.begin();
        for Change { table, key, value } in changes {
            let kind = match value {
                Some(_) => PUT,
                None if self.may_remove_weakly(*table, key) => REMOVE_WEAKLY,
                None => REMOVE,
            };
            let value = value.as_deref().unwrap_or_default();
            let keyspace = self.tables[*table as usize].id();
            mark.update(&journal::head(kind, keyspace, key, value));
            mark.update(key);
            mark.update(value);
        }
        mark.finish()
    }

    /// Flushes memtables that together hold too much.
    fn flush_young(&self, written: &[usize; Table::ALL.len()]) -> Result<(), fjall::Error> {
        let due = self.young.lock().add(written, Instant::now());
        for (_, keyspace) in due.iter().zip(&self.tables).filter(|(due, _)| **due) {
            // Public but undocumented: fjall has no other way to flush one keyspace, and its bound of all is not carried out.
            keyspace.rotate_memtable()?;
        }
        Ok(())
    }

    /// Writes all tables anew, without what was deleted or replaced.
    pub(crate) fn compact(&self) -> Result<(), StoreError> {
        for keyspace in &self.tables {
            self.compact_keyspace(keyspace)
                .map_err(|error| self.failed("compact", error))?;
        }
        Ok(())
    }

    /// Writes all memtables to tables, for tests.
    #[cfg(test)]
    pub(crate) fn flush(&self) -> Result<(), fjall::Error> {
        self.tables
            .iter()
            .try_for_each(|keyspace| self.flush_keyspace(keyspace))
    }

    fn compact_keyspace(&self, keyspace: &Keyspace) -> Result<(), fjall::Error> {
        self.flush_keyspace(keyspace)?;
        // Public but undocumented, as is the rotation.
        keyspace.major_compact()
    }

    fn flush_keyspace(&self, keyspace: &Keyspace) -> Result<(), fjall::Error> {
        keyspace.rotate_memtable()?;
        while keyspace.sealed_memtable_count() > 0 {
            // A flush that fails tells nobody else.
            self.database.persist(PersistMode::Buffer)?;
            std::thread::sleep(FLUSH_POLL);
        }
        Ok(())
    }

    /// Turns an error of the engine into ours. If it may mean that the disk gives back something else than was written,
    /// the next opening is told to look.
    pub(super) fn failed(&self, action: &'static str, error: fjall::Error) -> StoreError {
        let (cause, suspect) = match error {
            fjall::Error::Io(source) | fjall::Error::Storage(LsmError::Io(source)) => {
                (source.to_string(), false)
            }
            // Its threads tell nobody but the log why they ended; a full disk is the usual reason.
            fjall::Error::Poisoned => ("its background work failed before: see the log".to_owned(), true),
            other => (other.to_string(), true),
        };
        let error = StoreError::Engine { action, cause };
        if suspect {
            self.suspect(&error);
        }
        error
    }

    /// As [`FjallEngine::failed`], of a read: what was written and can't be read is worth an opening that mends.
    pub(super) fn read_failed(&self, error: fjall::Error) -> StoreError {
        let is_damage = match &error {
            fjall::Error::Io(source) | fjall::Error::Storage(LsmError::Io(source)) => {
                sectors::is_unreadable(source)
            }
            fjall::Error::Poisoned => false,
            _ => true,
        };
        if !is_damage {
            return self.failed("read", error);
        }
        let cause = error.to_string();
        let error = StoreError::Unreadable { cause };
        self.suspect(&error);
        error
    }

    /// Tells the next opening to look for damage. Whoever learns of it finds the mark.
    fn suspect(&self, error: &StoreError) {
        self.damage.get_or_init(|| {
            let marked = self.directory.as_ref().map_or(Ok(()), Directory::mark_suspect);
            tracing::error!(%error, ?marked, "the store is to be read through at its next opening");
            error.clone()
        });
    }
}

fn keyspace_options(table: Table, options: &StoreOptions) -> KeyspaceCreateOptions {
    let keyspace = KeyspaceCreateOptions::default().manual_journal_persist(true);
    match table {
        // Whoever asks for one of these rows has read its key before. Filters say in which of the newest tables it is
        // not; for the mass below they would cost memory, 300 MB for 72 h at 1,000/s, and exclude nothing.
        Table::Queue | Table::Body => keyspace
            .max_memtable_size(options.memtable_bytes)
            .data_block_size_policy(BlockSizePolicy::all(16 << 10))
            .filter_policy(FilterPolicy::new([FILTER, FILTER, FilterPolicyEntry::None]))
            .expect_point_read_hits(true),
        Table::Retained | Table::Dead | Table::Path => keyspace
            .max_memtable_size(options.memtable_bytes / 2)
            .expect_point_read_hits(true),
        _ => keyspace.max_memtable_size(options.memtable_bytes / 4),
    }
}

/// Tells what must not be retried on the same data from what the system refused.
fn opening_error(error: fjall::Error, path: &Path) -> StoreError {
    let path = path.to_owned();
    match error {
        fjall::Error::Locked => StoreError::InUse { path },
        // A file that another one tells of is gone or too short, or a place that it tells of is none: trying again would not
        // bring it back.
        fjall::Error::Io(source) | fjall::Error::Storage(LsmError::Io(source))
            if matches!(
                source.kind(),
                ErrorKind::NotFound
                    | ErrorKind::UnexpectedEof
                    | ErrorKind::InvalidData
                    | ErrorKind::InvalidInput
            ) =>
        {
            StoreError::Damaged {
                what: "the database",
                cause: source.to_string(),
            }
        }
        fjall::Error::Io(source) | fjall::Error::Storage(LsmError::Io(source)) => {
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

impl View for FjallView<'_> {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        let rows = &self.engine.tables[table as usize];
        let read = |key: &[u8]| {
            let row = self.snapshot.get(rows, key);
            row.map_err(|error| self.engine.read_failed(error))
        };
        let Some(cipher) = &self.engine.cipher else {
            return read(key);
        };
        let stored = cipher.stored_key(table, key);
        let row = read(&stored)?;
        Ok(row.map(|row| cipher.open(table, &stored, &row).value.as_ref().into()))
    }

    fn behind(&self, table: Table, key: &[u8]) -> Bytes {
        match &self.engine.cipher {
            Some(cipher) => keys::successor(&cipher.stored_key(table, key)),
            None => keys::successor(key),
        }
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
            .range::<&[u8], _>(&self.engine.tables[table as usize], bounds)
        {
            let (key, value) = row.into_inner().map_err(|error| self.engine.read_failed(error))?;
            let going = match &self.engine.cipher {
                Some(cipher) => {
                    let opened = cipher.open(table, &key, &value);
                    visit(&opened.key, &opened.value)?
                }
                None => visit(&key, &value)?,
            };
            if going.is_break() {
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
            snapshot: self.latest.read().clone(),
            engine: self,
        }
    }

    fn write(&self, mut changes: Vec<Change>) -> Result<(), StoreError> {
        if let Some(cipher) = &self.cipher {
            for Change { table, key, value } in &mut changes {
                let stored = cipher.stored_key(*table, key);
                if let Some(value) = value {
                    *value = cipher.seal(*table, key, &stored, value)?;
                }
                *key = stored;
            }
        }
        self.write_with(changes, Some(PersistMode::SyncData))
    }

    fn damage(&self) -> Option<StoreError> {
        self.damage.get().cloned()
    }

    fn keep_up(&self) -> Result<bool, StoreError> {
        self.keep_sealed()
    }

    fn encryption(&self) -> Option<Encryption> {
        self.cipher.as_ref().map(Cipher::state)
    }

    fn close(&self, commits: u64) -> Result<(), StoreError> {
        let synced = self.database.persist(PersistMode::SyncAll);
        synced.map_err(|error| self.failed("close", error))?;
        self.directory
            .as_ref()
            .map_or(Ok(()), |directory| directory.mark_clean(commits))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(queue: usize, path: usize) -> [usize; Table::ALL.len()] {
        let mut bytes = [0; Table::ALL.len()];
        bytes[Table::Queue as usize] = queue;
        bytes[Table::Path as usize] = path;
        bytes
    }

    #[test]
    fn memtables_are_flushed_when_they_hold_much_together_and_not_too_often() {
        let none = [false; Table::ALL.len()];
        let start = Instant::now();
        let mut young = Young::new(start);
        assert_eq!(young.add(&written(YOUNG_BYTES - 10, 9), start + YOUNG_AGE), none);
        assert_eq!(young.add(&written(0, 1), start + YOUNG_AGE / 2), none);
        let due = young.add(&written(0, 0), start + YOUNG_AGE);
        assert!(due[Table::Queue as usize] && !due[Table::Path as usize]);
        // What was not flushed counts on.
        assert_eq!(young.bytes[Table::Path as usize], 10);
        assert_eq!(
            young.add(
                &written(YOUNG_BYTES, 0),
                start + YOUNG_AGE * 2 - Duration::from_secs(1)
            ),
            none
        );
        assert!(young.add(&written(0, 0), start + YOUNG_AGE * 2)[Table::Queue as usize]);
    }
}
