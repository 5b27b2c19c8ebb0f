//! Group commit: one thread, one sync for everything that arrived meanwhile.
//!
//! Submitted batches wait in a queue that is bounded by bytes. The committer's thread takes what is there, commits it
//! as one group and answers every batch in its order of arrival; what arrives during the sync is the next group. So a
//! lone publisher waits for one sync, and a thousand of them share it.
//!
//! After a commit that failed, or one that hangs, nothing more is acknowledged: all waiting and later submissions get
//! the cause, and [`CommitterHandle::failed`] tells the role to exit with it.

use std::{
    future::Future,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, TryAcquireError, oneshot, watch};

use crate::{
    batch::{Applied, Batch, Operation},
    clock::BrokerClock,
    entry::EntryId,
    error::StoreError,
    store::{SharedStore, Store},
};

/// How groups are formed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommitterOptions {
    /// Most bytes that wait for a commit; a submission beyond waits for room.
    pub max_queued_bytes: usize,
    /// Most bytes of one group, but at least one batch.
    pub max_group_bytes: usize,
    /// Time after which a commit that has not returned counts as hung.
    pub hang_after: Duration,
    /// How often background work of the store is done.
    pub maintain_every: Duration,
}

impl Default for CommitterOptions {
    fn default() -> Self {
        Self {
            max_queued_bytes: 8 << 20,
            max_group_bytes: 4 << 20,
            hang_after: Duration::from_secs(30),
            maintain_every: Duration::from_secs(1),
        }
    }
}

/// Permits of the queue are given out in units of so many bytes.
const PERMIT_BYTES: usize = 64;

/// Runs the thread that commits. Ends it, after what is queued, when it is stopped or dropped.
#[derive(Debug)]
pub struct Committer {
    handle: CommitterHandle,
    threads: Vec<JoinHandle<()>>,
}

/// Submits batches to a [`Committer`]. Clones share its queue.
#[derive(Clone, Debug)]
pub struct CommitterHandle {
    shared: Arc<Shared>,
}

/// A batch that was queued.
#[derive(Debug)]
pub struct Submitted {
    /// First of the ids that the batch's messages got; a message may be delivered and settled under its id before the
    /// batch is durable.
    pub first_id: EntryId,
    /// Resolves when the batch is durable.
    pub completion: Completion,
}

/// Room for one batch in the queue of a [`Committer`]: whoever has to know before it makes a batch that the batch will
/// be queued reserves it.
#[derive(Debug)]
pub struct Room {
    shared: Arc<Shared>,
    permit: OwnedSemaphorePermit,
}

/// What became of a batch; resolves when it is durable, in the order of submission.
#[derive(Debug)]
pub struct Completion(oneshot::Receiver<Result<Vec<Applied>, StoreError>>);

/// Why a batch was not queued.
#[derive(Debug, thiserror::Error)]
pub enum TrySubmitError {
    /// The queue is full for now; the operations are handed back.
    #[error("commit queue is full")]
    Full(Vec<Operation>),
    /// Nothing is committed any more, or the batch is invalid.
    #[error(transparent)]
    Failed(#[from] StoreError),
}

#[derive(Debug)]
struct Shared {
    queue: Mutex<Queue>,
    /// Something was queued, or the committer is to stop.
    changed: Condvar,
    /// The committer ended, or it failed.
    ended: Condvar,
    /// Room in the queue, in units of [`PERMIT_BYTES`].
    room: Arc<Semaphore>,
    capacity: u32,
    clock: BrokerClock,
    failure: watch::Sender<Option<StoreError>>,
}

#[derive(Debug)]
struct Queue {
    pending: std::collections::VecDeque<Job>,
    next_id: EntryId,
    stopping: bool,
    finished: bool,
    /// The group that is being committed: when it began and whom to answer.
    committing: Option<(Instant, Vec<Answer>)>,
}

type Answer = oneshot::Sender<Result<Vec<Applied>, StoreError>>;

#[derive(Debug)]
struct Job {
    batch: Batch,
    weight: usize,
    answer: Answer,
    room: OwnedSemaphorePermit,
}

// === impl Committer ===

impl Committer {
    /// Starts the thread that commits to a store, and its watchdog.
    ///
    /// # Errors
    /// [`StoreError::Io`] when the system gives no thread.
    pub fn start(
        store: SharedStore,
        clock: BrokerClock,
        options: CommitterOptions,
    ) -> Result<Self, StoreError> {
        let units = (options.max_queued_bytes / PERMIT_BYTES).clamp(1, Semaphore::MAX_PERMITS);
        let capacity = u32::try_from(units).unwrap_or(u32::MAX);
        let shared = Arc::new(Shared {
            queue: Mutex::new(Queue {
                pending: std::collections::VecDeque::new(),
                next_id: store.position().next_id,
                stopping: false,
                finished: false,
                committing: None,
            }),
            changed: Condvar::new(),
            ended: Condvar::new(),
            room: Arc::new(Semaphore::new(capacity as usize)),
            capacity,
            clock,
            failure: watch::Sender::new(None),
        });
        let committing = Worker {
            shared: Arc::clone(&shared),
            store,
            options: options.clone(),
        };
        let watching = Arc::clone(&shared);
        let spawn = |name: &str, run: Box<dyn FnOnce() + Send>| {
            std::thread::Builder::new()
                .name(name.to_owned())
                .spawn(run)
                .map_err(|error| StoreError::io("start the thread", name, error))
        };
        let mut committer = Self {
            handle: CommitterHandle { shared },
            threads: Vec::new(),
        };
        committer
            .threads
            .push(spawn("store-commit", Box::new(move || committing.run()))?);
        let hang_after = options.hang_after;
        committer.threads.push(spawn(
            "store-watchdog",
            Box::new(move || watching.watch(hang_after)),
        )?);
        Ok(committer)
    }

