//! Queues that are full, entries that are old.

use std::time::Duration;

use foreshore_record::{DropReason, Outcome};

use crate::{
    Applied, Batch, BrokerTime, Direction, Entry, Inflight, Limits, Message, Operation, OverflowPolicy,
    ReceiverId, Refusal, Slot,
    tests::{Harness, message, payload_of, publish, publish_message},
};

over_all_back_ends!(
    a_full_queue_rejects,
    a_full_queue_drops_the_oldest,
    a_full_queue_drops_the_new_one,
    old_entries_leave,
    expired_entries_are_told_to_the_reader,
    what_was_sent_with_quality_of_service_two_does_not_expire,
    the_clock_never_runs_backwards,
    limits_can_be_changed,
);

fn a_full_queue_rejects(store: Harness) {
    let limits = Limits {
        max_bytes: Some(45),
        overflow: OverflowPolicy::Reject,
        ..Limits::default()
    };
    let (full, other) = (
        store.receiver("full", limits),
        store.receiver("other", Limits::default()),
    );
    let publish = || store.one(publish("0123456789", &[other, full]));
    assert!(matches!(publish(), Applied::Published { .. }));
    assert!(matches!(publish(), Applied::Published { .. }));
    assert_eq!(publish(), Applied::Refused(Refusal::QueueFull { receiver: full }));
    assert_eq!(
        [full, other].map(|receiver| store.totals(receiver).ledger.received),
        [2, 2]
    );
    store.settle(full, 0, &[1]);
    assert!(matches!(publish(), Applied::Published { .. }));
}

fn a_full_queue_drops_the_oldest(mut store: Harness) {
    let limits = Limits {
        max_bytes: Some(45),
        ..Limits::default()
    };
    let (full, other) = (
        store.receiver("full", limits),
        store.receiver("other", Limits::default()),
    );
    let operations = (0..5)
        .map(|index| publish(&format!("012345678{index}"), &[full, other]))
        .collect();
    store.commit(operations);
    store.reopen(false);
    assert_eq!(store.payloads(full), ["0123456783", "0123456784"]);
    let applied = store.one(publish(&"x".repeat(50), &[full, other]));
    assert_eq!(
        applied,
        Applied::Published {
            id: 6,
            passed_over: vec![(full, DropReason::TOO_LARGE)]
        }
    );
    store.publish("small", &[full, other]);
    assert_eq!(store.payloads(full), ["0123456784", "small"]);
    let ledger = store.totals(full).ledger;
    assert_eq!(
        (
            ledger.received,
            ledger.dropped["overflow_oldest"],
            ledger.dropped["too_large"]
        ),
        (7, 4, 1)
    );
    assert_eq!(store.entries(other).len(), 7);
}

fn a_full_queue_drops_the_new_one(store: Harness) {
    let limits = Limits {
        max_bytes: Some(45),
        overflow: OverflowPolicy::DropNew,
        ..Limits::default()
    };
    let (full, other) = (
        store.receiver("full", limits),
        store.receiver("other", Limits::default()),
    );
    for index in 0..4 {
        store.publish(&format!("012345678{index}"), &[full, other]);
    }
    assert_eq!(store.payloads(full), ["0123456780", "0123456781"]);
    let totals = store.totals(full);
    assert_eq!(
        (
            totals.ledger.received,
            totals.ledger.dropped["overflow_new"],
            totals.head
        ),
        (4, 2, 1)
    );
    assert_eq!(store.entries(other).len(), 4);
}

fn old_entries_leave(store: Harness) {
    let limits = Limits {
        max_age: Some(Duration::from_secs(10)),
        ..Limits::default()
    };
    let receivers = ["a", "b", "c"].map(|name| store.receiver(name, limits.clone()));
    let aged = |receiver| {
        store
            .totals(receiver)
            .ledger
            .dropped
            .get("age_limit")
            .copied()
            .unwrap_or_default()
    };
    store.publish("m1", &receivers);
    store.wait(6);
    store.publish("m2", &receivers);
    store.wait(6);
    // At the next publish, by a sweep, or in the background.
    store.publish("m3", &receivers[..1]);
    assert_eq!(store.payloads(receivers[0]), ["m2", "m3"]);
    let applied = store.one(Operation::Sweep {
        receiver: receivers[1],
    });
    assert_eq!(
        applied,
        Applied::Affected {
            count: 1,
            more: false
        }
    );
    store.maintain();
    assert_eq!(receivers.map(aged), [1, 1, 1]);
    assert_eq!(store.totals(receivers[2]).oldest, Some(BrokerTime(6000)));
    store.wait(5);
    store.maintain();
    assert_eq!(receivers.map(aged), [2, 2, 2]);
    assert_eq!(store.payloads(receivers[0]), ["m3"]);
}

