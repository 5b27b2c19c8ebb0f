//! The one thread that writes: it commits whatever has arrived meanwhile as one transaction.
//!
//! A request is a closure over the connection. Requests of one transaction do not see each other's failures: each runs
//! in a savepoint. They are taken by priority, so that an alarm never waits behind a backlog for longer than the
//! transaction that runs; and each transaction takes at least one request of every priority, so that nothing starves.

use std::{
    collections::VecDeque,
    fs::File,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    thread,
    time::Instant,
};

use foreshore_record::Lane;
use parking_lot::{Condvar, Mutex};
use rusqlite::Connection;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};
use tracing::{error, warn};

use super::{StoreError, caches::Caches};
use crate::metrics::StoreMetrics;

/// Most weight in a transaction, in rows: bounds how long an urgent request waits for the transaction before it.
const MAX_TRANSACTION_WEIGHT: u32 = 20_000;

/// Most weight that waits for each priority. Whoever has more waits before the queue.
const MAX_WAITING_WEIGHT: u32 = 100_000;

/// Which requests go first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Priority {
    /// Admissions, commands, registries.
    Control,
    /// Batches.
    Lane(Lane),
    /// Deleting what is too old.
    Upkeep,
}

impl Priority {
    const COUNT: usize = Lane::COUNT + 2;

    const fn index(self) -> usize {
        match self {
            Self::Control => 0,
            Self::Lane(lane) => 1 + lane.index(),
            Self::Upkeep => Self::COUNT - 1,
        }
    }
}

/// What a request works with.
pub(crate) struct Context<'a> {
    pub(crate) connection: &'a Connection,
    pub(crate) caches: &'a mut Caches,
}

/// Takes requests to write. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Writer {
    shared: Arc<Shared>,
}

struct Shared {
    queues: Mutex<Queues>,
    arrived: Condvar,
    room: [Arc<Semaphore>; Priority::COUNT],
    fault: watch::Sender<Option<StoreError>>,
    ended: watch::Sender<bool>,
}

#[derive(Default)]
struct Queues {
    waiting: [VecDeque<Waiting>; Priority::COUNT],
    closed: bool,
}

struct Waiting {
    request: Box<dyn Request>,
    weight: u32,
    /// Its room in the queue, free again once it is taken.
    _room: OwnedSemaphorePermit,
}

