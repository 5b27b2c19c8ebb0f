//! Parcels: entries that went through the stages and are delivered and settled together.

use std::{ops::Range, sync::Arc, time::Duration};

use foreshore_control::queue::{Entry, EntryId, Settlement};
use foreshore_record::{Interval, Outcome, Record};
use tokio::time::Instant;

use crate::{
    sink::{Delivery, Output},
    stage::Processed,
};

/// Entries that went through the stages, in order of id, with what the stages made of them.
#[derive(Debug, Default)]
pub(crate) struct Parcel {
    entries: Vec<Handled>,
    outputs: Vec<Output>,
    bytes: usize,
}

/// An entry that went through the stages.
#[derive(Debug)]
struct Handled {
    id: EntryId,
    store_epoch: u64,
    attempt: u32,
    /// How many outputs it has.
    outputs: usize,
    /// How it leaves when it has none.
    outcome: Option<Outcome>,
}

/// A part of a parcel: whole entries, with their outputs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    entries: Range<usize>,
    outputs: Range<usize>,
}

impl Part {
    pub(crate) fn has_outputs(&self) -> bool {
        !self.outputs.is_empty()
    }
}

impl Parcel {
    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Id of the first entry.
    pub(crate) fn first_id(&self) -> EntryId {
        self.entries.first().map_or(0, |entry| entry.id)
    }

    /// How many outputs it has.
    pub(crate) fn output_count(&self) -> usize {
        self.outputs.len()
    }

    /// Bytes of its outputs, about as much as it takes in memory.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    fn push(&mut self, entry: &Entry, processed: Processed) {
        let (outputs, outcome) = match processed {
            Processed::Outputs(records) => (records, None),
            Processed::Dropped(reason) => (Vec::new(), Some(Outcome::Dropped { reason })),
            Processed::Failed { stage, reason } => {
                (Vec::new(), Some(Outcome::DeadLettered { stage, reason }))
            }
        };
        let Entry {
            id,
            store_epoch,
            attempt,
            ..
        } = *entry;
        self.entries.push(Handled {
            id,
            store_epoch,
            attempt,
            outputs: outputs.len(),
            outcome,
        });
        for (index, record) in (0..).zip(outputs) {
            self.bytes += weight(&record);
            self.outputs.push(Output {
                store_epoch,
                id,
                index,
                attempt,
                record,
            });
        }
    }

    /// All of it.
    pub(crate) fn whole(&self) -> Part {
        Part {
            entries: 0..self.entries.len(),
            outputs: 0..self.outputs.len(),
        }
    }

    pub(crate) fn outputs(&self, part: &Part) -> &[Output] {
        self.outputs.get(part.outputs.clone()).unwrap_or_default()
    }

    fn handled(&self, part: &Part) -> &[Handled] {
        self.entries.get(part.entries.clone()).unwrap_or_default()
    }

    /// The intervals of ids that a part consists of. Entries of a parcel follow each other in their queue.
    pub(crate) fn intervals(&self, part: &Part) -> Vec<Interval> {
        let runs = self.handled(part).chunk_by(|a, b| a.store_epoch == b.store_epoch);
        let interval = |run: &[Handled]| {
            let (first, last) = (run.first()?, run.last()?);
            Some(Interval {
                store_epoch: first.store_epoch,
                first: first.id,
                last: last.id,
            })
        };
        runs.filter_map(interval).collect()
    }

    /// Two halves with about the same number of outputs; `None` when a single entry has them all.
    pub(crate) fn halves(&self, part: &Part) -> Option<(Part, Part)> {
        let wanted = part.outputs.len().div_ceil(2);
        let mut first = Part {
            entries: part.entries.start..part.entries.start,
            outputs: part.outputs.start..part.outputs.start,
        };
        for entry in self.handled(part) {
            if first.outputs.len() >= wanted {
                break;
            }
            // The half that would be the whole is no half: the entry goes to the second one.
            if first.has_outputs() && first.outputs.end + entry.outputs == part.outputs.end {
                break;
            }
            first.entries.end += 1;
            first.outputs.end += entry.outputs;
        }
        let second = Part {
            entries: first.entries.end..part.entries.end,
            outputs: first.outputs.end..part.outputs.end,
        };
        (first.has_outputs() && second.has_outputs()).then_some((first, second))
    }

    /// How often the entries of a part were tried before, at most.
    pub(crate) fn attempts(&self, part: &Part) -> u32 {
        self.handled(part)
            .iter()
            .map(|entry| entry.attempt)
            .max()
            .unwrap_or(0)
    }

    /// How the entries of a part leave, given what became of their outputs.
    pub(crate) fn settlements<'p>(
        &'p self,
        part: &Part,
        mut of_output: impl FnMut(&Output) -> Delivery + 'p,
    ) -> impl Iterator<Item = Settlement> + 'p {
        let mut next = part.outputs.start;
        self.handled(part).iter().map(move |entry| {
            let outputs = self.outputs.get(next..next + entry.outputs).unwrap_or_default();
            next += entry.outputs;
            if let Some(outcome) = &entry.outcome {
                return Settlement {
                    id: entry.id,
                    emitted: 0,
                    outcome: outcome.clone(),
                };
            }
            let (mut refused, mut dropped) = (None, None);
            let mut emitted = 0;
            for output in outputs {
                match of_output(output) {
                    Delivery::Delivered => emitted += 1,
                    Delivery::DeadLetter { reason } => refused = refused.or(Some(reason)),
                    Delivery::Dropped { reason } => dropped = dropped.or(Some(reason)),
                }
            }
            let outcome = match (refused, dropped) {
                (Some(reason), _) => Outcome::DeadLettered {
                    stage: SINK_STAGE.to_owned(),
                    reason,
                },
                (None, Some(reason)) if emitted == 0 => Outcome::Dropped { reason },
                (None, _) => Outcome::Delivered,
            };
            Settlement {
                id: entry.id,
                emitted,
                outcome,
            }
        })
    }

    /// Keeps what lies in the given parts, which are in order and do not overlap.
    pub(crate) fn retain(&mut self, parts: &[Part]) {
        let kept = |index: usize, range: fn(&Part) -> &Range<usize>| {
            parts.iter().any(|part| range(part).contains(&index))
        };
        let mut index = 0;
        self.entries.retain(|_| {
            index += 1;
            kept(index - 1, |part| &part.entries)
        });
        let mut index = 0;
        self.outputs.retain(|_| {
            index += 1;
            kept(index - 1, |part| &part.outputs)
        });
        self.bytes = self.outputs.iter().map(|output| weight(&output.record)).sum();
    }
}

