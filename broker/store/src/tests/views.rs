//! What is read while others write: batches as a whole, or not at all.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use super::{damage::small_memtables, everything, publish};
use crate::{Batch, BrokerTime, Limits, Operation, Store, fjall_store::open_queues};

/// Messages of a batch, each to two receivers, and batches.
const MESSAGES: u64 = 200;
const BATCHES: u64 = 300;

/// A flush that ends while a batch is written must not make a part of it visible: an entry would be seen without the content
/// that it shares with others.
#[test]
fn a_batch_is_read_as_a_whole_while_memtables_are_flushed() {
    let home = tempfile::tempdir().unwrap();
    let (store, _) = open_queues(home.path(), &small_memtables()).unwrap();
    let commit = |operations: Vec<Operation>| {
        let batch = Batch {
            now: BrokerTime(0),
            first_id: store.position().next_id,
            operations,
        };
        store.commit(&[batch]).unwrap();
    };
    let put = ["dataflow/a", "dataflow/b"].map(|name| Operation::PutReceiver {
        name: name.to_owned(),
        limits: Limits::default(),
    });
    commit(put.into());
    let written = AtomicBool::new(false);
    let is_over = || written.load(Ordering::SeqCst);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over() {
                store.engine().flush().unwrap();
            }
        });
        let reading = scope.spawn(|| {
            let (mut after, mut pages) = (0, 0);
            while !is_over() {
                let range = crate::ReadRange {
                    after,
                    ..everything()
                };
                let page = store.read(1, range, BrokerTime(0)).unwrap();
                assert!(page.damaged.is_empty(), "after {after}: {:?}", page.damaged);
                let ids: Vec<_> = page.entries.iter().map(|entry| entry.id).collect();
                assert!(
                    ids.iter().copied().eq(after + 1..page.tail),
                    "{ids:?} before {}",
                    page.tail
                );
                assert_eq!((page.tail - 1) % MESSAGES, 0, "a part of a batch");
                pages += u64::from(!ids.is_empty());
                after = page.tail - 1;
            }
            pages
        });
        for _ in 0..BATCHES {
            commit((0..MESSAGES).map(|_| publish("m", &[1, 2])).collect());
        }
        written.store(true, Ordering::SeqCst);
        assert!(reading.join().unwrap() > 1, "nothing was read meanwhile");
    });
}
