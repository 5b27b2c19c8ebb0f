//! The back end on a disk: [fjall](fjall), a log-structured merge tree with one journal for all keyspaces.
//!
//! ```text
//! DIRECTORY/
//!   lock       held by the process that has the store open
//!   format     which version wrote it, and whether rows may be sealed
//!   keys       keys of an encrypted store, sealed with one of the user's; keys.copy is the same
//!   suspect    something could not be read: the next opening reads everything
//!   clean      written by an orderly close: how many commits there were; removed at opening
//!   data/      fjall's database: journals N.jnl, keyspaces/; marks, marks.copy: what proves journals to be its own
//!   damaged/   journals that were damaged, as they were found; the last few
//! ```

pub(crate) mod engine;
pub(crate) mod files;
pub(crate) mod journal;
pub(crate) mod lsm;
pub(crate) mod marks;
pub(crate) mod merge;
pub(crate) mod note;
pub(crate) mod repair;
mod rewrite;
pub(crate) mod salvage;
pub(crate) mod sectors;
pub(crate) mod shadow;
pub(crate) mod survey;

use std::{
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::Arc,
};

use self::{engine::FjallEngine, files::Directory};
use crate::{
    cipher::{self, Cipher, keys::MasterKeys},
    error::StoreError,
    queue_store::QueueStore,
    space::SpaceProbe,
    store::SharedStore,
};

/// How a store on a disk is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreOptions {
    /// Free bytes of the disk below which publishes are refused. Has to cover journals (up to about 200 MB) and a
    /// compaction.
    pub free_space_watermark: u64,
    /// Bytes of a keyspace's newest rows that are held in memory, twice while they are flushed.
    pub memtable_bytes: u64,
    /// Bytes of blocks that are cached.
    pub cache_bytes: u64,
    /// Folder with keys of 32 bytes, each in a file of its name, and a file `active` that names the one in use: the store
    /// is encrypted with it. A store that is encrypted can't be opened without its key.
    pub encryption_keys: Option<PathBuf>,
    /// Whether a store that is there already and not encrypted may be, from now on. Without it, nothing that is not
    /// encrypted is believed where `encryption_keys` are given: it may be what somebody put in the place of the store.
    pub encrypt_existing: bool,
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self {
            free_space_watermark: 512 << 20,
            memtable_bytes: 2 << 20,
            cache_bytes: 4 << 20,
            encryption_keys: None,
            encrypt_existing: false,
        }
    }
}

/// What was found when a store was opened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OpenReport {
    /// Whether the store is new.
    pub created: bool,
    /// Whether it was closed in order. After a crash the journal is written anew before it is trusted, since after a
    /// failed sync the page cache may hold what the disk does not.
    pub clean: bool,
    /// Journals in which something other than a torn end could not be read.
    pub damaged_journals: u64,
    /// Places of the database that could not be read; the rest was copied.
    pub unreadable: u64,
    /// Damaged files whose content was known and that were restored: nothing is lost with them.
    pub restored: u64,
    /// Commits that were acknowledged and are lost, as far as their numbers tell.
    pub lost_commits: u64,
    /// Entries that are lost with them, now counted as dropped (`corrupt`).
    pub lost_entries: u64,
    /// Entries that wait again because their settlement was lost.
    pub returned_entries: u64,
    /// Where damaged journals, or a whole store that could not be opened, were set aside.
    pub set_aside: Vec<PathBuf>,
}

impl OpenReport {
    /// Whether something that was acknowledged is lost.
    #[must_use]
    pub fn lost_something(&self) -> bool {
        self.lost_commits + self.damaged_places() > self.restored
    }

    /// Journals, places of tables, small files and whole databases that could not be read.
    #[must_use]
    pub fn damaged_places(&self) -> u64 {
        // Every damaged journal is set aside, as is a whole database.
        self.unreadable + self.restored + self.set_aside.len() as u64
    }
}

/// Opens the store in a directory, or creates one.
///
/// Damage does not keep it from opening: what can't be read is set aside and reported.
///
/// # Errors
/// When another process has it open, when another format wrote it, when it is encrypted and its key is not there or the
/// other way round, or when the system refuses to read or write there.
pub fn open(directory: &Path, options: &StoreOptions) -> Result<(SharedStore, OpenReport), StoreError> {
    let (store, report) = open_queues(directory, options)?;
    Ok((Arc::new(store), report))
}

/// Whether something in a store could not be read, so that its next opening reads everything and mends what is damaged.
fn is_suspect(directory: &Path) -> bool {
    directory.join(files::SUSPECT).exists()
}

pub(crate) fn open_queues(
    directory: &Path,
    options: &StoreOptions,
) -> Result<(QueueStore<FjallEngine>, OpenReport), StoreError> {
    let (mut report, mut expected_commits) = (OpenReport::default(), None);
    let opened = match try_open(directory, options, &mut report, &mut expected_commits) {
        // What a start reads lies in a block that can't be read.
        Err(error @ StoreError::Unreadable { .. }) => {
            tracing::error!(%error, "the store is read through");
            try_open(directory, options, &mut report, &mut expected_commits)
        }
        done => done,
    };
    Ok((opened?, report))
}

