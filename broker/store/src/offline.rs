//! A store that no broker has open: looked at, proved, made smaller.
//!
//! What looks only, [`ClosedStore`], opens nothing in the store's directory for writing, so that a damaged store stays
//! as it was found (see `fjall_store::shadow`). It needs a scratch folder for copies of the journals, which are up to
//! some 200 MB, and of lists of files; the mass of the store is read where it lies.

mod bodies;
mod compact;
mod findings;
mod rows;
mod verify;

use std::path::Path;

pub use self::{
    compact::{Compacted, compact},
    findings::{Finding, Severity},
    rows::{Contents, Row},
    verify::{EncryptionState, JournalState, JudgeBlob, Judges, KeyspaceState, LedgerSum, Verification},
};
use crate::{
    cipher,
    clock::BrokerTime,
    engine::{Engine, View},
    entry::{EntryId, ReceiverId},
    error::StoreError,
    fjall_store::{
        StoreOptions,
        engine::FjallEngine,
        files::{CleanMark, QuietDirectory},
        journal::{self, Journal},
        shadow, survey,
    },
    keys::{self, Table},
    rows::{PositionRow, decode_number},
};

/// A store that is only read from. While it is held, no broker can open the directory.
pub struct ClosedStore {
    /// The database, or why it can't be opened.
    engine: Result<FjallEngine, StoreError>,
    journals: Vec<Journal>,
    /// Commits that there were at an orderly close.
    expected_commits: Option<u64>,
    is_suspect: bool,
    is_mark_damaged: bool,
    /// Let go last.
    directory: QuietDirectory,
}

/// Where a store stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// Whether it was closed in order.
    pub closed_in_order: bool,
    /// Commits so far.
    pub commits: u64,
    /// First id that was not given out yet.
    pub next_id: EntryId,
    /// Broker time of the last commit.
    pub now: BrokerTime,
}

impl ClosedStore {
    /// Opens the store of a directory to read from it. `scratch` is an empty folder of the caller's, who removes it
    /// after the store was dropped.
    ///
    /// # Errors
    /// When a broker has the store open, when there is no store or one of another format, when it is encrypted and its key
    /// is not there, when the scratch folder can't be written, or when a file can't be read. A damaged store opens as far
    /// as it can.
    pub fn open(directory: &Path, scratch: &Path, options: &StoreOptions) -> Result<Self, StoreError> {
        let path = directory;
        let directory = QuietDirectory::open(path)?;
        let cipher = cipher::open_quietly(path, directory.format, options.encryption_keys.as_deref())?;
        let clean_mark = directory.clean_mark()?;
        let expected_commits = clean_mark.commits();
        let data = directory.data();
        let journals = journal::read(&data, expected_commits.is_some())?;
        // fjall trusts its files more than it should.
        let damaged = survey::check(&data)?.count;
        let opened = if damaged > 0 {
            Err(StoreError::Damaged {
                what: "the database",
                cause: format!("lists of tables or tables can't be read in {damaged} places"),
            })
        } else {
            shadow::open(&data, &journals, scratch, options)
        };
        let engine = match opened {
            Err(error) if !matches!(error, StoreError::Damaged { .. }) => return Err(error),
            opened => opened.map(|engine| engine.with_cipher(cipher)),
        };
        Ok(Self {
            engine,
            journals,
            expected_commits,
            is_suspect: directory.is_suspect(),
            is_mark_damaged: clean_mark == CleanMark::Damaged,
            directory,
        })
    }

    /// Where the store stands.
    ///
    /// # Errors
    /// When the database or the row that says so is damaged.
    pub fn standing(&self) -> Result<Standing, StoreError> {
        let row = self.engine()?.view().get(Table::Meta, keys::POSITION)?;
        let position = row.map(|row| PositionRow::decode(&row)).transpose()?;
        let PositionRow {
            next_id,
            now,
            next_receiver: _,
            commits,
        } = position.unwrap_or_default();
        Ok(Standing {
            closed_in_order: self.expected_commits.is_some(),
            commits,
            next_id,
            now,
        })
    }

    /// The receiver of that name.
    ///
    /// # Errors
    /// When the database or the row of the name is damaged.
    pub fn find_receiver(&self, name: &str) -> Result<Option<ReceiverId>, StoreError> {
        let row = self.engine()?.view().get(Table::Name, name.as_bytes())?;
        row.map(|row| decode_number(&row)).transpose()
    }

    fn engine(&self) -> Result<&FjallEngine, StoreError> {
        self.engine.as_ref().map_err(Clone::clone)
    }
}
