//! Queues in memory.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Instant,
};

use async_trait::async_trait;
use foreshore_record::{Outcome, PathLedger, Record};
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::queue::{
    DeadLetter, Entry, EntryId, Error, OpenPath, PathTotals, Paths, ReadBatch, ReadRange, Settlement,
};

/// Openings after which an entry that was handed out and not settled becomes a dead letter.
const MAX_ATTEMPTS: u32 = 5;

/// Queues in memory: what the broker's do, without a disk. Cheap to clone.
#[derive(Clone, Debug)]
pub struct MemoryPaths {
    state: Arc<Mutex<State>>,
    changed: watch::Sender<u64>,
}

/// A settlement as it took effect, for tests that count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settled {
    /// The entry.
    pub id: EntryId,
    /// Outputs.
    pub emitted: u32,
    /// How it left.
    pub outcome: Outcome,
}

#[derive(Debug, Default)]
struct State {
    next_id: EntryId,
    store_epoch: u64,
    queues: BTreeMap<String, Queue>,
    unavailable: Option<String>,
    lose_answers: bool,
}

#[derive(Debug, Default)]
struct Queue {
    epoch: u64,
    entries: BTreeMap<EntryId, Waiting>,
    handed_out: BTreeSet<EntryId>,
    letters: BTreeMap<EntryId, DeadLetter>,
    ledger: PathLedger,
    settled: Vec<Settled>,
    open: bool,
}

#[derive(Debug)]
struct Waiting {
    entry: Entry,
    since: Instant,
}

impl Default for MemoryPaths {
    fn default() -> Self {
        let state = State {
            next_id: 1,
            store_epoch: 0xf0e5_0000_0000_0001,
            ..State::default()
        };
        Self {
            state: Arc::new(Mutex::new(state)),
            changed: watch::Sender::new(0),
        }
    }
}

impl MemoryPaths {
    /// No queues.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an empty queue, unless it is there.
    pub fn create(&self, path: &str) {
        let mut state = self.state.lock();
        let queue = state.queues.entry(path.to_owned()).or_default();
        path.clone_into(&mut queue.ledger.path);
        queue.ledger.emitted = Some(queue.ledger.emitted.unwrap_or(0));
    }

    /// Removes a queue.
    pub fn delete(&self, path: &str) {
        self.state.lock().queues.remove(path);
        self.wake();
    }

    /// Adds a record to a queue.
    pub fn publish(&self, path: &str, record: Record) -> EntryId {
        let mut state = self.state.lock();
        let (id, store_epoch) = (state.next_id, state.store_epoch);
        state.next_id += 1;
        if let Some(queue) = state.queues.get_mut(path) {
            queue.add(Entry {
                id,
                store_epoch,
                attempt: 0,
                record: Arc::new(record),
            });
        }
        drop(state);
        self.wake();
        id
    }

    /// Makes every operation fail with this cause, or work again.
    pub fn set_unavailable(&self, cause: Option<&str>) {
        self.state.lock().unavailable = cause.map(str::to_owned);
        self.wake();
    }

    /// Makes settlements take effect and fail all the same, as when the answer is lost.
    pub fn lose_answers(&self, lose: bool) {
        self.state.lock().lose_answers = lose;
    }

    /// Forgets all openings, as a broker does that starts again.
    pub fn restart(&self) {
        for queue in self.state.lock().queues.values_mut() {
            queue.open = false;
        }
        self.wake();
    }

    /// Every settlement of a queue that took effect, in order.
    #[must_use]
    pub fn settled(&self, path: &str) -> Vec<Settled> {
        self.state
            .lock()
            .queues
            .get(path)
            .map(|queue| queue.settled.clone())
            .unwrap_or_default()
    }

    /// The ledger line of a queue.
    #[must_use]
    pub fn ledger(&self, path: &str) -> PathLedger {
        let mut state = self.state.lock();
        state
            .queues
            .get_mut(path)
            .map(|queue| queue.totals().ledger)
            .unwrap_or_default()
    }

    fn wake(&self) {
        self.changed.send_modify(|changes| *changes += 1);
    }

    fn with_queue<T>(
        &self,
        path: &str,
        then: impl FnOnce(&mut Queue, EntryId) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let mut state = self.state.lock();
        if let Some(cause) = &state.unavailable {
            return Err(Error::Unavailable { cause: cause.clone() });
        }
        let tail = state.next_id;
        let queue = state.queues.get_mut(path).ok_or_else(|| Error::NotFound {
            path: path.to_owned(),
        })?;
        then(queue, tail)
    }
}

impl Queue {
    fn add(&mut self, entry: Entry) {
        self.ledger.received += 1;
        self.entries.insert(
            entry.id,
            Waiting {
                entry,
                since: Instant::now(),
            },
        );
    }

    fn totals(&mut self) -> PathTotals {
        self.ledger.waiting = self.entries.len() as u64;
        let oldest = self.entries.values().map(|waiting| waiting.since.elapsed()).max();
        PathTotals {
            ledger: self.ledger.clone(),
            waiting_bytes: self
                .entries
                .values()
                .map(|w| w.entry.record.payload.len() as u64)
                .sum(),
            oldest_age: oldest.unwrap_or_default(),
        }
    }

