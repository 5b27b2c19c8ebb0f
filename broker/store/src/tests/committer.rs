//! Group commit: order, backpressure, failure.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc,
    },
    time::Duration,
};

use super::publish;
use crate::{
    Applied, Batch, BrokerClock, BrokerTime, Committer, CommitterOptions, Limits, Operation, ReadRange,
    SharedStore, StoreError,
    committer::TrySubmitError,
    engine::{Change, Engine},
    memory::{MemoryEngine, MemoryView},
    queue_store::QueueStore,
};

/// An engine whose writes wait for permission, fail or panic when they are told to.
#[derive(Default)]
struct Obstinate {
    engine: MemoryEngine,
    gate: Gate,
}

#[derive(Clone, Default)]
struct Gate {
    /// Each write takes one word from here, if there is a channel.
    words: Arc<parking_lot::Mutex<Option<mpsc::Receiver<Word>>>>,
    writes: Arc<AtomicUsize>,
}

enum Word {
    Go,
    Fail,
    Panic,
}

impl Engine for Obstinate {
    type View<'e> = MemoryView<'e>;

    fn view(&self) -> MemoryView<'_> {
        self.engine.view()
    }

    fn write(&self, changes: Vec<Change>) -> Result<(), StoreError> {
        let words = self.gate.words.lock();
        match words.as_ref().map(|words| words.recv().unwrap_or(Word::Go)) {
            None | Some(Word::Go) => {}
            Some(Word::Fail) => {
                return Err(StoreError::Engine {
                    action: "write",
                    cause: "no space left on device".to_owned(),
                });
            }
            Some(Word::Panic) => panic!("the engine is out of order"),
        }
        self.gate.writes.fetch_add(1, Ordering::SeqCst);
        self.engine.write(changes)
    }

    fn close(&self, _commits: u64) -> Result<(), StoreError> {
        Ok(())
    }
}

struct Bench {
    store: SharedStore,
    committer: Committer,
    gate: Gate,
    receiver: u64,
}

impl Bench {
    fn new(options: CommitterOptions) -> Self {
        let engine = Obstinate::default();
        let gate = engine.gate.clone();
        let store: SharedStore = Arc::new(QueueStore::open(engine, None, 1).unwrap());
        let put = Operation::PutReceiver {
            name: "a".to_owned(),
            limits: Limits::default(),
        };
        let batch = Batch {
            now: BrokerTime(0),
            first_id: 1,
            operations: vec![put],
        };
        store.commit(&[batch]).unwrap();
        let clock = BrokerClock::manual(BrokerTime(0));
        let committer = Committer::start(Arc::clone(&store), clock, options).unwrap();
        Self {
            store,
            committer,
            gate,
            receiver: 1,
        }
    }

    /// From now on, every write waits for a word.
    fn obey(&self) -> mpsc::Sender<Word> {
        let (speak, listen) = mpsc::channel();
        *self.gate.words.lock() = Some(listen);
        speak
    }

    fn publish(&self) -> Vec<Operation> {
        vec![publish("m", &[self.receiver])]
    }

    fn stored(&self) -> Vec<u64> {
        let range = ReadRange {
            after: 0,
            before: None,
            max_entries: usize::MAX,
            max_bytes: usize::MAX,
        };
        let page = self.store.read(self.receiver, range, BrokerTime(0)).unwrap();
        page.entries.iter().map(|entry| entry.id).collect()
    }
}

/// Rare background work, so that only commits write.
fn quiet() -> CommitterOptions {
    CommitterOptions {
        maintain_every: Duration::from_secs(3600),
        ..CommitterOptions::default()
    }
}