    /// What submits to it.
    #[must_use]
    pub fn handle(&self) -> CommitterHandle {
        self.handle.clone()
    }

    /// Commits what is queued, closes the store and ends the threads. Waits for the disk.
    ///
    /// # Errors
    /// The cause, when a commit had failed.
    pub fn stop(mut self) -> Result<(), StoreError> {
        self.join();
        self.handle.shared.failure().map_or(Ok(()), Err)
    }

    fn join(&mut self) {
        let shared = &self.handle.shared;
        let mut queue = shared.queue.lock();
        queue.stopping = true;
        shared.changed.notify_all();
        // A thread that hangs in a system call can't be joined: the process ends without it.
        let hangs = || matches!(shared.failure(), Some(StoreError::Hung(_)));
        while !queue.finished && !hangs() {
            shared.ended.wait(&mut queue);
        }
        let hangs = !queue.finished;
        drop(queue);
        for thread in self.threads.drain(..) {
            if !hangs && thread.join().is_err() {
                tracing::error!("a thread of the committer panicked");
            }
        }
    }
}

impl Drop for Committer {
    fn drop(&mut self) {
        self.join();
    }
}

// === impl CommitterHandle ===

impl CommitterHandle {
    /// Queues a batch, waiting for room.
    ///
    /// Batches are committed in the order in which this returns; whoever wants several in order awaits one after the
    /// other.
    ///
    /// # Errors
    /// [`StoreError::InvalidBatch`] when an operation is malformed; otherwise the cause for which nothing is
    /// committed any more.
    pub async fn submit(&self, operations: Vec<Operation>) -> Result<Submitted, StoreError> {
        let weight = check(&operations)?;
        let Room { shared, permit } = self.reserve(weight).await?;
        shared.push(operations, weight, permit)
    }

    /// Queues a batch if there is room for it.
    ///
    /// # Errors
    /// [`TrySubmitError::Full`] hands the operations back; otherwise as [`CommitterHandle::submit`].
    pub fn try_submit(&self, operations: Vec<Operation>) -> Result<Submitted, TrySubmitError> {
        let weight = check(&operations)?;
        match Arc::clone(&self.shared.room).try_acquire_many_owned(self.shared.units(weight)) {
            Ok(room) => Ok(self.shared.push(operations, weight, room)?),
            Err(TryAcquireError::NoPermits) => Err(TrySubmitError::Full(operations)),
            Err(TryAcquireError::Closed) => Err(self.shared.why_closed().into()),
        }
    }

    /// Waits for room for a batch of about so many bytes ([`Operation::weight`]).
    ///
    /// # Errors
    /// The cause for which nothing is committed any more.
    pub async fn reserve(&self, weight: usize) -> Result<Room, StoreError> {
        let room = Arc::clone(&self.shared.room)
            .acquire_many_owned(self.shared.units(weight))
            .await;
        match room {
            Ok(permit) => Ok(self.room(permit)),
            Err(_) => Err(self.shared.why_closed()),
        }
    }

