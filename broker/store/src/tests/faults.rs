//! A disk that runs full.

use std::sync::atomic::Ordering;

use super::{Harness, message, numbered, options, publish, publish_message};
use crate::{Applied, BrokerTime, Limits, Operation, Publish, Refusal, Space, StoreOptions};

#[test]
fn below_the_watermark_publishes_are_refused_and_settlements_go_on() {
    let store = Harness::memory();
    let receiver = store.receiver("a", Limits::default());
    store.publish("m", &[receiver]);
    store.free.store(super::WATERMARK - 1, Ordering::SeqCst);
    assert_eq!(
        store.one(publish("m", &[receiver])),
        Applied::Refused(Refusal::NoSpace)
    );
    let refused = store.one(publish_message(numbered("m", 1, 1), &[receiver]));
    assert_eq!(refused, Applied::Refused(Refusal::NoSpace));
    assert_eq!(
        store
            .store()
            .source("connector/plant/line")
            .unwrap()
            .unwrap()
            .refused,
        1
    );
    // Without anything to store, there is nothing to refuse.
    assert!(matches!(store.one(publish("m", &[])), Applied::Published { .. }));
    assert_eq!(
        store.settle(receiver, 0, &[1]),
        Applied::Settled {
            settled: 1,
            unknown: 0
        }
    );
    let forget = Publish {
        message: message(""),
        receivers: Vec::new(),
        update_retained: true,
        receipt: None,
    };
    assert!(matches!(
        store.one(Operation::Publish(forget)),
        Applied::Published { .. }
    ));
    store.free.store(super::WATERMARK, Ordering::SeqCst);
    assert!(matches!(
        store.one(publish("m", &[receiver])),
        Applied::Published { .. }
    ));
    assert_eq!(store.totals(receiver).ledger.received, 2);
}

#[test]
fn the_disk_is_asked_for_its_free_space() {
    let home = tempfile::tempdir().unwrap();
    let (store, _) = crate::open(home.path(), &options()).unwrap();
    let Space { free, watermark } = store.space().unwrap();
    assert!(free > 0 && watermark == 0);
    drop(store);
    let options = StoreOptions {
        free_space_watermark: u64::MAX,
        ..options()
    };
    let (store, _) = crate::open(home.path(), &options).unwrap();
    assert!(store.space().unwrap().is_low());
    let put = Operation::PutReceiver {
        name: "a".to_owned(),
        limits: Limits::default(),
    };
    let operations = vec![put, publish("m", &[1])];
    let batch = crate::Batch {
        now: BrokerTime(0),
        first_id: 1,
        operations,
    };
    assert_eq!(
        store.commit(&[batch]).unwrap()[0][1],
        Applied::Refused(Refusal::NoSpace)
    );
}