    /// Entries that were handed out and not settled gain an attempt.
    fn reopen(&mut self) {
        self.epoch += 1;
        self.open = true;
        for id in std::mem::take(&mut self.handed_out) {
            let Some(waiting) = self.entries.get_mut(&id) else {
                continue;
            };
            waiting.entry.attempt += 1;
            self.ledger.redelivered += 1;
            if waiting.entry.attempt >= MAX_ATTEMPTS {
                let reason = "handed out five times without being settled".to_owned();
                let outcome = Outcome::DeadLettered {
                    stage: "open".to_owned(),
                    reason,
                };
                self.settle(Settlement {
                    id,
                    emitted: 0,
                    outcome,
                });
            }
        }
    }

    fn settle(&mut self, settlement: Settlement) {
        let Settlement { id, emitted, outcome } = settlement;
        let Some(waiting) = self.entries.remove(&id) else {
            return;
        };
        self.handed_out.remove(&id);
        match &outcome {
            Outcome::Delivered => {
                self.ledger.delivered += 1;
                self.ledger.emitted = Some(self.ledger.emitted.unwrap_or(0) + u64::from(emitted));
            }
            Outcome::DeadLettered { stage, reason } => {
                self.ledger.dead_lettered += 1;
                let letter = DeadLetter {
                    id,
                    store_epoch: waiting.entry.store_epoch,
                    stage: stage.clone(),
                    reason: reason.clone(),
                    attempts: waiting.entry.attempt + 1,
                    record: waiting.entry.record,
                };
                self.letters.insert(id, letter);
            }
            Outcome::Dropped { reason } => {
                *self.ledger.dropped.entry(reason.as_str().to_owned()).or_default() += 1;
            }
        }
        self.settled.push(Settled { id, emitted, outcome });
    }
}

#[async_trait]
impl Paths for MemoryPaths {
    async fn open(&self, path: &str) -> Result<Box<dyn OpenPath>, Error> {
        let (epoch, tail) = self.with_queue(path, |queue, tail| {
            queue.reopen();
            Ok((queue.epoch, tail))
        })?;
        self.wake();
        Ok(Box::new(MemoryPath {
            paths: self.clone(),
            path: path.to_owned(),
            epoch,
            tail,
        }))
    }

    async fn totals(&self) -> Result<Vec<PathTotals>, Error> {
        let mut state = self.state.lock();
        if let Some(cause) = &state.unavailable {
            return Err(Error::Unavailable { cause: cause.clone() });
        }
        Ok(state.queues.values_mut().map(Queue::totals).collect())
    }

    async fn dead_letters(&self, path: &str, after: EntryId, max: u32) -> Result<Vec<DeadLetter>, Error> {
        self.with_queue(path, |queue, _| {
            let letters = queue.letters.range(after + 1..).map(|(_, letter)| letter.clone());
            Ok(letters.take(max as usize).collect())
        })
    }

    async fn replay(&self, path: &str, ids: &[EntryId]) -> Result<u64, Error> {
        let letters = self.with_queue(path, |queue, _| {
            Ok(ids
                .iter()
                .filter_map(|id| queue.letters.remove(id))
                .collect::<Vec<_>>())
        })?;
        for letter in &letters {
            self.publish(path, Record::clone(&letter.record));
        }
        Ok(letters.len() as u64)
    }
}

struct MemoryPath {
    paths: MemoryPaths,
    path: String,
    epoch: u64,
    tail: EntryId,
}

impl MemoryPath {
    fn with_queue<T>(&self, then: impl FnOnce(&mut Queue, EntryId) -> T) -> Result<T, Error> {
        self.paths.with_queue(&self.path, |queue, tail| {
            if queue.epoch > self.epoch {
                return Err(Error::Fenced {
                    path: self.path.clone(),
                });
            }
            if !queue.open {
                return Err(Error::Closed {
                    path: self.path.clone(),
                });
            }
            Ok(then(queue, tail))
        })
    }

    fn read_now(&self, range: ReadRange) -> Result<ReadBatch, Error> {
        self.with_queue(|queue, tail| {
            let before = range.before.unwrap_or(EntryId::MAX);
            let mut bytes = 0;
            let mut entries = Vec::new();
            let after = range.after.saturating_add(1);
            let waiting = queue.entries.range(after.min(before)..before);
            for (id, waiting) in waiting.take(range.max_entries as usize) {
                bytes += waiting.entry.record.payload.len();
                if bytes > range.max_bytes as usize && !entries.is_empty() {
                    break;
                }
                queue.handed_out.insert(*id);
                entries.push(waiting.entry.clone());
            }
            ReadBatch { entries, tail }
        })
    }
}

#[async_trait]
impl OpenPath for MemoryPath {
    fn epoch(&self) -> u64 {
        self.epoch
    }

    fn opening_tail(&self) -> EntryId {
        self.tail
    }

    async fn read(&self, range: ReadRange) -> Result<ReadBatch, Error> {
        let mut changed = self.paths.changed.subscribe();
        let deadline = tokio::time::Instant::now() + range.wait;
        loop {
            let batch = self.read_now(range)?;
            // The sender lives as long as the paths do.
            let waited = tokio::time::timeout_at(deadline, changed.changed());
            if !batch.entries.is_empty() || waited.await.is_err() {
                return Ok(batch);
            }
        }
    }

    async fn settle(&self, settlements: Vec<Settlement>) -> Result<(), Error> {
        self.with_queue(|queue, _| {
            for settlement in settlements {
                queue.settle(settlement);
            }
        })?;
        if self.paths.state.lock().lose_answers {
            return Err(Error::Unavailable {
                cause: "answer was lost".to_owned(),
            });
        }
        Ok(())
    }
}
