//! Keeping a batch: its values, which entries are done by it, and what it counts for, all in one transaction.

use std::collections::HashMap;

use foreshore_record::Interval;
use jiff::Timestamp;

use super::{
    Context, StoreError, history,
    intervals::{Done, without},
    ledger::{self, Counted, Fenced},
    registry,
};
use crate::{
    samples::{Sample, Samples},
    times::nanoseconds,
};

/// A batch, read and judged as far as that needs no database.
#[derive(Debug)]
pub(crate) struct Delivery {
    /// The edge.
    pub(crate) edge: i64,
    /// Which of the edge's processes delivers.
    pub(crate) boot: i64,
    pub(crate) path: String,
    pub(crate) path_epoch: u64,
    /// What is done once this is kept.
    pub(crate) settles: Vec<Interval>,
    /// Entries with outputs, in order, all within `settles`.
    pub(crate) entries: Vec<DeliveredEntry>,
    pub(crate) values: Samples,
    pub(crate) received_at: Timestamp,
}

/// All outputs of one entry.
#[derive(Debug)]
pub(crate) struct DeliveredEntry {
    pub(crate) store_epoch: u64,
    pub(crate) id: u64,
    /// For each output, the place after its last value in [`Delivery::values`].
    pub(crate) outputs: Vec<usize>,
    /// Why the entry can't be kept, if it can't.
    pub(crate) refused: Option<String>,
}

/// What became of a batch.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Kept {
    /// Intervals of done entries that hold all that the batch settled, but what was refused.
    pub(crate) done: Vec<Interval>,
    /// Entries that will never be kept, with the reason. They are not done: judged again if they are sent again.
    pub(crate) refused: Vec<RefusedEntry>,
    /// Outputs that were kept by this batch.
    pub(crate) committed: u64,
    /// Outputs that were kept by an earlier one.
    pub(crate) repeated: u64,
    /// When each value that was kept by this batch was so at its source, in nanoseconds since 1970.
    pub(crate) observed_at: Vec<i64>,
}

/// An entry that will never be kept.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct RefusedEntry {
    pub(crate) store_epoch: u64,
    pub(crate) id: u64,
    pub(crate) outputs: u32,
    pub(crate) reason: String,
}

impl Delivery {
    /// About how many rows it writes.
    pub(crate) fn weight(&self) -> u32 {
        let rows = self.values.samples.len() + self.values.series.len() + self.settles.len() + 2;
        u32::try_from(rows).unwrap_or(u32::MAX)
    }

    /// Keeps the batch.
    ///
    /// All outputs of an entry come in one batch, so that an entry's id stands for all of its outputs.
    pub(crate) fn keep(self, context: &mut Context<'_>) -> Result<Result<Kept, Fenced>, StoreError> {
        let path = match ledger::claim(context, self.edge, &self.path, self.path_epoch, self.boot)? {
            Ok(path) => path,
            Err(fenced) => return Ok(Err(fenced)),
        };
        let received_at = nanoseconds(self.received_at);
        let series = registry::series_ids(context, self.edge, &self.values.series, received_at)?;
        let mut writing = Writing {
            series,
            values: &self.values.samples,
            next_receipt: history::next_receipt(context)?,
            newest: HashMap::new(),
            received_at,
            kept: Kept::default(),
        };
        let mut entries = &self.entries[..];
        let mut begin = 0;
        for interval in &self.settles {
            let within = entries
                .iter()
                .take_while(|entry| interval.contains(entry.store_epoch, entry.id))
                .count();
            let (those, rest) = entries.split_at(within);
            entries = rest;
            writing.settle(context, path, *interval, those, &mut begin)?;
        }
        writing.finish(context, path)
    }
}

/// A batch while it is written.
struct Writing<'a> {
    /// Row of each series, or why it can have none.
    series: Vec<Result<i64, String>>,
    values: &'a [Sample],
    next_receipt: i64,
    /// The newest value of each series in this batch, with its receipt.
    newest: HashMap<i64, (i64, &'a Sample)>,
    received_at: i64,
    kept: Kept,
}

impl<'a> Writing<'a> {
    /// Writes the entries of one settled interval that are not done yet, and marks the interval as done.
    fn settle(
        &mut self,
        context: &mut Context<'_>,
        path: i64,
        interval: Interval,
        entries: &[DeliveredEntry],
        begin: &mut usize,
    ) -> Result<(), StoreError> {
        let done = Done::around(context.connection, path, interval)?;
        let mut refused = Vec::new();
        for entry in entries {
            let (from, outputs) = (*begin, entry.outputs.len());
            *begin = entry.outputs.last().copied().unwrap_or(from);
            if done.contains(entry.store_epoch, entry.id) {
                self.kept.repeated += outputs as u64;
            } else if let Some(reason) = self.refusal(entry, &self.values[from..*begin]) {
                refused.push(entry.id);
                let outputs = u32::try_from(outputs).unwrap_or(u32::MAX);
                let DeliveredEntry { store_epoch, id, .. } = *entry;
                self.kept.refused.push(RefusedEntry {
                    store_epoch,
                    id,
                    outputs,
                    reason,
                });
            } else {
                self.write(context, entry, from)?;
                self.kept.committed += outputs as u64;
            }
        }
        let parts = without(interval, &refused);
        if parts[..] == [interval] {
            self.kept.done.push(done.add(context.connection, path, interval)?);
            return Ok(());
        }
        for part in parts {
            self.kept
                .done
                .push(Done::around(context.connection, path, part)?.add(context.connection, path, part)?);
        }
        Ok(())
    }

    fn refusal(&self, entry: &DeliveredEntry, values: &[Sample]) -> Option<String> {
        let of_series = || {
            values
                .iter()
                .find_map(|value| self.series[value.series].as_ref().err().cloned())
        };
        entry.refused.clone().or_else(of_series)
    }

    fn write(
        &mut self,
        context: &mut Context<'_>,
        entry: &DeliveredEntry,
        mut begin: usize,
    ) -> Result<(), StoreError> {
        for &end in &entry.outputs {
            let receipt = self.next_receipt;
            self.next_receipt += 1;
            for sample in &self.values[begin..end] {
                let Ok(series) = self.series[sample.series] else {
                    continue;
                };
                history::insert(context.connection, series, receipt, sample)?;
                self.kept.observed_at.push(sample.time);
                let newest = self.newest.entry(series).or_insert((receipt, sample));
                if sample.time >= newest.1.time {
                    *newest = (receipt, sample);
                }
            }
            begin = end;
        }
        Ok(())
    }

    fn finish(self, context: &mut Context<'_>, path: i64) -> Result<Result<Kept, Fenced>, StoreError> {
        for (series, (receipt, sample)) in &self.newest {
            history::set_last(context.connection, *series, *receipt, sample, self.received_at)?;
        }
        registry::saw_assets_of(context.connection, self.newest.keys(), self.received_at)?;
        history::set_next_receipt(context, self.next_receipt)?;
        let refused = self
            .kept
            .refused
            .iter()
            .map(|entry| u64::from(entry.outputs))
            .sum();
        let Kept {
            committed, repeated, ..
        } = self.kept;
        let counted = Counted {
            committed,
            repeated,
            refused,
        };
        ledger::count(context.connection, path, counted, self.received_at)?;
        Ok(Ok(self.kept))
    }
}
