//! The numbers of our own publishers, as far as live delivery needs them.
//!
//! The store decides what is a repeat. But live delivery may overtake the commit, so a repeat has to be recognised
//! before it: what is remembered here is the last number that was passed on live.

use std::{collections::HashMap, sync::Arc};

use foreshore_record::SourceNumber;
use foreshore_store::SourceTotals;
use parking_lot::{Mutex, RwLock};

/// The last number of each source.
#[derive(Debug, Default)]
pub(crate) struct Sources(RwLock<HashMap<String, Arc<Mutex<Last>>>>);

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Last {
    epoch: u64,
    sequence: u64,
}

impl Sources {
    /// What the store knows.
    pub(crate) fn load(&self, totals: impl IntoIterator<Item = SourceTotals>) {
        let mut sources = self.0.write();
        for SourceTotals {
            source,
            epoch,
            sequence,
            ..
        } in totals
        {
            sources.insert(source, Arc::new(Mutex::new(Last { epoch, sequence })));
        }
    }

    /// Whether a number is new, and from now on it is not.
    pub(crate) fn advance(&self, number: &SourceNumber) -> bool {
        let next = Last {
            epoch: number.epoch,
            sequence: number.sequence,
        };
        let known = self.0.read().get(&number.source).cloned();
        let last = match known {
            Some(last) => last,
            None => Arc::clone(self.0.write().entry(number.source.clone()).or_default()),
        };
        let mut last = last.lock();
        let new = next > *last;
        *last = next.max(*last);
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_new_once() {
        let sources = Sources::default();
        let number = |epoch, sequence| SourceNumber {
            source: "s".to_owned(),
            epoch,
            sequence,
        };
        sources.load([SourceTotals {
            source: "s".to_owned(),
            epoch: 2,
            sequence: 5,
            ..SourceTotals::default()
        }]);
        assert!(!sources.advance(&number(2, 5)) && sources.advance(&number(2, 6)));
        assert!(!sources.advance(&number(2, 6)) && !sources.advance(&number(1, 9)));
        assert!(sources.advance(&number(3, 1)));
        assert!(sources.advance(&SourceNumber {
            source: "t".to_owned(),
            epoch: 1,
            sequence: 1
        }));
    }
}
