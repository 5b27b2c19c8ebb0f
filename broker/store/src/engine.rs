//! What a back end has to offer: consistent reads, and atomic writes that are durable when they return.
//!
//! Everything a queue or the ledger means is written once, over this; a back end moves bytes.

use std::ops::ControlFlow;

use crate::{
    cipher::Encryption,
    error::StoreError,
    keys::{self, Bytes, Table},
};

/// Looks at one row and says whether to go on.
pub(crate) type Visit<'v> = dyn FnMut(&[u8], &[u8]) -> Result<ControlFlow<()>, StoreError> + 'v;

/// A change of one row: its new value, or none.
#[derive(Clone, Debug)]
pub(crate) struct Change {
    pub(crate) table: Table,
    pub(crate) key: Bytes,
    pub(crate) value: Option<Bytes>,
}

/// A view of all tables between two writes.
pub(crate) trait View {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, StoreError>;

    /// Visits the rows from `from` (included) to `to` (not included) in order of their keys.
    fn scan(
        &self,
        table: Table,
        from: &[u8],
        to: Option<&[u8]>,
        visit: &mut Visit<'_>,
    ) -> Result<(), StoreError>;

    /// Where a scan of a keyspace goes on behind a row. Rows stand in the order of their keys, but where a back end hides
    /// names.
    fn behind(&self, _table: Table, key: &[u8]) -> Bytes {
        keys::successor(key)
    }
}

/// A back end.
pub(crate) trait Engine: Send + Sync + 'static {
    type View<'e>: View
    where
        Self: 'e;

    fn view(&self) -> Self::View<'_>;

    /// Writes all changes or none, and returns when they are durable. A key is among them at most once.
    fn write(&self, changes: Vec<Change>) -> Result<(), StoreError>;

    /// What a read found to be damaged; nothing is written after it, so that the next opening can mend it.
    fn damage(&self) -> Option<StoreError> {
        None
    }

    /// Does a bounded piece of work of its own, and tells whether there is more. Nothing else writes meanwhile, and the
    /// disk has room.
    fn keep_up(&self) -> Result<bool, StoreError> {
        Ok(false)
    }

    /// How it is encrypted, if it is.
    fn encryption(&self) -> Option<Encryption> {
        None
    }

    /// Syncs what there is to sync; nothing is written after it.
    fn close(&self, commits: u64) -> Result<(), StoreError>;
}
