//! How often entries were handed out, without a write for each.
//!
//! An opening of a path remembers which ids it handed out as a few intervals: one for what is read from the head, one
//! for what is read live. When the next opening comes, what is still in the queue within them gains an attempt. So the
//! attempts of an entry are the number of earlier openings whose intervals hold it, and a path keeps one short list for
//! each of the last openings.

use crate::{
    codec::{RowReader, RowWriter},
    entry::EntryId,
    error::StoreError,
    limits::Limits,
};

/// Most intervals that an opening keeps apart; then the two nearest become one, and what lies between them counts as
/// handed out.
const MAX_INTERVALS: usize = 8;

/// Ids larger than `after`, up to `up_to`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Interval {
    pub(crate) after: EntryId,
    pub(crate) up_to: EntryId,
}

/// What one opening handed out: intervals in order, apart from each other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct HandedOut(Vec<Interval>);

/// What the earlier openings handed out, the latest last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Attempts(Vec<HandedOut>);

impl HandedOut {
    pub(crate) fn add(&mut self, mut interval: Interval) {
        if interval.up_to <= interval.after {
            return;
        }
        self.0.retain(|other| {
            let apart = other.up_to < interval.after || interval.up_to < other.after;
            if !apart {
                interval.after = interval.after.min(other.after);
                interval.up_to = interval.up_to.max(other.up_to);
            }
            apart
        });
        let place = self.0.partition_point(|other| other.after < interval.after);
        self.0.insert(place, interval);
        if self.0.len() > MAX_INTERVALS {
            self.join_nearest();
        }
    }

    fn join_nearest(&mut self) {
        let gaps = self.0.windows(2).map(|pair| pair[1].after - pair[0].up_to);
        let nearest = gaps
            .enumerate()
            .min_by_key(|(_, gap)| *gap)
            .map(|(index, _)| index);
        if let Some(index) = nearest {
            let next = self.0.remove(index + 1);
            self.0[index].up_to = next.up_to;
        }
    }

    fn contains(&self, id: EntryId) -> bool {
        let place = self.0.partition_point(|interval| interval.up_to < id);
        self.0.get(place).is_some_and(|interval| interval.after < id)
    }

    /// Forgets what lies below the head of the queue.
    fn forget_below(&mut self, head: EntryId) {
        self.0.retain(|interval| interval.up_to >= head);
    }

    pub(crate) fn write(&self, row: &mut RowWriter) {
        row.number(self.0.len() as u64);
        for interval in &self.0 {
            row.number(interval.after);
            row.number(interval.up_to);
        }
    }

    pub(crate) fn read(row: &mut RowReader<'_>) -> Result<Self, StoreError> {
        let intervals = (0..row.count()?).map(|_| {
            Ok(Interval {
                after: row.number()?,
                up_to: row.number()?,
            })
        });
        Ok(Self(intervals.collect::<Result<_, StoreError>>()?))
    }
}

impl Attempts {
    /// Counts an attempt for everything that an opening handed out.
    pub(crate) fn push(&mut self, handed_out: HandedOut, head: EntryId) {
        self.0.push(handed_out);
        for earlier in &mut self.0 {
            earlier.forget_below(head);
        }
        self.0.retain(|earlier| !earlier.0.is_empty());
        let surplus = self.0.len().saturating_sub(usize::from(Limits::MAX_ATTEMPTS));
        self.0.drain(..surplus);
    }

    /// How often an entry was handed out before.
    pub(crate) fn of(&self, id: EntryId) -> u32 {
        self.0
            .iter()
            .map(|handed_out| u32::from(handed_out.contains(id)))
            .sum()
    }