#[tokio::test]
async fn what_arrives_meanwhile_is_one_group_answered_in_order() {
    let bench = Bench::new(quiet());
    let before = bench.gate.writes.load(Ordering::SeqCst);
    let speak = bench.obey();
    let handle = bench.committer.handle();
    let first = handle.submit(bench.publish()).await.unwrap();
    // The first group has begun, or begins with what follows: at most two groups either way.
    let mut rest = Vec::new();
    for _ in 0..99 {
        rest.push(handle.submit(bench.publish()).await.unwrap());
    }
    assert_eq!(first.first_id, 1);
    assert!(rest.iter().map(|submitted| submitted.first_id).eq(2..=100));
    assert!(bench.stored().is_empty());
    speak.send(Word::Go).unwrap();
    speak.send(Word::Go).unwrap();
    assert_eq!(
        first.completion.await.unwrap(),
        [Applied::Published {
            id: 1,
            passed_over: Vec::new()
        }]
    );
    for submitted in rest {
        let id = submitted.first_id;
        let applied = submitted.completion.await.unwrap();
        assert_eq!(
            applied,
            [Applied::Published {
                id,
                passed_over: Vec::new()
            }]
        );
    }
    assert!(bench.gate.writes.load(Ordering::SeqCst) - before <= 2);
    drop(speak);
    bench.committer.stop().unwrap();
}

#[tokio::test]
async fn many_submitters_lose_and_mix_up_nothing() {
    let bench = Bench::new(CommitterOptions {
        max_group_bytes: 2000,
        ..quiet()
    });
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..20 {
        let (handle, receiver) = (bench.committer.handle(), bench.receiver);
        tasks.spawn(async move {
            let mut ids = Vec::new();
            for _ in 0..50 {
                let submitted = handle.submit(vec![publish("m", &[receiver])]).await.unwrap();
                let id = submitted.first_id;
                let applied = submitted.completion.await.unwrap();
                assert_eq!(
                    applied,
                    [Applied::Published {
                        id,
                        passed_over: Vec::new()
                    }]
                );
                ids.push(id);
            }
            assert!(ids.is_sorted());
            ids
        });
    }
    let mut ids: Vec<u64> = tasks.join_all().await.into_iter().flatten().collect();
    ids.sort_unstable();
    assert!(ids.iter().copied().eq(1..=1000));
    assert_eq!(bench.stored(), ids);
}

#[tokio::test]
async fn a_full_queue_holds_submitters_back() {
    let bench = Bench::new(CommitterOptions {
        max_queued_bytes: 1024,
        ..quiet()
    });
    let speak = bench.obey();
    let handle = bench.committer.handle();
    let mut queued = Vec::new();
    let operations = loop {
        match handle.try_submit(bench.publish()) {
            Ok(submitted) => queued.push(submitted),
            Err(TrySubmitError::Full(operations)) => break operations,
            Err(error) => panic!("{error}"),
        }
    };
    assert!(queued.len() < 20);
    let waited = Arc::new(AtomicBool::new(false));
    let waiting = tokio::spawn({
        let (handle, waited) = (handle.clone(), Arc::clone(&waited));
        async move {
            let completion = handle.submit(operations).await.unwrap().completion;
            waited.store(true, Ordering::SeqCst);
            completion.await.unwrap()
        }
    });
    // One that is larger than the queue takes all of it, and no more.
    let large = tokio::spawn({
        let (handle, receiver) = (handle.clone(), bench.receiver);
        async move { handle.commit(vec![publish(&"x".repeat(9000), &[receiver])]).await }
    });
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(!waited.load(Ordering::SeqCst));
    drop(speak);
    for submitted in queued {
        submitted.completion.await.unwrap();
    }
    assert!(matches!(waiting.await.unwrap()[..], [Applied::Published { .. }]));
    assert!(large.await.unwrap().is_ok());
}

