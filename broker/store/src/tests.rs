//! One suite for all back ends, a model, and tests of what happens when the process or the disk fails.

mod committer;
mod crash;
mod damage;
pub(crate) mod encrypted;
mod faults;
mod flips;
mod forged;
mod model;
mod offline;
mod power;
mod sectors;
mod suite;
mod views;

use std::{sync::Arc, time::Duration};

use foreshore_record::{Outcome, Qos, Record, SourceNumber, TopicName};
use tempfile::TempDir;

use crate::{
    Applied, Batch, BrokerClock, BrokerTime, Entry, EntryFlags, EntryId, Limits, Message, Opening, Operation,
    Page, PathTotals, Publish, ReadRange, ReceiverId, Settlement, SharedStore, Store, StoreOptions,
    memory::MemoryEngine, queue_store::QueueStore, space::SpaceProbe,
};

/// A store of either back end, its clock, and shorthands.
pub(super) struct Harness {
    pub(super) clock: BrokerClock,
    store: Option<SharedStore>,
    /// Where the store is on disk, if it is.
    directory: Option<TempDir>,
    /// The key of an encrypted store.
    keys: Option<TempDir>,
    free: Arc<std::sync::atomic::AtomicU64>,
}

/// Bytes that must be free in these tests.
const WATERMARK: u64 = 1000;

impl Harness {
    pub(super) fn memory() -> Self {
        let free = Arc::new(std::sync::atomic::AtomicU64::new(u64::MAX));
        let look = Arc::clone(&free);
        let probe = move || Some(look.load(std::sync::atomic::Ordering::SeqCst));
        let probe = SpaceProbe::of_function(WATERMARK, probe);
        let store = QueueStore::open(MemoryEngine::default(), Some(probe), 7).unwrap();
        let clock = BrokerClock::manual(BrokerTime(0));
        Self {
            clock,
            store: Some(Arc::new(store)),
            directory: None,
            keys: None,
            free,
        }
    }

    pub(super) fn disk() -> Self {
        Self::on_disk(None)
    }

    pub(super) fn encrypted() -> Self {
        let keys = tempfile::tempdir().unwrap();
        encrypted::write_key(keys.path(), "key", 1);
        Self::on_disk(Some(keys))
    }

    fn on_disk(keys: Option<TempDir>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (store, _) = crate::open(directory.path(), &with_keys(keys.as_ref())).unwrap();
        let clock = BrokerClock::manual(BrokerTime(0));
        Self {
            clock,
            store: Some(store),
            directory: Some(directory),
            keys,
            free: Arc::default(),
        }
    }

    pub(super) fn store(&self) -> &dyn Store {
        self.store.as_deref().unwrap()
    }

    pub(super) fn is_on_disk(&self) -> bool {
        self.directory.is_some()
    }

    /// Whether names are in their own order.
    pub(super) fn keeps_order(&self) -> bool {
        self.keys.is_none()
    }

    /// Closes and opens the store, an encrypted one with another key; one in memory stays as it is.
    pub(super) fn reopen(&mut self, orderly: bool) {
        if let Some(directory) = &self.directory {
            let store = self.store.take().unwrap();
            if orderly {
                store.close().unwrap();
            }
            drop(store);
            if let Some(keys) = &self.keys {
                encrypted::add_key(keys.path());
            }
            let options = with_keys(self.keys.as_ref());
            let (store, report) = crate::open(directory.path(), &options).unwrap();
            assert_eq!((report.clean, report.lost_something()), (orderly, false));
            self.store = Some(store);
        }
    }

    pub(super) fn commit(&self, operations: Vec<Operation>) -> Vec<Applied> {
        let batch = Batch {
            now: self.clock.now(),
            first_id: self.store().position().next_id,
            operations,
        };
        self.store().commit(&[batch]).unwrap().remove(0)
    }

    pub(super) fn one(&self, operation: Operation) -> Applied {
        self.commit(vec![operation]).remove(0)
    }

    pub(super) fn receiver(&self, name: &str, limits: Limits) -> ReceiverId {
        match self.one(Operation::PutReceiver {
            name: name.to_owned(),
            limits,
        }) {
            Applied::Receiver { receiver, .. } => receiver,
            other => panic!("{other:?}"),
        }
    }

