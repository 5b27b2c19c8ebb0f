//! Intervals of entry ids.

use std::collections::HashSet;

use foreshore_record::Interval;

use crate::{
    limits::{MAX_ID, MAX_INTERVALS},
    proto,
};

/// Intervals that no edge of ours sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidInterval {
    /// A batch settles nothing.
    #[error("a batch settles no interval")]
    None,
    /// There are too many.
    #[error("a batch settles {found} intervals, {MAX_INTERVALS} are allowed")]
    TooMany {
        /// How many there are.
        found: usize,
    },
    /// An interval ends before it begins, or holds an id that is never given out.
    #[error("interval {first}..={last} is empty or not within 1..={MAX_ID}")]
    Range {
        /// Its first id.
        first: u64,
        /// Its last id.
        last: u64,
    },
    /// Two intervals of one epoch overlap or are out of order.
    #[error("interval {first}..={last} does not come after the one before it")]
    Order {
        /// Its first id.
        first: u64,
        /// Its last id.
        last: u64,
    },
}

impl From<Interval> for proto::Interval {
    fn from(interval: Interval) -> Self {
        Self {
            store_epoch: interval.store_epoch,
            first: interval.first,
            last: interval.last,
        }
    }
}

impl From<&proto::Interval> for Interval {
    fn from(message: &proto::Interval) -> Self {
        Self {
            store_epoch: message.store_epoch,
            first: message.first,
            last: message.last,
        }
    }
}

/// Reads the intervals that a batch settles: at least one, none empty, and those of one epoch rising. Epochs may come
/// in any order, but each only once in a row.
///
/// # Errors
/// [`InvalidInterval`], naming the first that is wrong.
pub fn settled(messages: &[proto::Interval]) -> Result<Vec<Interval>, InvalidInterval> {
    if messages.is_empty() {
        return Err(InvalidInterval::None);
    }
    if messages.len() > MAX_INTERVALS {
        return Err(InvalidInterval::TooMany {
            found: messages.len(),
        });
    }
    let mut intervals: Vec<Interval> = Vec::with_capacity(messages.len());
    let mut epochs = HashSet::new();
    for message in messages {
        let interval = Interval::from(message);
        let Interval {
            store_epoch,
            first,
            last,
        } = interval;
        if first == 0 || last < first || last > MAX_ID {
            return Err(InvalidInterval::Range { first, last });
        }
        let out_of_order = match intervals.last() {
            Some(before) if before.store_epoch == store_epoch => first <= before.last,
            _ => !epochs.insert(store_epoch),
        };
        if out_of_order {
            return Err(InvalidInterval::Order { first, last });
        }
        intervals.push(interval);
    }
    Ok(intervals)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(intervals: &[(u64, u64, u64)]) -> Result<Vec<Interval>, InvalidInterval> {
        let messages: Vec<_> = intervals
            .iter()
            .map(|&(store_epoch, first, last)| proto::Interval {
                store_epoch,
                first,
                last,
            })
            .collect();
        settled(&messages)
    }

    #[test]
    fn intervals_rise_within_their_epoch() {
        assert_eq!(read(&[(9, 1, 1), (9, 2, 5), (3, 1, 4)]).unwrap().len(), 3);
        assert_eq!(read(&[]), Err(InvalidInterval::None));
        assert_eq!(
            read(&[(9, 0, 3)]),
            Err(InvalidInterval::Range { first: 0, last: 3 })
        );
        assert_eq!(
            read(&[(9, 4, 3)]),
            Err(InvalidInterval::Range { first: 4, last: 3 })
        );
        assert_eq!(
            read(&[(9, 1, 5), (9, 5, 6)]),
            Err(InvalidInterval::Order { first: 5, last: 6 })
        );
        assert_eq!(
            read(&[(9, 1, 5), (3, 1, 1), (9, 6, 6)]),
            Err(InvalidInterval::Order { first: 6, last: 6 })
        );
    }
}
