//! Reading fjall's files one by one, without fjall.
//!
//! fjall opens a keyspace as a whole or not at all: a bit that flipped in a list of tables, or in the footer of one,
//! costs everything. Each block of a table has a checksum though, and each row its sequence number, so what is whole can
//! be read and put together again (see `merge`).
//!
//! ```text
//! keyspaces/N/current      number of the list of tables that is in use u64, its XXH3-128 u128, 0 u8
//! keyspaces/N/vN           an archive with the list of tables
//! keyspaces/N/tables/N     an archive with blocks of rows ("data"), index blocks ("tli", "index"), filters, "meta"
//! ```

pub(super) mod archive;
pub(super) mod manifest;
pub(super) mod table;

use std::{
    fmt, io,
    path::{Path, PathBuf},
};

use super::sectors;

/// Most places that are told one by one; further ones are counted.
const MAX_PLACES: usize = 1000;

/// Why something is not read.
#[derive(Debug)]
pub(super) enum Unreadable {
    /// It is not what was written.
    Damaged(String),
    /// The system refuses; trying again may help.
    Refused(io::Error),
}

impl From<io::Error> for Unreadable {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::NotFound || sectors::is_unreadable(&error) {
            Self::Damaged(error.to_string())
        } else {
            Self::Refused(error)
        }
    }
}

impl From<lsm_tree::Error> for Unreadable {
    fn from(error: lsm_tree::Error) -> Self {
        match error {
            lsm_tree::Error::Io(error) => error.into(),
            error => Self::Damaged(error.to_string()),
        }
    }
}

/// A place that can't be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) file: PathBuf,
    pub(crate) found: String,
}

/// All places that can't be read.
#[derive(Debug, Default)]
pub(crate) struct Damage {
    /// The first ones.
    pub(crate) places: Vec<Place>,
    pub(crate) count: u64,
}

impl Damage {
    pub(super) fn add(&mut self, file: &Path, found: impl fmt::Display) {
        self.count += 1;
        if self.places.len() < MAX_PLACES {
            self.places.push(Place {
                file: file.to_owned(),
                found: found.to_string(),
            });
        }
    }

    /// Takes what something gave, or notes why it can't be read.
    pub(super) fn note<T>(&mut self, file: &Path, read: Result<T, Unreadable>) -> io::Result<Option<T>> {
        match read {
            Ok(found) => Ok(Some(found)),
            Err(Unreadable::Damaged(cause)) => {
                self.add(file, cause);
                Ok(None)
            }
            Err(Unreadable::Refused(error)) => Err(error),
        }
    }
}