#[tokio::test]
async fn reserved_room_is_kept_until_it_is_used_or_given_up() {
    let bench = Bench::new(CommitterOptions {
        max_queued_bytes: 1024,
        ..quiet()
    });
    let handle = bench.committer.handle();
    let room = handle.reserve(1024).await.unwrap();
    assert!(handle.try_reserve(1).unwrap().is_none());
    assert!(matches!(
        handle.try_submit(bench.publish()),
        Err(TrySubmitError::Full(_))
    ));
    // What is made of it may be larger than what was reserved.
    let submitted = room.submit(vec![publish(&"x".repeat(9000), &[bench.receiver])]);
    submitted.unwrap().completion.await.unwrap();
    drop(handle.try_reserve(usize::MAX).unwrap().unwrap());
    assert!(handle.commit(bench.publish()).await.is_ok());
    bench.committer.stop().unwrap();
    assert!(handle.reserve(1).await.is_err() && handle.try_reserve(1).is_err());
}

async fn after_a_failure_nothing_is_acknowledged(word: Word, expected: &str) {
    let bench = Bench::new(quiet());
    let handle = bench.committer.handle();
    handle.commit(bench.publish()).await.unwrap();
    let speak = bench.obey();
    let first = handle.submit(bench.publish()).await.unwrap();
    let second = handle.submit(bench.publish()).await.unwrap();
    speak.send(word).unwrap();
    drop(speak);
    let told = first.completion.await.unwrap_err().to_string();
    assert!(told.contains(expected), "{told}");
    assert!(second.completion.await.is_err());
    assert!(handle.submit(bench.publish()).await.is_err());
    assert!(matches!(
        handle.try_submit(bench.publish()),
        Err(TrySubmitError::Failed(_))
    ));
    assert!(handle.failed().await.to_string().contains(expected));
    assert_eq!(bench.stored(), [1]);
    assert!(bench.committer.stop().unwrap_err().to_string().contains(expected));
}

#[tokio::test]
async fn a_failed_sync_ends_it_with_the_cause() {
    after_a_failure_nothing_is_acknowledged(Word::Fail, "no space left on device").await;
}

#[tokio::test]
async fn a_panic_of_the_engine_ends_it_too() {
    after_a_failure_nothing_is_acknowledged(Word::Panic, "panicked").await;
}

#[tokio::test]
async fn a_hanging_commit_ends_it() {
    let bench = Bench::new(CommitterOptions {
        hang_after: Duration::from_millis(100),
        ..quiet()
    });
    let speak = bench.obey();
    let handle = bench.committer.handle();
    let submitted = handle.submit(bench.publish()).await.unwrap();
    assert!(matches!(submitted.completion.await, Err(StoreError::Hung(_))));
    assert!(matches!(handle.failed().await, StoreError::Hung(_)));
    assert!(matches!(
        handle.commit(bench.publish()).await,
        Err(StoreError::Hung(_))
    ));
    // Stopping does not wait for the thread that hangs.
    assert!(matches!(bench.committer.stop(), Err(StoreError::Hung(_))));
    drop(speak);
}

#[tokio::test]
async fn stopping_commits_what_is_queued() {
    let bench = Bench::new(quiet());
    let speak = bench.obey();
    let handle = bench.committer.handle();
    let mut queued = Vec::new();
    for _ in 0..10 {
        queued.push(handle.submit(bench.publish()).await.unwrap());
    }
    let stopping = tokio::task::spawn_blocking(move || bench.committer.stop());
    drop(speak);
    for submitted in queued {
        submitted.completion.await.unwrap();
    }
    stopping.await.unwrap().unwrap();
    assert!(matches!(handle.submit(Vec::new()).await, Err(StoreError::Closed)));
}

#[tokio::test]
async fn a_malformed_operation_harms_nobody_else() {
    let bench = Bench::new(quiet());
    let handle = bench.committer.handle();
    let malformed = Operation::DeleteSession {
        client_id: "x".repeat(70_000),
    };
    assert!(matches!(
        handle.commit(vec![malformed]).await,
        Err(StoreError::InvalidBatch { .. })
    ));
    assert!(handle.commit(bench.publish()).await.is_ok());
}
