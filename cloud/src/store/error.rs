//! Why the store did not do what was asked.

use std::path::PathBuf;

use rusqlite::{ErrorCode, ffi};

/// Why the store did not do what was asked. Nothing of the request was kept.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// Another process has the data directory.
    #[error("data directory {} is used by another process", path.display())]
    Locked {
        /// The directory.
        path: PathBuf,
    },
    /// The database could not be opened.
    #[error("can't open {}: {cause}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// What the operating system or SQLite says.
        cause: String,
    },
    /// A later version wrote the database.
    #[error("{} has format {found}, this version reads up to format {supported}", path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: i64,
        /// The newest format that this version knows.
        supported: i64,
    },
    /// The disk, or the size that the store may have, is used up.
    #[error("the store is full: {cause}")]
    Full {
        /// What SQLite says.
        cause: String,
    },
    /// Another process holds the database's lock.
    #[error("the store is busy: {cause}")]
    Busy {
        /// What SQLite says.
        cause: String,
    },
    /// Reading or writing failed, and may work later.
    #[error("the store failed: {cause}")]
    Failed {
        /// What SQLite says.
        cause: String,
    },
    /// A query took too long and was ended.
    #[error("the query took too long")]
    Interrupted,
    /// What is on disk can't be relied upon any more: a sync failed, or the file is damaged. Nothing is committed until
    /// the next start, which writes the journal anew.
    #[error("the store can't go on: {cause}")]
    Fatal {
        /// What SQLite says.
        cause: String,
    },
    /// The store has ended.
    #[error("the store has ended")]
    Closed,
}

impl StoreError {
    /// A constant for conditions, metrics and the link.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Locked { .. } => "DataDirectoryLocked",
            Self::Open { .. } => "StoreUnopened",
            Self::Newer { .. } => "StoreNewer",
            Self::Full { .. } => "StoreFull",
            Self::Busy { .. } => "StoreBusy",
            Self::Failed { .. } => "StoreFailed",
            Self::Interrupted => "QueryTooLong",
            Self::Fatal { .. } => "StoreDamaged",
            Self::Closed => "StoreClosed",
        }
    }

    /// Whether nothing can be committed before the next start.
    pub(crate) fn is_final(&self) -> bool {
        matches!(self, Self::Fatal { .. } | Self::Closed)
    }
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        let cause = error.to_string();
        let Some(code) = error.sqlite_error() else {
            // Not SQLite but a value of another type than the schema says, or a fault of ours.
            return Self::Failed { cause };
        };
        match (code.code, code.extended_code) {
            (_, ffi::SQLITE_IOERR_FSYNC | ffi::SQLITE_IOERR_DIR_FSYNC) => Self::Fatal { cause },
            (ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase, _) => Self::Fatal { cause },
            (ErrorCode::DiskFull, _) => Self::Full { cause },
            (ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked, _) => Self::Busy { cause },
            (ErrorCode::OperationInterrupted, _) => Self::Interrupted,
            _ => Self::Failed { cause },
        }
    }
}
