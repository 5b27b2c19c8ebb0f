//! Messages that another broker waits for the acknowledgement of.

use std::{
    collections::BTreeMap,
    ops::Bound::{Excluded, Unbounded},
    sync::Arc,
    time::Duration,
};

use foreshore_control::queue::{Entry, EntryId, PathTotals, ReadBatch, ReadRange, Settlement};
use foreshore_mqtt::Delivery;
use foreshore_record::{Outcome, PathLedger, TopicFilter};
use jiff::Timestamp;
use parking_lot::Mutex;
use tracing::{debug, warn};

/// Id of the first message.
pub(super) const FIRST: EntryId = 1;

/// Messages that were received and not acknowledged, in order. Bounded by the receive maximum.
pub(super) struct Held {
    epoch: u64,
    filters: Vec<TopicFilter>,
    entries: BTreeMap<EntryId, Waiting>,
    next: EntryId,
    totals: Arc<Mutex<Totals>>,
}

struct Waiting {
    entry: Entry,
    delivery: Delivery,
    /// Acknowledged when those before it are: acknowledgements go in the order of arrival (MQTT 5.0, section 4.6).
    settled: bool,
}

impl Held {
    pub(super) fn new(epoch: u64, filters: Vec<TopicFilter>, totals: Arc<Mutex<Totals>>) -> Self {
        totals.lock().forget_waiting();
        Self {
            epoch,
            filters,
            entries: BTreeMap::new(),
            next: FIRST,
            totals,
        }
    }

    /// Adds a message.
    pub(super) fn take_in(&mut self, delivery: Delivery, now: Timestamp) {
        let mut record = delivery.record.clone();
        record.ingested_at = Some(now);
        let topic = record.topic.as_str();
        // The session may have subscriptions from before, which the broker goes on serving.
        let settled = !self.filters.iter().any(|filter| filter.matches(topic));
        if settled {
            debug!(topic, "message for a topic that is not taken any more");
        } else {
            self.totals.lock().received(record.payload.len(), now);
        }
        let id = self.next;
        self.next += 1;
        let entry = Entry {
            id,
            store_epoch: self.epoch,
            attempt: 0,
            record: Arc::new(record),
        };
        let waiting = Waiting {
            entry,
            delivery,
            settled,
        };
        self.entries.insert(id, waiting);
        self.acknowledge();
    }

    /// What is to be delivered.
    pub(super) fn read(&self, range: &ReadRange) -> ReadBatch {
        let mut batch = ReadBatch {
            entries: Vec::new(),
            tail: self.next,
        };
        let (most, mut bytes) = (usize::try_from(range.max_entries).unwrap_or(usize::MAX), 0);
        for (id, waiting) in self.entries.range((Excluded(range.after), Unbounded)) {
            bytes += waiting.entry.record.payload.len();
            let fits =
                batch.entries.is_empty() || bytes <= usize::try_from(range.max_bytes).unwrap_or(usize::MAX);
            if batch.entries.len() == most || !fits || range.before.is_some_and(|before| *id >= before) {
                break;
            }
            if !waiting.settled {
                batch.entries.push(waiting.entry.clone());
            }
        }
        batch
    }

    /// Notes how messages left, and acknowledges what can be.
    pub(super) fn settle(&mut self, settlements: Vec<Settlement>) {
        for settlement in settlements {
            let Some(waiting) = self
                .entries
                .get_mut(&settlement.id)
                .filter(|waiting| !waiting.settled)
            else {
                continue;
            };
            waiting.settled = true;
            let record = &waiting.entry.record;
            self.totals
                .lock()
                .left(&settlement, record.topic.as_str(), record.payload.len());
        }
        self.acknowledge();
    }

    fn acknowledge(&mut self) {
        while let Some(first) = self.entries.first_entry().filter(|first| first.get().settled) {
            first.remove().delivery.acknowledge();
        }
        let oldest = self.entries.values().find(|waiting| !waiting.settled);
        self.totals.lock().oldest = oldest.and_then(|waiting| waiting.entry.record.ingested_at);
    }
}

/// What became of messages since the start of the runner.
pub(super) struct Totals {
    ledger: PathLedger,
    waiting_bytes: u64,
    oldest: Option<Timestamp>,
}

impl Totals {
    pub(super) fn new(path: &str) -> Self {
        Self {
            ledger: PathLedger {
                path: path.to_owned(),
                emitted: Some(0),
                ..PathLedger::default()
            },
            waiting_bytes: 0,
            oldest: None,
        }
    }

    /// What was taken and not settled comes again.
    fn forget_waiting(&mut self) {
        self.ledger.received -= self.ledger.waiting;
        self.ledger.waiting = 0;
        self.waiting_bytes = 0;
        self.oldest = None;
    }

    fn received(&mut self, bytes: usize, now: Timestamp) {
        self.ledger.received += 1;
        self.ledger.waiting += 1;
        self.waiting_bytes += bytes as u64;
        self.oldest.get_or_insert(now);
    }

    fn left(&mut self, settlement: &Settlement, topic: &str, bytes: usize) {
        let ledger = &mut self.ledger;
        ledger.waiting = ledger.waiting.saturating_sub(1);
        self.waiting_bytes = self.waiting_bytes.saturating_sub(bytes as u64);
        *ledger.emitted.get_or_insert_default() += u64::from(settlement.emitted);
        match &settlement.outcome {
            Outcome::Delivered => ledger.delivered += 1,
            Outcome::Dropped { reason } => *ledger.dropped.entry(reason.to_string()).or_default() += 1,
            Outcome::DeadLettered { stage, reason } => {
                ledger.dead_lettered += 1;
                if ledger.dead_lettered.is_power_of_two() {
                    let (path, count) = (&ledger.path, ledger.dead_lettered);
                    warn!(
                        path,
                        topic,
                        stage,
                        reason,
                        count,
                        "message of another broker can't be processed and is not kept"
                    );
                }
            }
        }
    }

    pub(super) fn told(&self) -> PathTotals {
        let age = self.oldest.map(|oldest| Timestamp::now().duration_since(oldest));
        PathTotals {
            ledger: self.ledger.clone(),
            waiting_bytes: self.waiting_bytes,
            oldest_age: age
                .and_then(|age| Duration::try_from(age).ok())
                .unwrap_or_default(),
        }
    }
}
