//! Why a store can't be opened, read or written.

use std::{path::PathBuf, sync::Arc, time::Duration};

use crate::fjall_store::sectors;

/// Why a store can't be opened, read or written.
///
/// After an error of [`crate::Store::commit`] nothing more may be acknowledged: what the disk holds is unknown until
/// the store is opened again.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process has the directory open.
    #[error("store {path:?} is in use by another process: one broker may open a directory at a time")]
    InUse {
        /// The directory.
        path: PathBuf,
    },
    /// The directory was written by another program or by a newer version.
    #[error("store {path:?} has format {found:?}: {allowed:?} is allowed")]
    Format {
        /// The directory.
        path: PathBuf,
        /// What it says.
        found: String,
        /// What this version reads.
        allowed: &'static str,
    },
    /// There is no store in the directory.
    #[error("{path:?} is no store: {cause}")]
    NoStore {
        /// The directory.
        path: PathBuf,
        /// What is missing.
        cause: String,
    },
    /// A folder of keys, or a file in it, can't be used.
    #[error("keys in {folder:?} can't be used: {cause}")]
    Keys {
        /// The folder.
        folder: PathBuf,
        /// Which file, what was found and what is allowed.
        cause: String,
    },
    /// The key that a store is encrypted with was not given, or another key was given under its name. Nothing was
    /// changed.
    #[error("store {path:?} is encrypted with key {key:?} (fingerprint {fingerprint}): {cause}")]
    NoKey {
        /// The store.
        path: PathBuf,
        /// Name of the key.
        key: String,
        /// What tells the key from others of its name.
        fingerprint: String,
        /// Where it was looked for, and what was found there.
        cause: String,
    },
    /// The store is to be encrypted, and holds rows that are not. Nothing was changed.
    #[error(
        "store {path:?} is to be encrypted: found one that is not, or not throughout, allowed are an encrypted one and a \
         new one, and this one if existing stores are to be encrypted too (--encrypt-existing, encryptExisting)"
    )]
    NotEncrypted {
        /// The store.
        path: PathBuf,
    },
    /// The file with the keys of a store, or its copy, can't be read. Without it nothing in the store can be.
    #[error("keyring {path:?} can't be read: {cause}")]
    Keyring {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        cause: String,
    },
    /// The operating system refused.
    #[error("can't {action} {path:?}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file or directory.
        path: PathBuf,
        /// Why not.
        #[source]
        source: Arc<std::io::Error>,
    },
    /// The storage engine failed.
    #[error("can't {action} the store: {cause}")]
    Engine {
        /// What was tried.
        action: &'static str,
        /// What the engine said.
        cause: String,
    },
    /// What was written can't be read; the next opening reads everything and mends what is damaged.
    #[error("can't read the store: {cause}")]
    Unreadable {
        /// What the engine said.
        cause: String,
    },
    /// A row can't be decoded.
    #[error("{what} is damaged: {cause}")]
    Damaged {
        /// Which kind of row.
        what: &'static str,
        /// What is wrong with it.
        cause: String,
    },
    /// A batch breaks the rules of the store; a bug of the caller.
    #[error("batch is invalid: {cause}")]
    InvalidBatch {
        /// Which rule.
        cause: String,
    },
    /// A commit did not return.
    #[error("a commit has not returned for {0:?}: the disk hangs")]
    Hung(Duration),
    /// The store was closed.
    #[error("store is closed")]
    Closed,
}

impl StoreError {
    /// Whether the disk may not be able to read something, or to write it.
    pub(crate) fn is_unreadable(&self) -> bool {
        matches!(self, Self::Io { source, .. } if sectors::is_unreadable(source))
    }

    pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>, source: std::io::Error) -> Self {
        Self::Io {
            action,
            path: path.into(),
            source: Arc::new(source),
        }
    }
}
