//! The back end without a disk: for tests, and for brokers that may forget everything.

use std::{
    collections::BTreeMap,
    ops::{Bound, ControlFlow},
};

use parking_lot::{RwLock, RwLockReadGuard};

use crate::{
    engine::{Change, Engine, View, Visit},
    error::StoreError,
    keys::{Bytes, Table},
};

type Tables = [BTreeMap<Bytes, Bytes>; Table::ALL.len()];

/// Tables in memory.
#[derive(Default)]
pub(crate) struct MemoryEngine {
    tables: RwLock<Tables>,
}

/// Holds writers off while it is looked at.
pub(crate) struct MemoryView<'e>(RwLockReadGuard<'e, Tables>);

impl View for MemoryView<'_> {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        Ok(self.0[table as usize].get(key).cloned())
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
        for (key, value) in self.0[table as usize].range::<[u8], _>(bounds) {
            if let ControlFlow::Break(()) = visit(key, value)? {
                break;
            }
        }
        Ok(())
    }
}

impl Engine for MemoryEngine {
    type View<'e> = MemoryView<'e>;

    fn view(&self) -> MemoryView<'_> {
        MemoryView(self.tables.read())
    }

    fn write(&self, changes: Vec<Change>) -> Result<(), StoreError> {
        let mut tables = self.tables.write();
        for Change { table, key, value } in changes {
            match value {
                Some(value) => {
                    let former = tables[table as usize].insert(key, value);
                    debug_assert!(
                        former.is_none() || !table.written_once(),
                        "{table:?} was written again"
                    );
                }
                None => drop(tables[table as usize].remove(&key)),
            }
        }
        Ok(())
    }

    fn close(&self, _commits: u64) -> Result<(), StoreError> {
        Ok(())
    }
}