    /// Takes room for a batch of about so many bytes; `None` if there is none for now.
    ///
    /// # Errors
    /// The cause for which nothing is committed any more.
    pub fn try_reserve(&self, weight: usize) -> Result<Option<Room>, StoreError> {
        match Arc::clone(&self.shared.room).try_acquire_many_owned(self.shared.units(weight)) {
            Ok(permit) => Ok(Some(self.room(permit))),
            Err(TryAcquireError::NoPermits) => Ok(None),
            Err(TryAcquireError::Closed) => Err(self.shared.why_closed()),
        }
    }

    fn room(&self, permit: OwnedSemaphorePermit) -> Room {
        Room {
            shared: Arc::clone(&self.shared),
            permit,
        }
    }

    /// Queues a batch and waits until it is durable.
    ///
    /// # Errors
    /// As [`CommitterHandle::submit`].
    pub async fn commit(&self, operations: Vec<Operation>) -> Result<Vec<Applied>, StoreError> {
        self.submit(operations).await?.completion.await
    }

    /// First id that no submitted message has.
    #[must_use]
    pub fn next_id(&self) -> EntryId {
        self.shared.queue.lock().next_id
    }

    /// The clock that submissions are stamped with.
    #[must_use]
    pub fn clock(&self) -> &BrokerClock {
        &self.shared.clock
    }

    /// Resolves with the cause when nothing can be committed any more; the role exits with it.
    pub async fn failed(&self) -> StoreError {
        let mut failure = self.shared.failure.subscribe();
        match failure.wait_for(Option::is_some).await {
            Ok(cause) => cause.clone().unwrap_or(StoreError::Closed),
            Err(_) => StoreError::Closed,
        }
    }
}

// === impl Room ===

impl Room {
    /// Queues the batch that the room is for.
    ///
    /// # Errors
    /// As [`CommitterHandle::submit`].
    pub fn submit(self, operations: Vec<Operation>) -> Result<Submitted, StoreError> {
        let weight = check(&operations)?;
        self.shared.push(operations, weight, self.permit)
    }
}

fn check(operations: &[Operation]) -> Result<usize, StoreError> {
    let mut weight = 0;
    for operation in operations {
        operation.check()?;
        weight += operation.weight();
    }
    Ok(weight)
}

// === impl Completion ===

impl Future for Completion {
    type Output = Result<Vec<Applied>, StoreError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0)
            .poll(context)
            .map(|answer| answer.unwrap_or(Err(StoreError::Closed)))
    }
}

impl Completion {
    /// Waits on a thread that may block.
    ///
    /// # Errors
    /// The cause, when the batch could not be committed.
    ///
    /// # Panics
    /// When called from within an asynchronous task.
    pub fn wait(self) -> Result<Vec<Applied>, StoreError> {
        self.0.blocking_recv().unwrap_or(Err(StoreError::Closed))
    }
}

// === impl Shared ===

impl Shared {
    /// Units of room that a batch takes; one that is larger than the queue takes all of it.
    fn units(&self, weight: usize) -> u32 {
        u32::try_from(weight.div_ceil(PERMIT_BYTES))
            .unwrap_or(u32::MAX)
            .clamp(1, self.capacity)
    }

    fn push(
        &self,
        operations: Vec<Operation>,
        weight: usize,
        room: OwnedSemaphorePermit,
    ) -> Result<Submitted, StoreError> {
        let (answer, completion) = oneshot::channel();
        // Ids and times are given out under the lock, so that their order is the order of commits.
        let mut queue = self.queue.lock();
        if queue.stopping || queue.finished {
            drop(queue);
            return Err(self.why_closed());
        }
        let first_id = queue.next_id;
        queue.next_id += operations.iter().map(Operation::ids).sum::<u64>();
        let batch = Batch {
            now: self.clock.now(),
            first_id,
            operations,
        };
        queue.pending.push_back(Job {
            batch,
            weight,
            answer,
            room,
        });
        drop(queue);
        self.changed.notify_one();
        Ok(Submitted {
            first_id,
            completion: Completion(completion),
        })
    }

    fn failure(&self) -> Option<StoreError> {
        self.failure.borrow().clone()
    }

    fn why_closed(&self) -> StoreError {
        self.failure().unwrap_or(StoreError::Closed)
    }

