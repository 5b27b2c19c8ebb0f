//! Taking a message in: its number, its receivers' limits, its rows.

use foreshore_record::{DropReason, SourceNumber};

use super::refused;
use crate::{
    batch::{Applied, Publish, Refusal},
    entry::{EntryFlags, EntryId, Inflight, ReceiverId},
    error::StoreError,
    keys::{self, Bytes, Table},
    ledger::SourceTotals,
    limits::OverflowPolicy,
    record::{self, EntryFields},
    rows,
    transaction::Transaction,
};

/// Who takes a message.
struct Admission<'p> {
    admitted: Vec<Admitted<'p>>,
    /// Receivers whose queue does not take it; counted as dropped.
    passed_over: Vec<(ReceiverId, DropReason)>,
}

/// A queue that takes a message: whose, how it wants it, and the key of the limit by topic filter that it counts for.
type Admitted<'p> = (ReceiverId, &'p EntryFlags, Option<u64>);

impl Transaction<'_> {
    pub(super) fn publish(&mut self, id: EntryId, publish: &Publish) -> Result<Applied, StoreError> {
        let Publish {
            message,
            receivers,
            update_retained,
            receipt,
        } = publish;
        let record = &message.record;
        if let Some(number) = &record.number
            && let Some(refusal) = self.count_number(number)?
        {
            return refused(refusal);
        }
        if let Some(slot) = receipt
            && self.get(Table::Inflight, &keys::slot(*slot))?.is_some()
        {
            return refused(Refusal::Repeated);
        }
        let size = u32::try_from(record::weight(record)).unwrap_or(u32::MAX);
        let limit = self.topics.of_topic(record.topic.as_str());
        if let Some(refusal) = self.refusal(publish, size, limit)? {
            if let Some(number) = &record.number {
                self.record_number(number, false)?;
            }
            return refused(refusal);
        }
        if let Some(number) = &record.number {
            self.record_number(number, true)?;
        }
        if let Some(slot) = receipt {
            self.put(
                Table::Inflight,
                keys::slot(*slot),
                rows::encode_inflight(Inflight::Received),
            );
        }
        if *update_retained {
            self.update_retained(id, publish);
        }
        let Admission {
            admitted,
            passed_over,
        } = self.admit(id, size, receivers, limit)?;
        self.write_entries(id, size, publish, &admitted);
        Ok(Applied::Published { id, passed_over })
    }

    /// Whether a number is a repeat or of an older life; counts it if so.
    pub(super) fn count_number(&mut self, number: &SourceNumber) -> Result<Option<Refusal>, StoreError> {
        let Some(totals) = self.source(&number.source)? else {
            return Ok(None);
        };
        if number.epoch < totals.epoch {
            totals.fenced += 1;
            return Ok(Some(Refusal::Fenced { epoch: totals.epoch }));
        }
        if number.epoch == totals.epoch && number.sequence <= totals.sequence {
            totals.repeated += 1;
            return Ok(Some(Refusal::Repeated));
        }
        Ok(None)
    }

    /// Makes a number the last one of its source; final, whether its record was taken in or refused.
    pub(super) fn record_number(&mut self, number: &SourceNumber, accepted: bool) -> Result<(), StoreError> {
        let SourceNumber {
            source,
            epoch,
            sequence,
        } = number;
        let known = self.source(source)?;
        // A source that is new to this store may be anywhere in its count.
        let next = known.as_ref().map(|totals| {
            if totals.epoch == *epoch {
                totals.sequence + 1
            } else {
                1
            }
        });
        let totals = known.get_or_insert_with(|| SourceTotals {
            source: source.clone(),
            ..SourceTotals::default()
        });
        totals.gaps += u64::from(next.is_some_and(|next| *sequence > next));
        totals.epoch = *epoch;
        totals.sequence = *sequence;
        if accepted {
            totals.accepted += 1;
        } else {
            totals.refused += 1;
        }
        Ok(())
    }

    /// Whether the message can't be taken in at all.
    fn refusal(
        &mut self,
        publish: &Publish,
        size: u32,
        limit: Option<usize>,
    ) -> Result<Option<Refusal>, StoreError> {
        let retains = publish.update_retained && !publish.message.record.payload.is_empty();
        let stores = retains || !publish.receivers.is_empty();
        if self.low_space && stores {
            return Ok(Some(Refusal::NoSpace));
        }
        for (receiver, _) in &publish.receivers {
            let Some(place) = self.find_path(*receiver)? else {
                continue;
            };
            self.drop_aged(place, super::path::SWEEP_WITH_PUBLISH)?;
            let row = &self.path(place).row;
            let full = row
                .limits
                .max_bytes
                .is_some_and(|max| row.waiting_bytes + u64::from(size) > max);
            if full && row.limits.overflow == OverflowPolicy::Reject
                || self.refused_by_topic(place, limit, size)?
            {
                return Ok(Some(Refusal::QueueFull { receiver: *receiver }));
            }
        }
        Ok(None)
    }

    fn update_retained(&mut self, id: EntryId, publish: &Publish) {
        let record = &publish.message.record;
        let key = Bytes::from(record.topic.as_str());
        if record.payload.is_empty() {
            self.remove(Table::Retained, key);
        } else {
            let row = record::encode_retained(id, self.now(), publish.message.expires_at, record);
            self.put(Table::Retained, key, row);
        }
    }

    /// Counts the message for each receiver and makes room for it.
    fn admit<'p>(
        &mut self,
        id: EntryId,
        size: u32,
        receivers: &'p [(ReceiverId, EntryFlags)],
        limit: Option<usize>,
    ) -> Result<Admission<'p>, StoreError> {
        let now = self.now();
        let (mut admitted, mut passed_over) = (Vec::with_capacity(receivers.len()), Vec::new());
        for (receiver, flags) in receivers {
            let Some(place) = self.find_path(*receiver)? else {
                continue;
            };
            if self.path(place).added == id {
                continue;
            }
            let key = self.topic_key(place, limit);
            let mut reason = None;
            if let Some(key) = key {
                reason = self.make_room_by_topic(place, key, size)?;
            }
            if reason.is_none() {
                reason = self.make_room(place, size)?;
                self.overflowed += u64::from(reason.is_some());
            }
            let path = self.path(place);
            path.added = id;
            if path.row.counts.waiting() == 0 {
                path.row.head = id;
                path.row.oldest = now;
            }
            path.row.counts.received += 1;
            if let Some(reason) = reason {
                path.row.counts.drop_entries(&reason, 1);
                passed_over.push((*receiver, reason));
            } else {
                path.row.waiting_bytes += u64::from(size);
                admitted.push((*receiver, flags, key));
                if let Some(key) = key {
                    self.add_to_share(place, key, id, size);
                }
            }
        }
        Ok(Admission {
            admitted,
            passed_over,
        })
    }

    /// Makes room in a queue by its policy; tells why the message is not queued if it is not.
    fn make_room(&mut self, place: usize, size: u32) -> Result<Option<DropReason>, StoreError> {
        let size = u64::from(size);
        let Some(max) = self.path(place).row.limits.max_bytes else {
            return Ok(None);
        };
        if size > max {
            return Ok(Some(DropReason::TOO_LARGE));
        }
        if self.path(place).row.waiting_bytes + size <= max {
            return Ok(None);
        }
        if self.path(place).row.limits.overflow != OverflowPolicy::DropOldest {
            return Ok(Some(DropReason::OVERFLOW_NEW));
        }
        while self.path(place).row.waiting_bytes + size > max {
            if !self.drop_first(place, &DropReason::OVERFLOW_OLDEST)? {
                break;
            }
            self.overflowed += 1;
        }
        Ok(None)
    }

    fn write_entries(&mut self, id: EntryId, size: u32, publish: &Publish, admitted: &[Admitted<'_>]) {
        let (record, expires_at) = (&publish.message.record, publish.message.expires_at);
        let ingested_at = self.now();
        let fields = |flags, topic| EntryFields {
            flags,
            size,
            ingested_at,
            expires_at,
            topic,
        };
        match admitted {
            [] => {}
            [(receiver, flags, topic)] => {
                let row = fields(flags, *topic).with_record(record);
                self.put(Table::Queue, keys::entry(*receiver, id), row);
            }
            several => {
                let references = u32::try_from(several.len()).unwrap_or(u32::MAX);
                self.put(Table::Body, keys::number(id), record::encode_body(record));
                for (receiver, flags, topic) in several {
                    let row = fields(flags, *topic).with_reference(references);
                    self.put(Table::Queue, keys::entry(*receiver, id), row);
                }
            }
        }
    }
}