/// Opens the store, and adds to the report. What the mark of an orderly close tells is to be handed to the next try.
fn try_open(
    directory: &Path,
    options: &StoreOptions,
    report: &mut OpenReport,
    expected_commits: &mut Option<u64>,
) -> Result<QueueStore<FjallEngine>, StoreError> {
    let (mut directory, cipher) = unlock(directory, options)?;
    report.created |= directory.created;
    let clean_mark = directory.take_clean_mark()?;
    *expected_commits = clean_mark.or(*expected_commits);
    report.clean = expected_commits.is_some();
    report.restored += directory.restored + u64::from(survey::restore_version(&directory.data())?);
    let found = journal::prepare(&directory, clean_mark.is_some())?;
    report.damaged_journals += found.damaged;
    report.lost_commits += found.lost_commits;
    report.restored += found.restored;
    report.set_aside.extend(found.set_aside);

    // Setting the ledger right reads the queues: where a journal is damaged, tables may be too.
    let is_suspect = is_suspect(directory.path()) || report.damaged_journals > 0;
    if is_suspect || survey::check(&directory.data())?.count > 0 {
        mend(&directory, options, report)?;
    }

    let probe = SpaceProbe::of_directory(directory.path().to_owned(), options.free_space_watermark);
    let engine = or_rest(&directory, options, report)?;
    let engine = engine.with_directory(directory).with_cipher(cipher);
    engine.seal_names()?;
    let commits = repair::commits(&engine)?;
    let lost_at_end = expected_commits.map_or(0, |expected| expected.saturating_sub(commits));
    report.lost_commits = report.lost_commits.max(lost_at_end);
    if report.damaged_journals > 0 || lost_at_end > 0 || report.unreadable > 0 {
        let repaired = repair::repair(&engine)?;
        report.lost_entries = repaired.lost;
        report.returned_entries = repaired.returned;
    }
    if report.lost_something() {
        tracing::error!(?report, "part of the store was lost");
    } else if report.restored > 0 {
        tracing::error!(?report, "files of the store were damaged and are restored");
    }
    QueueStore::open(engine, Some(probe), rand::random())
}

/// Locks a directory and takes up its keys. If those are not there, nothing was changed.
pub(crate) fn unlock(
    directory: &Path,
    options: &StoreOptions,
) -> Result<(Directory, Option<Cipher>), StoreError> {
    let folder = options.encryption_keys.as_deref();
    let keys = folder.map(MasterKeys::read).transpose()?;
    let directory = Directory::lock(directory)?;
    let cipher = cipher::open(&directory, options, keys.as_ref())?;
    directory.prepare()?;
    Ok((directory, cipher))
}

/// Reads everything and copies what is good if something is not.
fn mend(directory: &Directory, options: &StoreOptions, report: &mut OpenReport) -> Result<(), StoreError> {
    let salvage = || salvage::salvage(directory, options, false);
    report.unreadable += or_empty(directory, report, salvage)?;
    directory.clear_suspicion()
}

/// Opens the database; if that can't be done, one of what can be read of it.
fn or_rest(
    directory: &Directory,
    options: &StoreOptions,
    report: &mut OpenReport,
) -> Result<FjallEngine, StoreError> {
    let start = || FjallEngine::start(directory, options);
    let started = match guarded(start) {
        Err(error) if error.is_unreadable() => {
            tracing::error!(%error, "the database can't be opened: all of it is read");
            let known = report.unreadable;
            mend(directory, options, report)?;
            if report.unreadable == known {
                // The disk takes no writes. Nor is it tried again: what a sync that failed has left is not known.
                return Err(error);
            }
            guarded(start)
        }
        done => done,
    };
    match started {
        Err(StoreError::Damaged { what, cause }) => {
            tracing::error!(what, cause, "the database can't be opened");
            let salvage = || salvage::salvage(directory, options, true);
            // Whatever kept it from opening is one place at least.
            report.unreadable += or_empty(directory, report, salvage)?.max(1);
            or_empty(directory, report, start)
        }
        done => done,
    }
}

/// Does something with the database. A panic of fjall's recovery counts as damage, as what it can't decode does.
fn guarded<T>(work: impl FnOnce() -> Result<T, StoreError>) -> Result<T, StoreError> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| {
        Err(StoreError::Damaged {
            what: "the database",
            cause: "its recovery panicked".to_owned(),
        })
    })
}

/// Does something with the database. If nothing can be done with it, sets it aside and does it with an empty one.
fn or_empty<T>(
    directory: &Directory,
    report: &mut OpenReport,
    work: impl Fn() -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    match guarded(&work) {
        Err(StoreError::Damaged { what, cause }) => {
            let aside = directory.set_store_aside()?;
            tracing::error!(
                what,
                cause,
                ?aside,
                "the store can't be read and is set aside: an empty one starts"
            );
            report.set_aside.push(aside);
            let data = directory.data();
            fs::create_dir_all(&data).map_err(|error| StoreError::io("create the directory", data, error))?;
            guarded(work)
        }
        done => done,
    }
}
