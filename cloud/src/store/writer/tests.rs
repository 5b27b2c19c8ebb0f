use std::sync::{Barrier, mpsc};

use super::*;
use crate::store::{Store, tests::open};

fn put(context: &mut Context<'_>, name: &str, value: i64) -> Result<(), StoreError> {
    context.connection.execute(
        "INSERT INTO numbers (name, value) VALUES (?1, ?2)",
        rusqlite::params![name, value],
    )?;
    Ok(())
}

async fn get(store: &Store, name: &'static str) -> Option<i64> {
    use rusqlite::OptionalExtension;
    let value = store.read(move |connection| {
        let sql = "SELECT value FROM numbers WHERE name = ?1";
        Ok(connection.query_row(sql, [name], |row| row.get(0)).optional()?)
    });
    value.await.unwrap()
}

/// Holds the thread in a request until the barrier is met, so that what is asked meanwhile shares a transaction.
async fn hold(store: &Store) -> Arc<Barrier> {
    let (begun, has_begun) = mpsc::channel();
    let barrier = Arc::new(Barrier::new(2));
    let (store, waits) = (store.clone(), Arc::clone(&barrier));
    tokio::spawn(async move {
        let held = store.write(Priority::Control, 1, move |_| {
            begun.send(()).unwrap();
            waits.wait();
            Ok(())
        });
        held.await.unwrap();
    });
    tokio::task::spawn_blocking(move || has_begun.recv().unwrap())
        .await
        .unwrap();
    barrier
}

#[tokio::test]
async fn requests_of_one_transaction_do_not_share_their_failures() {
    let opened = open();
    let store = &opened.store;
    let barrier = hold(store).await;
    let first = store.write(Priority::Control, 1, |context| put(context, "a", 1));
    let second = store.write(Priority::Control, 1, |context| {
        put(context, "b", 2)?;
        put(context, "a", 2)
    });
    let third = store.write(Priority::Control, 1, |_| -> Result<(), StoreError> {
        panic!("on purpose")
    });
    let fourth = store.write(Priority::Control, 1, |context| put(context, "c", 3));
    let release = tokio::task::spawn_blocking(move || {
        // All four are in the queue by the time that the future below was polled once.
        thread::sleep(std::time::Duration::from_millis(200));
        barrier.wait();
    });
    let (first, second, third, fourth) = tokio::join!(first, second, third, fourth);
    release.await.unwrap();
    assert_eq!((first, fourth), (Ok(()), Ok(())));
    for failed in [second, third] {
        assert!(matches!(failed, Err(StoreError::Failed { .. })), "{failed:?}");
    }
    assert_eq!(
        (
            get(store, "a").await,
            get(store, "b").await,
            get(store, "c").await
        ),
        (Some(1), None, Some(3))
    );
}

#[tokio::test]
async fn the_urgent_goes_first_and_nothing_starves() {
    let waiting = |weight| Waiting {
        request: Box::new(Asked {
            work: Some(|_: &mut Context<'_>| Ok(())),
            result: None,
            reply: oneshot::channel::<Result<(), StoreError>>().0,
        }),
        weight,
        _room: Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap(),
    };
    let mut queues = Queues::default();
    let push = |queues: &mut Queues, priority: Priority, weight, times| {
        for _ in 0..times {
            queues.waiting[priority.index()].push_back(waiting(weight));
        }
    };
    push(&mut queues, Priority::Lane(Lane::Backlog), 9_000, 5);
    push(&mut queues, Priority::Lane(Lane::Live), 9_000, 3);
    push(&mut queues, Priority::Lane(Lane::Alarm), 10, 2);
    let left = |queues: &Queues| -> Vec<usize> { queues.waiting.iter().map(VecDeque::len).collect() };
    // Both alarms, two live batches, which fill the transaction, and one of the backlog nevertheless.
    assert_eq!(queues.take().len(), 5);
    assert_eq!(left(&queues), [0, 0, 1, 4, 0, 0]);
    push(&mut queues, Priority::Control, 1, 1);
    assert_eq!(queues.take().len(), 3);
    assert_eq!(left(&queues), [0, 0, 0, 3, 0, 0]);
    assert_eq!(queues.take().len(), 2);
}

#[tokio::test]
async fn a_closed_store_commits_what_waited_and_refuses_the_rest() {
    let opened = open();
    let store = opened.store.clone();
    let barrier = hold(&store).await;
    let waited = tokio::spawn({
        let store = store.clone();
        async move {
            store
                .write(Priority::Upkeep, 1, |context| put(context, "waited", 1))
                .await
        }
    });
    let closed = tokio::spawn({
        let store = store.clone();
        async move { store.close().await }
    });
    tokio::task::spawn_blocking(move || {
        thread::sleep(std::time::Duration::from_millis(200));
        barrier.wait();
    })
    .await
    .unwrap();
    assert_eq!(waited.await.unwrap(), Ok(()));
    closed.await.unwrap();
    let late = store
        .write(Priority::Control, 1, |context| put(context, "late", 1))
        .await;
    assert_eq!(late, Err(StoreError::Closed));
    assert_eq!(
        (get(&store, "waited").await, get(&store, "late").await),
        (Some(1), None)
    );
}