    /// Answers everybody with the cause and takes nothing in any more.
    fn fail(&self, cause: &StoreError) {
        tracing::error!(error = %cause, "nothing can be committed any more");
        self.failure.send_if_modified(|failure| {
            let first = failure.is_none();
            failure.get_or_insert_with(|| cause.clone());
            first
        });
        self.room.close();
        let mut queue = self.queue.lock();
        queue.stopping = true;
        let pending = std::mem::take(&mut queue.pending);
        let committing = queue.committing.take();
        drop(queue);
        self.changed.notify_all();
        self.ended.notify_all();
        let waiting = committing.into_iter().flat_map(|(_, answers)| answers);
        for answer in waiting.chain(pending.into_iter().map(|job| job.answer)) {
            drop(answer.send(Err(cause.clone())));
        }
    }

    /// Ends the committer when a commit hangs: a disk that does not answer gives no error either.
    fn watch(&self, hang_after: Duration) {
        let mut queue = self.queue.lock();
        while !queue.finished {
            let since = queue.committing.as_ref().map(|(since, _)| *since);
            let now = Instant::now();
            match since.map(|since| since + hang_after) {
                Some(deadline) if deadline <= now => {
                    drop(queue);
                    self.fail(&StoreError::Hung(hang_after));
                    return;
                }
                Some(deadline) => {
                    self.ended.wait_until(&mut queue, deadline);
                }
                None => {
                    self.ended.wait_for(&mut queue, hang_after / 4);
                }
            }
        }
    }
}

// === impl Worker ===

struct Worker {
    shared: Arc<Shared>,
    store: SharedStore,
    options: CommitterOptions,
}

impl Worker {
    fn run(self) {
        let mut maintained = Instant::now();
        let outcome = loop {
            let due = maintained + self.options.maintain_every;
            let Some(group) = self.next_group(due) else {
                break self.guard(Vec::new(), |store| store.close()).map(drop);
            };
            if let Err(cause) = self.commit(group) {
                break Err(cause);
            }
            if Instant::now() >= due {
                let now = self.shared.clock.now();
                match self.guard(Vec::new(), |store| store.maintain(now)) {
                    // More to do: it goes on after the next group, or at once.
                    Ok((true, _)) => {}
                    Ok((false, _)) => maintained = Instant::now(),
                    Err(cause) => break Err(cause),
                }
            }
        };
        if let Err(cause) = outcome {
            self.shared.fail(&cause);
        }
        self.shared.room.close();
        self.shared.queue.lock().finished = true;
        self.shared.ended.notify_all();
    }

    /// Waits for batches and takes as many as a group holds; empty when background work is due, `None` at the end.
    fn next_group(&self, due: Instant) -> Option<Vec<Job>> {
        let mut queue = self.shared.queue.lock();
        while queue.pending.is_empty() {
            if queue.stopping {
                return None;
            }
            if self.shared.changed.wait_until(&mut queue, due).timed_out() {
                return Some(Vec::new());
            }
        }
        let mut group = Vec::new();
        let mut weight = 0;
        while let Some(job) = queue.pending.front() {
            weight += job.weight;
            if !group.is_empty() && weight > self.options.max_group_bytes {
                break;
            }
            group.extend(queue.pending.pop_front());
        }
        Some(group)
    }

    fn commit(&self, group: Vec<Job>) -> Result<(), StoreError> {
        if group.is_empty() {
            return Ok(());
        }
        let mut batches = Vec::with_capacity(group.len());
        let mut answers = Vec::with_capacity(group.len());
        let mut rooms = Vec::with_capacity(group.len());
        for Job {
            batch,
            weight: _,
            answer,
            room,
        } in group
        {
            batches.push(batch);
            answers.push(answer);
            rooms.push(room);
        }
        let (results, answers) = self.guard(answers, |store| store.commit(&batches))?;
        drop(rooms);
        for (answer, result) in answers.into_iter().zip(results) {
            // Whoever does not wait for the answer has gone.
            drop(answer.send(Ok(result)));
        }
        Ok(())
    }

    /// Runs a function of the store under the watchdog's eyes and returns the answers that are still to be given: none
    /// if the watchdog lost patience and has told everybody. A panic of the engine counts as a failed commit.
    fn guard<T>(
        &self,
        answers: Vec<Answer>,
        function: impl FnOnce(&dyn Store) -> Result<T, StoreError>,
    ) -> Result<(T, Vec<Answer>), StoreError> {
        self.shared.queue.lock().committing = Some((Instant::now(), answers));
        let result = catch_unwind(AssertUnwindSafe(|| function(&*self.store))).unwrap_or_else(|_| {
            Err(StoreError::Engine {
                action: "write",
                cause: "the engine panicked".to_owned(),
            })
        })?;
        let committing = self.shared.queue.lock().committing.take();
        Ok((result, committing.map(|(_, answers)| answers).unwrap_or_default()))
    }
}