/// Name of the stage in dead letters that the sink refused.
pub(crate) const SINK_STAGE: &str = "sink";

/// Bytes of a record: payload, topic and properties.
pub(crate) fn weight(record: &Record) -> usize {
    let user = record
        .properties
        .user
        .iter()
        .map(|(name, value)| name.len() + value.len())
        .sum::<usize>();
    record.payload.len() + record.topic.as_str().len() + user + RECORD_OVERHEAD
}

const RECORD_OVERHEAD: usize = 64;

/// What makes up a parcel: whichever is reached first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Outputs.
    pub(crate) outputs: usize,
    /// Bytes of outputs.
    pub(crate) bytes: usize,
    /// Wait for company.
    pub(crate) delay: Duration,
}

impl Limits {
    /// Entries without outputs that are settled together, at most.
    fn entries(self) -> usize {
        self.outputs.saturating_mul(10).clamp(100, 10_000)
    }
}

/// Puts entries together to parcels.
#[derive(Debug)]
pub(crate) struct Assembly {
    limits: Limits,
    parcel: Parcel,
    since: Option<Instant>,
}

impl Assembly {
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            limits,
            parcel: Parcel::default(),
            since: None,
        }
    }

    /// Adds an entry with what the stages made of it. Returns the parcel that it did not fit into any more.
    pub(crate) fn add(&mut self, entry: &Entry, processed: Processed) -> Option<Parcel> {
        let incoming: &[Arc<Record>] = if let Processed::Outputs(records) = &processed {
            records
        } else {
            &[]
        };
        let (outputs, bytes) = (
            incoming.len(),
            incoming.iter().map(|record| weight(record)).sum::<usize>(),
        );
        // An entry's outputs stay together; what would burst the parcel begins the next one.
        let bursts = self.parcel.output_count() > 0
            && (self.parcel.output_count() + outputs > self.limits.outputs
                || self.parcel.bytes() + bytes > self.limits.bytes);
        let complete = if bursts && outputs > 0 { self.take() } else { None };
        self.parcel.push(entry, processed);
        self.since.get_or_insert_with(Instant::now);
        complete
    }

    /// Whether it should be taken now.
    pub(crate) fn is_full(&self) -> bool {
        self.parcel.output_count() >= self.limits.outputs
            || self.parcel.bytes() >= self.limits.bytes
            || self.parcel.entries.len() >= self.limits.entries()
    }

    /// When it should be taken at the latest; `None` when it is empty.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.since.map(|since| since + self.limits.delay)
    }

    /// What is there; `None` when it is empty.
    pub(crate) fn take(&mut self) -> Option<Parcel> {
        self.since = None;
        Some(std::mem::take(&mut self.parcel)).filter(|parcel| !parcel.is_empty())
    }
}