    pub(super) fn publish(&self, payload: &str, receivers: &[ReceiverId]) -> EntryId {
        match self.one(publish(payload, receivers)) {
            Applied::Published { id, .. } => id,
            other => panic!("{other:?}"),
        }
    }

    pub(super) fn open_path(&self, receiver: ReceiverId) -> Opening {
        match self.one(Operation::OpenPath { receiver }) {
            Applied::Opened(opening) => opening,
            other => panic!("{other:?}"),
        }
    }

    pub(super) fn settle(&self, receiver: ReceiverId, epoch: u64, ids: &[EntryId]) -> Applied {
        let settlements = ids.iter().map(|id| Settlement::delivered(*id)).collect();
        self.one(Operation::Settle {
            receiver,
            epoch,
            settlements,
        })
    }

    pub(super) fn settle_as(&self, receiver: ReceiverId, id: EntryId, outcome: Outcome) -> Applied {
        let settlements = vec![Settlement {
            id,
            emitted: 0,
            outcome,
        }];
        self.one(Operation::Settle {
            receiver,
            epoch: 0,
            settlements,
        })
    }

    pub(super) fn page(&self, receiver: ReceiverId) -> Page {
        self.store()
            .read(receiver, everything(), self.clock.now())
            .unwrap()
    }

    pub(super) fn entries(&self, receiver: ReceiverId) -> Vec<Entry> {
        self.page(receiver).entries
    }

    pub(super) fn payloads(&self, receiver: ReceiverId) -> Vec<String> {
        self.entries(receiver).iter().map(payload_of).collect()
    }

    pub(super) fn totals(&self, receiver: ReceiverId) -> PathTotals {
        let totals = self.store().totals(receiver).unwrap().unwrap();
        assert!(totals.ledger.balances(), "{totals:?}");
        totals
    }

    pub(super) fn wait(&self, seconds: u64) {
        self.clock.advance(Duration::from_secs(seconds));
    }

    /// Does background work to its end.
    pub(super) fn maintain(&self) {
        while self.store().maintain(self.clock.now()).unwrap() {}
    }
}

pub(super) fn options() -> StoreOptions {
    StoreOptions {
        free_space_watermark: 0,
        ..StoreOptions::default()
    }
}

fn with_keys(keys: Option<&TempDir>) -> StoreOptions {
    StoreOptions {
        encryption_keys: keys.map(|keys| keys.path().to_owned()),
        ..options()
    }
}

pub(super) fn everything() -> ReadRange {
    ReadRange {
        after: 0,
        before: None,
        max_entries: usize::MAX,
        max_bytes: usize::MAX,
    }
}

pub(super) fn payload_of(entry: &Entry) -> String {
    String::from_utf8(entry.record.payload.to_vec()).unwrap()
}

pub(super) fn message(payload: &str) -> Message {
    let topic = TopicName::new("plant/line").unwrap();
    Message {
        record: Arc::new(Record::new(topic, payload.to_owned())),
        expires_at: None,
    }
}

pub(super) fn numbered(payload: &str, epoch: u64, sequence: u64) -> Message {
    let mut record = Record::clone(&message(payload).record);
    record.number = Some(SourceNumber {
        source: "connector/plant/line".to_owned(),
        epoch,
        sequence,
    });
    Message {
        record: Arc::new(record),
        expires_at: None,
    }
}

pub(super) fn flags() -> EntryFlags {
    EntryFlags {
        qos: Qos::AtLeastOnce,
        retain: false,
        subscription_identifiers: Vec::new(),
    }
}

pub(super) fn publish(payload: &str, receivers: &[ReceiverId]) -> Operation {
    publish_message(message(payload), receivers)
}

pub(super) fn publish_message(message: Message, receivers: &[ReceiverId]) -> Operation {
    let receivers = receivers.iter().map(|receiver| (*receiver, flags())).collect();
    Operation::Publish(Publish {
        message,
        receivers,
        update_retained: false,
        receipt: None,
    })
}

pub(super) fn dead_letter(reason: &str) -> Outcome {
    Outcome::DeadLettered {
        stage: "sink".to_owned(),
        reason: reason.to_owned(),
    }
}