/// A closure and whoever waits for its result, without their types.
trait Request: Send {
    fn run(&mut self, context: &mut Context<'_>) -> Result<(), StoreError>;
    /// Tells the result, after the commit. The error is that of the request, or of the whole transaction.
    fn answer(self: Box<Self>, outcome: Result<(), StoreError>);
}

struct Asked<F, T> {
    work: Option<F>,
    result: Option<T>,
    reply: oneshot::Sender<Result<T, StoreError>>,
}

impl<F, T> Request for Asked<F, T>
where
    F: FnOnce(&mut Context<'_>) -> Result<T, StoreError> + Send,
    T: Send,
{
    fn run(&mut self, context: &mut Context<'_>) -> Result<(), StoreError> {
        if let Some(work) = self.work.take() {
            self.result = Some(work(context)?);
        }
        Ok(())
    }

    fn answer(self: Box<Self>, outcome: Result<(), StoreError>) {
        let Self { result, reply, .. } = *self;
        let outcome = outcome.and_then(|()| result.ok_or(StoreError::Closed));
        // Whoever asked may have gone; what is committed stays.
        drop(reply.send(outcome));
    }
}

// === impl Writer ===

impl Writer {
    /// Starts the thread.
    pub(crate) fn start(
        connection: Connection,
        lock: File,
        metrics: StoreMetrics,
    ) -> Result<Self, StoreError> {
        let room = || Arc::new(Semaphore::new(MAX_WAITING_WEIGHT as usize));
        let shared = Arc::new(Shared {
            queues: Mutex::default(),
            arrived: Condvar::new(),
            room: std::array::from_fn(|_| room()),
            fault: watch::Sender::new(None),
            ended: watch::Sender::new(false),
        });
        let caches = Caches::default();
        let thread = Thread {
            shared: Arc::clone(&shared),
            connection,
            caches,
            metrics,
            _lock: lock,
        };
        thread::Builder::new()
            .name("cloud-store".to_owned())
            .spawn(move || thread.run())
            .map_err(|error| StoreError::Failed {
                cause: format!("can't start the writer's thread: {error}"),
            })?;
        Ok(Self { shared })
    }

    /// Runs `work` in a transaction and returns what it gave once that is committed and synced. `weight` is about how
    /// many rows it writes.
    ///
    /// # Errors
    /// [`StoreError`]: then nothing of it is kept.
    pub(crate) async fn write<T, F>(&self, priority: Priority, weight: u32, work: F) -> Result<T, StoreError>
    where
        F: FnOnce(&mut Context<'_>) -> Result<T, StoreError> + Send + 'static,
        T: Send + 'static,
    {
        let weight = weight.clamp(1, MAX_WAITING_WEIGHT);
        let room = Arc::clone(&self.shared.room[priority.index()]);
        let room = room
            .acquire_many_owned(weight)
            .await
            .map_err(|_| StoreError::Closed)?;
        let (reply, answer) = oneshot::channel();
        let request = Box::new(Asked {
            work: Some(work),
            result: None,
            reply,
        });
        {
            let mut queues = self.shared.queues.lock();
            if queues.closed {
                return Err(self.shared.why_closed());
            }
            queues.waiting[priority.index()].push_back(Waiting {
                request,
                weight,
                _room: room,
            });
        }
        self.shared.arrived.notify_one();
        answer.await.unwrap_or_else(|_| Err(self.shared.why_closed()))
    }

    /// Ends the thread after it has committed what waits, and returns when the database is closed.
    pub(crate) async fn close(&self) {
        self.shared.queues.lock().closed = true;
        self.shared.arrived.notify_one();
        let mut ended = self.shared.ended.subscribe();
        // An error can't be: the sender is ours.
        drop(ended.wait_for(|ended| *ended).await);
    }

    /// Resolves when the thread has ended by a fault, with the cause.
    pub(crate) async fn fault(&self) -> StoreError {
        let mut fault = self.shared.fault.subscribe();
        match fault.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(fault)) => fault.clone(),
            // The sender is ours.
            _ => StoreError::Closed,
        }
    }
}

impl Shared {
    fn why_closed(&self) -> StoreError {
        self.fault.borrow().clone().unwrap_or(StoreError::Closed)
    }

    /// Waits for requests and takes a transaction's worth; `None` when the store ends.
    fn take(&self) -> Option<Vec<Box<dyn Request>>> {
        let mut queues = self.queues.lock();
        loop {
            let taken = queues.take();
            if !taken.is_empty() {
                return Some(taken);
            }
            if queues.closed {
                return None;
            }
            self.arrived.wait(&mut queues);
        }
    }
}

impl Queues {
    fn take(&mut self) -> Vec<Box<dyn Request>> {
        let mut taken = Vec::new();
        let mut weight = 0;
        for waiting in &mut self.waiting {
            let mut first = true;
            while let Some(next) = waiting.front() {
                if !first && weight + next.weight > MAX_TRANSACTION_WEIGHT {
                    break;
                }
                first = false;
                weight += next.weight;
                taken.extend(waiting.pop_front().map(|next| next.request));
            }
        }
        taken
    }
}

// === the thread ===

struct Thread {
    shared: Arc<Shared>,
    connection: Connection,
    caches: Caches,
    metrics: StoreMetrics,
    /// Keeps other processes from the data directory.
    _lock: File,
}

impl Thread {
    fn run(mut self) {
        let closing = Closing(Arc::clone(&self.shared));
        self.serve();
        // The database and its lock are free before anyone is told that the thread has ended.
        drop(self);
        drop(closing);
    }

