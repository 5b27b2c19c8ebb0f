//! Queues that are full, entries that are old.

use std::{sync::Arc, time::Duration};

use foreshore_record::{DropReason, Outcome, Record, TopicFilter, TopicName};

use crate::{
    Applied, Batch, BrokerTime, Direction, Inflight, Limits, Message, Operation, OverflowPolicy, ReceiverId,
    Refusal, Slot, TopicLimit,
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
    a_topic_filter_that_is_full_drops_its_own_oldest,
    a_topic_filter_that_is_full_drops_the_new_one_or_refuses,
    messages_of_a_topic_filter_grow_old,
    limits_by_topic_filter_can_be_changed,
    the_oldest_of_a_topic_filter_is_found_among_many_others,
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
    assert_eq!(page.entries, before[..2]);
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

// === limits by topic filter ===

fn at(topic: &str, payload: &str) -> Message {
    let mut record = Record::clone(&message(payload).record);
    record.topic = TopicName::new(topic).unwrap();
    Message {
        record: Arc::new(record),
        expires_at: None,
    }
}

fn topic_limit(filter: &str, overflow: OverflowPolicy) -> TopicLimit {
    TopicLimit {
        filter: TopicFilter::new(filter).unwrap(),
        max_messages: None,
        max_bytes: None,
        max_age: None,
        overflow,
    }
}

fn set(store: &Harness, limits: Vec<TopicLimit>) {
    assert_eq!(store.one(Operation::SetTopicLimits { limits }), Applied::Done);
}

fn at_most_two(filter: &str, overflow: OverflowPolicy) -> TopicLimit {
    TopicLimit {
        max_messages: Some(2),
        ..topic_limit(filter, overflow)
    }
}

fn a_topic_filter_that_is_full_drops_its_own_oldest(mut store: Harness) {
    let limit = at_most_two("video/#", OverflowPolicy::DropOldest);
    set(
        &store,
        vec![limit.clone(), topic_limit("#", OverflowPolicy::DropOldest)],
    );
    let own = Limits {
        own_limits_only: true,
        ..Limits::default()
    };
    let (session, dataflow) = (
        store.receiver("session/a", Limits::default()),
        store.receiver("dataflow/b", own),
    );
    store.commit(vec![
        publish_message(at("alarm/1", "a1"), &[session, dataflow]),
        publish_message(at("video/1", "v1"), &[session, dataflow]),
        publish_message(at("alarm/2", "a2"), &[session]),
        publish_message(at("video/2", "v2"), &[session, dataflow]),
    ]);
    store.reopen(false);
    // What was counted before the restart counts.
    store.one(publish_message(at("video/3", "v3"), &[session, dataflow]));
    store.reopen(true);
    store.one(publish_message(at("video/4", "v4"), &[session, dataflow]));
    assert_eq!(store.payloads(session), ["a1", "a2", "v3", "v4"]);
    assert_eq!(store.payloads(dataflow), ["a1", "v1", "v2", "v3", "v4"]);
    let totals = store.totals(session);
    assert_eq!(totals.ledger.dropped["topic_overflow_oldest"], 2);
    let waiting = totals
        .topics
        .iter()
        .find(|waiting| waiting.key == limit.key())
        .unwrap();
    assert_eq!((waiting.entries, waiting.bytes), (2, 2 * 9));
    let of_filter = &store.store().topics().unwrap()[0];
    assert_eq!((of_filter.waiting, of_filter.waiting_bytes), (2, 18));
    assert_eq!((of_filter.dropped_oldest, &of_filter.limit), (2, &limit));

    // What is delivered makes room, and an ended session leaves nothing behind.
    let ids: Vec<_> = store.entries(session).iter().map(|entry| entry.id).collect();
    store.settle(session, 0, &ids[2..]);
    assert_eq!(store.store().topics().unwrap()[0].waiting, 0);
    store.one(publish_message(at("video/5", "v5"), &[session]));
    assert_eq!(store.totals(session).ledger.dropped["topic_overflow_oldest"], 2);
    store.one(Operation::DropReceiver {
        receiver: session,
        reason: DropReason::SESSION_ENDED,
    });
    let topics = store.store().topics().unwrap();
    assert_eq!([topics[0].waiting, topics[1].waiting], [0, 0]);
}

fn a_topic_filter_that_is_full_drops_the_new_one_or_refuses(store: Harness) {
    set(
        &store,
        vec![
            at_most_two("new/#", OverflowPolicy::DropNew),
            at_most_two("reject/#", OverflowPolicy::Reject),
            TopicLimit {
                max_bytes: Some(20),
                ..topic_limit("bytes/#", OverflowPolicy::DropOldest)
            },
        ],
    );
    let (full, empty) = (
        store.receiver("session/a", Limits::default()),
        store.receiver("session/b", Limits::default()),
    );
    for _ in 0..2 {
        store.one(publish_message(at("new/1", "n"), &[full]));
        store.one(publish_message(at("reject/1", "r"), &[full]));
    }
    // Each queue has its own count: the one that is empty takes it.
    assert_eq!(
        store.one(publish_message(at("new/1", "n"), &[full, empty])),
        Applied::Published {
            id: 5,
            passed_over: vec![(full, DropReason::TOPIC_OVERFLOW_NEW)]
        }
    );
    assert_eq!(
        store.one(publish_message(at("reject/1", "r"), &[empty, full])),
        Applied::Refused(Refusal::QueueFull { receiver: full })
    );
    assert_eq!(store.payloads(empty), ["n"]);
    // By bytes: topic and payload count.
    for payload in ["1234", "12345", "123456789012345"] {
        store.one(publish_message(at("bytes/1", payload), &[empty]));
    }
    assert_eq!(store.payloads(empty), ["n", "12345"]);
    let dropped = store.totals(empty).ledger.dropped;
    assert_eq!((dropped["topic_overflow_oldest"], dropped["too_large"]), (1, 1));
    let topics = store.store().topics().unwrap();
    assert_eq!((topics[0].dropped_new, topics[0].waiting), (1, 3));
    assert_eq!((topics[1].refused, topics[1].waiting), (1, 2));
    assert_eq!(store.totals(full).ledger.dropped["topic_overflow_new"], 1);
}

fn messages_of_a_topic_filter_grow_old(mut store: Harness) {
    let limit = |seconds| TopicLimit {
        max_age: Some(Duration::from_secs(seconds)),
        ..topic_limit("video/#", OverflowPolicy::DropOldest)
    };
    set(&store, vec![limit(10)]);
    let receiver = store.receiver("session/a", Limits::default());
    store.one(publish_message(at("alarm/1", "a1"), &[receiver]));
    store.one(publish_message(at("video/1", "v1"), &[receiver]));
    store.wait(6);
    store.one(publish_message(at("video/2", "v2"), &[receiver]));
    store.reopen(false);
    store.wait(6);
    store.maintain();
    assert_eq!(store.payloads(receiver), ["a1", "v2"]);
    // A shorter age holds at once, for what waits as well.
    set(&store, vec![limit(3)]);
    store.maintain();
    assert_eq!(store.payloads(receiver), ["a1"]);
    assert_eq!(store.totals(receiver).ledger.dropped["topic_age_limit"], 2);
    assert_eq!(store.store().topics().unwrap()[0].dropped_aged, 2);
    assert_eq!(store.totals(receiver).topics, []);
}

fn limits_by_topic_filter_can_be_changed(mut store: Harness) {
    let receiver = store.receiver("session/a", Limits::default());
    store.one(publish_message(at("video/0", "v0"), &[receiver]));
    let limit = at_most_two("video/#", OverflowPolicy::DropOldest);
    set(&store, vec![limit.clone()]);
    for index in 1..5 {
        store.one(publish_message(at("video/1", &format!("v{index}")), &[receiver]));
    }
    // What waited before the limit was there is not its own.
    assert_eq!(store.payloads(receiver), ["v0", "v3", "v4"]);
    set(&store, Vec::new());
    store.one(publish_message(at("video/1", "v5"), &[receiver]));
    store.reopen(true);
    assert_eq!(store.store().topics().unwrap(), []);
    assert_eq!(store.payloads(receiver), ["v0", "v3", "v4", "v5"]);
    // What the limit counted when it was there counts again when it is back.
    set(&store, vec![limit.clone(), limit]);
    let topics = store.store().topics().unwrap();
    assert_eq!((topics.len(), topics[0].waiting), (1, 2));
    store.one(publish_message(at("video/1", "v6"), &[receiver]));
    assert_eq!(store.payloads(receiver), ["v0", "v4", "v5", "v6"]);
}

fn the_oldest_of_a_topic_filter_is_found_among_many_others(store: Harness) {
    set(&store, vec![at_most_two("video/#", OverflowPolicy::DropOldest)]);
    let receiver = store.receiver("session/a", Limits::default());
    let video = |index: u32| publish_message(at("video/1", &format!("v{index}")), &[receiver]);
    let others = || (0..6_000).map(|_| publish("o", &[receiver])).collect();
    store.one(video(1));
    store.one(video(2));
    store.commit(others());
    store.one(video(3));
    store.one(video(4));
    // Both that are left lie behind the others: a message looks at some of these, and the next goes on from there.
    let mut waiting = Vec::new();
    for index in 5..9 {
        store.one(video(index));
        waiting.push(store.store().topics().unwrap()[0].waiting);
    }
    assert_eq!(waiting.last(), Some(&2), "{waiting:?}");
    assert!(waiting.iter().all(|waiting| *waiting <= 3), "{waiting:?}");
    let totals = store.totals(receiver);
    assert_eq!(
        (
            totals.ledger.waiting,
            totals.ledger.dropped["topic_overflow_oldest"]
        ),
        (6_002, 6)
    );
}
