//! The broker as [`Paths`]: what a dataflow's runner reads, in process or through the gRPC service.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use async_trait::async_trait;
use foreshore_control::queue::{
    DeadLetter, Entry, EntryId, Error, OpenPath, PathTotals, Paths, ReadBatch, ReadRange, Settlement,
};
use foreshore_store::{self as store, Applied, Operation, StoreError};
use tokio::{sync::watch, time::Instant};

use super::{PathQueue, unreadable};
use crate::{engine::Engine, inspect::trace};

/// A broker's queues for dataflows.
#[derive(Clone, Debug)]
pub struct BrokerPaths {
    engine: Arc<Engine>,
}

/// A path that was opened.
struct BrokerPath {
    engine: Arc<Engine>,
    path: Arc<PathQueue>,
    opening: store::Opening,
    committed: watch::Receiver<EntryId>,
    /// The last entry that was handed out in this opening.
    handed_out: AtomicU64,
}

impl BrokerPaths {
    pub(crate) fn new(engine: Arc<Engine>) -> Self {
        Self { engine }
    }

    fn path(&self, name: &str) -> Result<Arc<PathQueue>, Error> {
        self.engine.paths.get(name).ok_or_else(|| Error::NotFound {
            path: name.to_owned(),
        })
    }
}

fn unavailable(error: &StoreError) -> Error {
    Error::Unavailable {
        cause: error.to_string(),
    }
}

#[async_trait]
impl Paths for BrokerPaths {
    async fn open(&self, path: &str) -> Result<Box<dyn OpenPath>, Error> {
        let path = self.path(path)?;
        // Subscribed before the opening, so that nothing committed after it is missed.
        let committed = path.watch();
        let open = vec![Operation::OpenPath {
            receiver: path.receiver,
        }];
        let applied = self
            .engine
            .committer
            .commit(open)
            .await
            .map_err(|error| unavailable(&error))?;
        match applied.first() {
            Some(Applied::Opened(opening)) => Ok(Box::new(BrokerPath {
                engine: Arc::clone(&self.engine),
                opening: *opening,
                path,
                committed,
                handed_out: AtomicU64::new(0),
            })),
            _ => Err(Error::NotFound {
                path: path.name.clone(),
            }),
        }
    }

    async fn totals(&self) -> Result<Vec<PathTotals>, Error> {
        let paths = self.engine.paths.all();
        let now = self.engine.now();
        let read = move |store: &dyn store::Store| {
            let mut all = Vec::with_capacity(paths.len());
            for path in paths {
                if let Some(totals) = store.totals(path.receiver)? {
                    all.push(PathTotals {
                        oldest_age: totals.oldest_age(now),
                        waiting_bytes: totals.waiting_bytes,
                        ledger: totals.ledger,
                    });
                }
            }
            Ok(all)
        };
        self.engine
            .blocking(read)
            .await
            .map_err(|error| unavailable(&error))
    }

    async fn dead_letters(&self, path: &str, after: EntryId, max: u32) -> Result<Vec<DeadLetter>, Error> {
        let receiver = self.path(path)?.receiver;
        let read = move |store: &dyn store::Store| store.dead_letters(receiver, after, max as usize);
        let letters = self
            .engine
            .blocking(read)
            .await
            .map_err(|error| unavailable(&error))?;
        let convert = |letter: store::DeadLetter| DeadLetter {
            id: letter.id,
            store_epoch: letter.store_epoch,
            stage: letter.stage,
            reason: letter.reason,
            attempts: letter.attempts,
            record: letter.record,
        };
        Ok(letters.into_iter().map(convert).collect())
    }

    async fn replay(&self, path: &str, ids: &[EntryId]) -> Result<u64, Error> {
        let path = self.path(path)?;
        let mut ids = ids.to_vec();
        ids.sort_unstable();
        ids.dedup();
        let replay = Operation::Replay {
            from: path.receiver,
            ids,
            to: path.receiver,
        };
        let last = replay.ids();
        let submitted = self
            .engine
            .committer
            .submit(vec![replay])
            .await
            .map_err(|error| unavailable(&error))?;
        let first_id = submitted.first_id;
        match submitted
            .completion
            .await
            .map_err(|error| unavailable(&error))?
            .first()
        {
            Some(Applied::Affected { count, .. }) => {
                path.committed(first_id + last);
                Ok(*count)
            }
            _ => Err(Error::NotFound {
                path: path.name.clone(),
            }),
        }
    }
}

impl BrokerPath {
    /// Whether this opening is the last one, and the path still there.
    fn check(&self, epoch: Option<u64>) -> Result<(), Error> {
        match epoch {
            Some(epoch) if epoch == self.opening.epoch => Ok(()),
            Some(_) => Err(Error::Fenced {
                path: self.path.name.clone(),
            }),
            None => Err(Error::NotFound {
                path: self.path.name.clone(),
            }),
        }
    }

    /// Whether an operation was done, or this opening is over.
    fn done(&self, applied: Option<&Applied>) -> Result<(), Error> {
        match applied {
            Some(Applied::Fenced { epoch }) => self.check(Some(*epoch)),
            Some(Applied::UnknownReceiver) | None => self.check(None),
            Some(_) => Ok(()),
        }
    }