    fn serve(&mut self) {
        while let Some(requests) = self.shared.take() {
            let began = Instant::now();
            let fault = self.commit(requests);
            self.metrics.commit_seconds.observe(began.elapsed().as_secs_f64());
            if let Some(fault) = fault {
                error!(reason = fault.reason(), "{fault}");
                self.shared.fault.send_replace(Some(fault));
                return;
            }
        }
        // What is in the write-ahead log is safe there; the next start writes it back if this does not.
        if let Err(error) = self
            .connection
            .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
        {
            warn!(%error, "write-ahead log not written back");
        }
    }

    /// Commits requests together and answers them. Returns an error after which nothing can be committed any more.
    fn commit(&mut self, mut requests: Vec<Box<dyn Request>>) -> Option<StoreError> {
        let mut outcomes: Vec<Result<(), StoreError>> = Vec::with_capacity(requests.len());
        let committed = self.transact(&mut requests, &mut outcomes);
        let failed = committed.err();
        if let Some(error) = &failed {
            self.roll_back();
            self.metrics.failed_commits(error.reason());
            warn!(
                reason = error.reason(),
                requests = requests.len(),
                "not committed: {error}"
            );
        }
        // Requests behind the one that made the transaction fail have no outcome of their own.
        let outcomes = outcomes
            .into_iter()
            .map(Some)
            .chain(std::iter::repeat_with(|| None));
        for (request, outcome) in requests.into_iter().zip(outcomes) {
            let outcome = match (&failed, outcome) {
                (Some(error), _) => Err(error.clone()),
                (None, outcome) => outcome.unwrap_or(Err(StoreError::Closed)),
            };
            request.answer(outcome);
        }
        failed.filter(StoreError::is_final)
    }

    /// An error is that of the whole transaction; what concerns one request only is its outcome.
    fn transact(
        &mut self,
        requests: &mut [Box<dyn Request>],
        outcomes: &mut Vec<Result<(), StoreError>>,
    ) -> Result<(), StoreError> {
        self.connection.execute_batch("BEGIN IMMEDIATE")?;
        for request in requests {
            self.connection.execute_batch("SAVEPOINT request")?;
            let mut context = Context {
                connection: &self.connection,
                caches: &mut self.caches,
            };
            let outcome = catch_unwind(AssertUnwindSafe(|| request.run(&mut context))).unwrap_or_else(|_| {
                Err(StoreError::Failed {
                    cause: "a request panicked, which is a fault of ours".to_owned(),
                })
            });
            if let Err(error) = &outcome {
                self.caches.clear();
                // SQLite itself has rolled back what it could not write; nothing else would fare better.
                if self.connection.is_autocommit() || !matches!(error, StoreError::Failed { .. }) {
                    return Err(error.clone());
                }
                self.connection.execute_batch("ROLLBACK TO request")?;
            }
            self.connection.execute_batch("RELEASE request")?;
            outcomes.push(outcome);
        }
        self.connection.execute_batch("COMMIT")?;
        Ok(())
    }

    fn roll_back(&mut self) {
        self.caches.clear();
        if self.connection.is_autocommit() {
            return;
        }
        if let Err(error) = self.connection.execute_batch("ROLLBACK") {
            warn!(%error, "transaction not rolled back");
        }
    }
}

/// Answers whoever still waits when the thread ends, however it ends.
struct Closing(Arc<Shared>);

impl Drop for Closing {
    fn drop(&mut self) {
        let waiting = {
            let mut queues = self.0.queues.lock();
            queues.closed = true;
            std::mem::take(&mut queues.waiting)
        };
        // Dropping a request answers it: its channel closes.
        drop(waiting);
        if thread::panicking() {
            let cause = "the writer's thread panicked, which is a fault of ours".to_owned();
            self.0.fault.send_replace(Some(StoreError::Fatal { cause }));
        }
        self.0.ended.send_replace(true);
    }
}

#[cfg(test)]
mod tests;