    /// Intervals, in order, that hold all entries with at least so many attempts.
    pub(crate) fn at_least(&self, attempts: u32) -> Vec<Interval> {
        let mut bounds: Vec<(EntryId, i32)> = Vec::new();
        for interval in self.0.iter().flat_map(|handed_out| &handed_out.0) {
            bounds.push((interval.after, 1));
            bounds.push((interval.up_to, -1));
        }
        bounds.sort_unstable();
        let (mut depth, mut found, mut since) = (0, Vec::new(), None);
        let wanted = i32::try_from(attempts.max(1)).unwrap_or(i32::MAX);
        for (id, step) in bounds {
            depth += step;
            if depth >= wanted {
                since.get_or_insert(id);
            } else if let Some(after) = since.take().filter(|after| *after < id) {
                found.push(Interval { after, up_to: id });
            }
        }
        found
    }

    pub(crate) fn write(&self, row: &mut RowWriter) {
        row.number(self.0.len() as u64);
        for handed_out in &self.0 {
            handed_out.write(row);
        }
    }

    pub(crate) fn read(row: &mut RowReader<'_>) -> Result<Self, StoreError> {
        Ok(Self(
            (0..row.count()?)
                .map(|_| HandedOut::read(row))
                .collect::<Result<_, _>>()?,
        ))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn handed_out(intervals: &[(EntryId, EntryId)]) -> HandedOut {
        let mut handed_out = HandedOut::default();
        for (after, up_to) in intervals {
            handed_out.add(Interval {
                after: *after,
                up_to: *up_to,
            });
        }
        handed_out
    }

    #[test]
    fn two_lanes_leave_the_middle_untried() {
        let mut attempts = Attempts::default();
        attempts.push(handed_out(&[(0, 5), (100, 102), (5, 9)]), 1);
        assert_eq!(
            [1, 9, 10, 100, 101, 102, 103].map(|id| attempts.of(id)),
            [1, 1, 0, 0, 1, 1, 0]
        );
        attempts.push(handed_out(&[(0, 2), (101, 110)]), 1);
        assert_eq!([1, 3, 101, 102, 103].map(|id| attempts.of(id)), [2, 1, 1, 2, 1]);
        assert_eq!(
            attempts.at_least(2),
            [
                Interval { after: 0, up_to: 2 },
                Interval {
                    after: 101,
                    up_to: 102
                }
            ]
        );
        attempts.push(HandedOut::default(), 104);
        assert_eq!([3, 102].map(|id| attempts.of(id)), [0, 1]);
    }

    #[test]
    fn many_intervals_are_joined_where_they_are_nearest() {
        let mut many = HandedOut::default();
        for index in 0..MAX_INTERVALS as u64 {
            many.add(Interval {
                after: index * 100,
                up_to: index * 100 + 10,
            });
        }
        many.add(Interval {
            after: 715,
            up_to: 720,
        });
        assert_eq!(many.0.len(), MAX_INTERVALS);
        assert!(many.contains(713) && !many.contains(650));
    }

    proptest! {
        #[test]
        fn intervals_mean_what_a_set_of_ids_means(
            openings in prop::collection::vec(prop::collection::vec((0_u64..40, 0_u64..12), 0..6), 1..5),
            wanted in 1_u32..4,
        ) {
            let mut attempts = Attempts::default();
            let mut counts = [0_u32; 60];
            for opening in &openings {
                let mut handed_out = HandedOut::default();
                let mut ids = std::collections::BTreeSet::new();
                for (after, length) in opening {
                    handed_out.add(Interval { after: *after, up_to: after + length });
                    ids.extend(after + 1..=after + length);
                }
                ids.iter().for_each(|id| counts[*id as usize] += 1);
                attempts.push(handed_out, 0);
            }
            let intervals = attempts.at_least(wanted);
            for (id, count) in counts.iter().enumerate() {
                let id = id as u64;
                prop_assert_eq!(attempts.of(id), *count);
                let inside = intervals.iter().any(|interval| interval.after < id && id <= interval.up_to);
                prop_assert_eq!(inside, *count >= wanted);
            }
            let mut row = RowWriter::new(1, 0);
            attempts.write(&mut row);
            let row = row.finish();
            let read = Attempts::read(&mut RowReader::open("row", 1, &row).unwrap()).unwrap();
            prop_assert_eq!(read, attempts);
        }
    }
}
