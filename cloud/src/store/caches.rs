//! Row ids that the writer would otherwise look up for every value.

use std::collections::HashMap;

use super::ledger::PathRow;
use crate::samples::SeriesKey;

/// Most entries of a cache; a cache that is full begins anew.
const MAX_ENTRIES: usize = 100_000;

/// What the writer knows of rows that are committed, or are written by the transaction that runs. Cleared whenever
/// anything is rolled back.
#[derive(Default)]
pub(crate) struct Caches {
    pub(super) series: Cache<(i64, SeriesKey), i64>,
    pub(super) paths: Cache<(i64, String), PathRow>,
    /// Assets and series of each edge.
    pub(super) totals: Cache<i64, Totals>,
    /// The number that the next output gets; unknown until it was read.
    pub(super) next_receipt: Option<i64>,
}

impl Caches {
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}

/// How many rows an edge has.
#[derive(Clone, Copy, Default)]
pub(super) struct Totals {
    pub(super) assets: i64,
    pub(super) series: i64,
}

/// A map that does not grow beyond [`MAX_ENTRIES`].
pub(super) struct Cache<K, V>(HashMap<K, V>);

impl<K, V> Default for Cache<K, V> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<K: std::hash::Hash + Eq, V> Cache<K, V> {
    pub(super) fn get<Q: std::hash::Hash + Eq + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: std::borrow::Borrow<Q>,
    {
        self.0.get(key)
    }

    pub(super) fn insert(&mut self, key: K, value: V) {
        if self.0.len() >= MAX_ENTRIES {
            self.0.clear();
        }
        self.0.insert(key, value);
    }
}