    /// Reads what is there.
    async fn read_now(&self, range: ReadRange) -> Result<ReadBatch, Error> {
        let receiver = self.path.receiver;
        let now = self.engine.now();
        let read = move |store: &dyn store::Store| {
            let epoch = store.totals(receiver)?.map(|totals| totals.epoch);
            Ok((
                epoch,
                read_payload(store, receiver, range, now)?,
                store.position().next_id,
            ))
        };
        let (epoch, page, tail) = self
            .engine
            .blocking(read)
            .await
            .map_err(|error| unavailable(&error))?;
        self.check(epoch)?;
        let gone = unreadable(&page);
        if !gone.is_empty() {
            self.settle_all(gone).await?;
        }
        self.hand_out(&page, range.after).await?;
        let entry = |entry: store::Entry| Entry {
            id: entry.id,
            store_epoch: entry.store_epoch,
            attempt: entry.attempt,
            record: entry.record,
        };
        Ok(ReadBatch {
            entries: page.entries.into_iter().map(entry).collect(),
            tail,
        })
    }

    /// Makes durable what is handed out for the first time in this opening, so that an entry which kills its reader, or
    /// this whole process, does not do so for ever.
    async fn hand_out(&self, page: &store::Page, after: EntryId) -> Result<(), Error> {
        let Some(last) = page.entries.last() else {
            return Ok(());
        };
        let before = self.handed_out.fetch_max(last.id, Ordering::Relaxed);
        if last.id <= before {
            return Ok(());
        }
        let again = page
            .entries
            .iter()
            .filter(|entry| entry.id > before && entry.attempt > 0)
            .count();
        let operation = Operation::HandOut {
            receiver: self.path.receiver,
            epoch: self.opening.epoch,
            after,
            up_to: last.id,
            redelivered: again as u64,
        };
        let applied = self
            .engine
            .committer
            .commit(vec![operation])
            .await
            .map_err(|error| unavailable(&error))?;
        self.done(applied.first())?;
        for entry in page.entries.iter().filter(|entry| entry.id > before) {
            self.engine.tracer.record(entry.id, || trace::Hop::HandedOut {
                receiver: self.path.name.clone(),
                attempt: entry.attempt,
            });
        }
        Ok(())
    }

    async fn settle_all(&self, settlements: Vec<Settlement>) -> Result<(), Error> {
        let traced = self.engine.tracer.settled(&self.path.name, &settlements);
        let operation = Operation::Settle {
            receiver: self.path.receiver,
            epoch: self.opening.epoch,
            settlements,
        };
        let applied = self
            .engine
            .committer
            .commit(vec![operation])
            .await
            .map_err(|error| unavailable(&error))?;
        self.done(applied.first())?;
        for (traced, hop) in traced {
            traced.record(hop);
        }
        Ok(())
    }
}

/// Reads so many bytes of payload, where the store counts topics and properties as well.
fn read_payload(
    store: &dyn store::Store,
    receiver: store::ReceiverId,
    range: ReadRange,
    now: store::BrokerTime,
) -> Result<store::Page, StoreError> {
    let ReadRange {
        mut after,
        before,
        max_entries,
        max_bytes,
        wait: _,
    } = range;
    let mut all = store::Page::default();
    let mut left = max_bytes as usize;
    loop {
        let max_entries = (max_entries as usize).saturating_sub(all.entries.len());
        let page = store.read(
            receiver,
            store::ReadRange {
                after,
                before,
                max_entries,
                max_bytes: left,
            },
            now,
        )?;
        all.expired.extend(page.expired);
        all.damaged.extend(page.damaged);
        for entry in page.entries {
            let bytes = entry.record.payload.len();
            if bytes > left && !all.entries.is_empty() {
                return Ok(all);
            }
            left = left.saturating_sub(bytes);
            all.entries.push(entry);
        }
        let full = left == 0 || all.entries.len() >= range.max_entries as usize;
        if page.at_end || full || page.resume_after <= after {
            return Ok(all);
        }
        after = page.resume_after;
    }
}

#[async_trait]
impl OpenPath for BrokerPath {
    fn epoch(&self) -> u64 {
        self.opening.epoch
    }

    fn opening_tail(&self) -> EntryId {
        self.opening.tail
    }

    async fn read(&self, range: ReadRange) -> Result<ReadBatch, Error> {
        let deadline = Instant::now() + range.wait;
        let mut committed = self.committed.clone();
        loop {
            // Marked as seen before the read, so that what is committed after it ends the wait.
            committed.mark_unchanged();
            let batch = self.read_now(range).await?;
            let more_may_come = range.before.is_none_or(|before| before > batch.tail);
            if !batch.entries.is_empty() || !more_may_come {
                return Ok(batch);
            }
            if tokio::time::timeout_at(deadline, committed.changed())
                .await
                .is_err()
            {
                return Ok(batch);
            }
        }
    }

    async fn settle(&self, settlements: Vec<Settlement>) -> Result<(), Error> {
        self.settle_all(settlements).await
    }
}