fn expiring(store: &Harness, payload: &str, seconds: u64, receivers: &[ReceiverId]) -> Operation {
    let expires_at = Some(store.clock.now().after(Duration::from_secs(seconds)));
    publish_message(
        Message {
            expires_at,
            ..message(payload)
        },
        receivers,
    )
}

fn expired_entries_are_told_to_the_reader(mut store: Harness) {
    let receiver = store.receiver("a", Limits::default());
    let operations = vec![
        expiring(&store, "1s", 1, &[receiver]),
        publish("never", &[receiver]),
        expiring(&store, "1s too", 1, &[receiver]),
        expiring(&store, "9s", 9, &[receiver]),
    ];
    store.commit(operations);
    store.wait(2);
    store.reopen(false);
    let page = store.page(receiver);
    assert_eq!(
        page.entries.iter().map(payload_of).collect::<Vec<_>>(),
        ["never", "9s"]
    );
    assert_eq!(page.expired, [1, 3]);
    store.maintain();
    assert_eq!(store.totals(receiver).head, 2);
    store.settle_as(
        receiver,
        3,
        Outcome::Dropped {
            reason: DropReason::EXPIRED,
        },
    );
    let totals = store.totals(receiver);
    assert_eq!((totals.ledger.dropped["expired"], totals.ledger.waiting), (2, 2));
}

fn what_was_sent_with_quality_of_service_two_does_not_expire(mut store: Harness) {
    let [own, other] = ["a", "b"].map(|name| store.receiver(name, Limits::default()));
    // The first has its record in its row, the second shares it with another queue.
    store.commit(vec![
        expiring(&store, "inline", 1, &[own]),
        expiring(&store, "shared", 1, &[own, other]),
        expiring(&store, "not sent", 1, &[own]),
    ]);
    let before = store.page(own).entries;
    for (packet_id, id) in [(1, 1), (2, 2)] {
        let slot = Slot {
            session: own,
            direction: Direction::Outbound,
            packet_id,
        };
        let state = Inflight::Sent { receiver: own, id };
        store.one(Operation::SetInflight { slot, state });
    }
    store.wait(2);
    store.maintain();
    store.reopen(false);
    store.maintain();
    let page = store.page(own);
    assert_eq!(
        page.entries.iter().map(payload_of).collect::<Vec<_>>(),
        ["inline", "shared"]
    );
    // Nothing else of them has changed.
    let sent = |entry: &Entry| Entry {
        sent: true,
        ..entry.clone()
    };
    let expected: Vec<_> = before.iter().take(2).map(sent).collect();
    assert_eq!(page.entries, expected);
    assert_eq!(page.expired, [3]);
    assert_eq!(
        store.page(other).expired.len() + store.page(other).entries.len(),
        0
    );
    store.settle(own, 0, &[1, 2]);
    assert_eq!(store.page(own).entries, []);
}

fn the_clock_never_runs_backwards(mut store: Harness) {
    let receiver = store.receiver("a", Limits::default());
    let batch = |now, first_id| Batch {
        now: BrokerTime(now),
        first_id,
        operations: vec![publish("m", &[receiver])],
    };
    store.store().commit(&[batch(500, 1), batch(400, 2)]).unwrap();
    assert_eq!(
        store
            .entries(receiver)
            .iter()
            .map(|entry| entry.ingested_at.0)
            .collect::<Vec<_>>(),
        [500, 500]
    );
    store.reopen(true);
    assert_eq!(store.store().position().now, BrokerTime(500));
    // Without commits, background work writes the time down.
    store.store().maintain(BrokerTime(100_000)).unwrap();
    store.reopen(false);
    assert_eq!(store.store().position().now, BrokerTime(100_000));
}

fn limits_can_be_changed(mut store: Harness) {
    let receiver = store.receiver("a", Limits::default());
    for _ in 0..4 {
        store.publish("0123456789", &[receiver]);
    }
    let limits = Limits {
        max_bytes: Some(45),
        max_attempts: Some(2),
        ..Limits::default()
    };
    assert_eq!(store.receiver("a", limits.clone()), receiver);
    store.reopen(false);
    assert_eq!(store.store().receivers(0, 9).unwrap()[0].limits, limits);
    store.publish("0123456789", &[receiver]);
    assert_eq!(store.totals(receiver).ledger.dropped["overflow_oldest"], 3);
    assert_eq!(store.store().find_receiver("a").unwrap(), Some(receiver));
}
