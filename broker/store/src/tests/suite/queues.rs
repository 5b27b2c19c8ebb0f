//! Entries come, are read, and leave.

use foreshore_record::DropReason;

use crate::{
    Applied, Batch, BrokerTime, Direction, Inflight, Limits, Operation, ReadRange, Settlement, Slot,
    StoreError,
    tests::{Harness, dead_letter, everything, payload_of, publish},
};

over_all_back_ends!(
    entries_are_read_in_order_and_leave_once,
    settling_out_of_order_moves_the_head_to_the_lowest_that_waits,
    a_message_for_several_is_stored_once_and_goes_with_the_last,
    what_comes_and_goes_in_one_group_is_counted_and_not_written,
    groups_are_applied_in_their_order,
    reads_are_bounded,
    ids_and_receivers_are_never_given_twice,
    an_ended_receiver_drops_what_waits_and_leaves_nothing,
    invalid_batches_are_refused,
);

fn entries_are_read_in_order_and_leave_once(mut store: Harness) {
    let receiver = store.receiver("session/a", Limits::default());
    let ids: Vec<_> = (0..5)
        .map(|index| store.publish(&format!("m{index}"), &[receiver]))
        .collect();
    assert_eq!(ids, [1, 2, 3, 4, 5]);
    store.reopen(true);
    assert_eq!(store.payloads(receiver), ["m0", "m1", "m2", "m3", "m4"]);
    assert_eq!(
        store.settle(receiver, 0, &[1, 2]),
        Applied::Settled {
            settled: 2,
            unknown: 0
        }
    );
    assert_eq!(
        store.settle(receiver, 0, &[2, 3]),
        Applied::Settled {
            settled: 1,
            unknown: 1
        }
    );
    store.reopen(false);
    let entry = store.entries(receiver).remove(0);
    assert_eq!(
        (entry.id, entry.attempt, payload_of(&entry).as_str()),
        (4, 0, "m3")
    );
    let totals = store.totals(receiver);
    assert_eq!(
        (
            totals.ledger.received,
            totals.ledger.delivered,
            totals.ledger.waiting
        ),
        (5, 3, 2)
    );
    assert_eq!(
        (totals.head, totals.waiting_bytes),
        (4, 2 * u64::from(entry.size))
    );
    assert_eq!(totals.ledger.path, "session/a");
}

fn settling_out_of_order_moves_the_head_to_the_lowest_that_waits(store: Harness) {
    let receiver = store.receiver("session/a", Limits::default());
    for _ in 0..6 {
        store.publish("m", &[receiver]);
    }
    let settle = |ids: &[u64]| {
        store.settle(receiver, 0, ids);
        store.totals(receiver).head
    };
    assert_eq!(settle(&[3, 5]), 1);
    assert_eq!(settle(&[2]), 1);
    assert_eq!(settle(&[1]), 4);
    assert_eq!(settle(&[6, 4]), 7);
    assert_eq!(store.totals(receiver).waiting_bytes, 0);
    assert_eq!(store.publish("m", &[receiver]), 7);
    assert_eq!(store.totals(receiver).head, 7);
}

fn a_message_for_several_is_stored_once_and_goes_with_the_last(mut store: Harness) {
    let receivers = ["a", "b", "c"].map(|name| store.receiver(name, Limits::default()));
    store.publish("shared", &receivers);
    store.settle(receivers[1], 0, &[1]);
    store.reopen(false);
    assert_eq!(store.payloads(receivers[0]), ["shared"]);
    assert_eq!(store.payloads(receivers[1]), [""; 0]);
    store.settle(receivers[0], 0, &[1]);
    assert_eq!(store.payloads(receivers[2]), ["shared"]);
    store.settle(receivers[2], 0, &[1]);
    receivers
        .iter()
        .for_each(|receiver| assert_eq!(store.totals(*receiver).ledger.delivered, 1));
}

fn what_comes_and_goes_in_one_group_is_counted_and_not_written(store: Harness) {
    let receivers = ["a", "b"].map(|name| store.receiver(name, Limits::default()));
    let settle = |receiver| Operation::Settle {
        receiver,
        epoch: 0,
        settlements: vec![Settlement::delivered(1)],
    };
    let applied = store.commit(vec![
        publish("m", &receivers),
        settle(receivers[0]),
        settle(receivers[1]),
        publish("n", &receivers),
    ]);
    assert_eq!(
        applied[1],
        Applied::Settled {
            settled: 1,
            unknown: 0
        }
    );
    for receiver in receivers {
        assert_eq!(store.payloads(receiver), ["n"]);
        let totals = store.totals(receiver);
        assert_eq!(
            (totals.ledger.received, totals.ledger.delivered, totals.head),
            (2, 1, 2)
        );
    }
}

fn groups_are_applied_in_their_order(store: Harness) {
    let receiver = store.receiver("a", Limits::default());
    let batch = |first_id, operations| Batch {
        now: BrokerTime(first_id),
        first_id,
        operations,
    };
    let group = [
        batch(1, vec![publish("m1", &[receiver]), publish("m2", &[receiver])]),
        // Ids may be given out and never committed.
        batch(10, vec![publish("m10", &[receiver])]),
        batch(11, vec![Operation::OpenPath { receiver }]),
    ];
    let applied = store.store().commit(&group).unwrap();
    assert_eq!(applied.iter().map(Vec::len).collect::<Vec<_>>(), [2, 1, 1]);
    assert!(matches!(applied[2][0], Applied::Opened(opening) if opening.head == 1 && opening.tail == 11));
    assert_eq!(store.payloads(receiver), ["m1", "m2", "m10"]);
    assert_eq!(store.store().position().next_id, 11);
}

fn reads_are_bounded(store: Harness) {
    let receiver = store.receiver("a", Limits::default());
    for _ in 0..6 {
        store.publish("0123456789", &[receiver]);
    }
    let read = |range| store.store().read(receiver, range, BrokerTime(0)).unwrap();
    let page = read(ReadRange {
        max_entries: 2,
        ..everything()
    });
    assert_eq!(
        (page.entries.len(), page.resume_after, page.at_end, page.tail),
        (2, 2, false, 7)
    );
    let size = page.entries[0].size as usize;
    let page = read(ReadRange {
        after: 2,
        max_bytes: 3 * size,
        ..everything()
    });
    assert_eq!(
        (page.entries.len(), page.resume_after, page.at_end),
        (3, 5, false)
    );
    let page = read(ReadRange {
        max_bytes: 1,
        ..everything()
    });
    assert_eq!(page.entries.len(), 1);
    let page = read(ReadRange {
        after: 1,
        before: Some(4),
        ..everything()
    });
    assert_eq!(
        page.entries.iter().map(|entry| entry.id).collect::<Vec<_>>(),
        [2, 3]
    );
    assert!(page.at_end);
    assert!(
        read(ReadRange {
            after: 5,
            before: Some(2),
            ..everything()
        })
        .entries
        .is_empty()
    );
    assert!(store.page(99).at_end);
}

fn ids_and_receivers_are_never_given_twice(mut store: Harness) {
    let first = store.receiver("a", Limits::default());
    let id = store.publish("m", &[first]);
    let epoch = store.entries(first)[0].store_epoch;
    store.one(Operation::DropReceiver {
        receiver: first,
        reason: DropReason::SESSION_ENDED,
    });
    store.reopen(false);
    let second = store.receiver("a", Limits::default());
    assert!(second > first);
    assert!(store.publish("m", &[second]) > id);
    assert_eq!(
        store.entries(second)[0].store_epoch,
        store.store().position().epoch
    );
    assert_eq!(epoch != store.entries(second)[0].store_epoch, store.is_on_disk());
    let kept = store.entries(second)[0].store_epoch;
    store.reopen(true);
    assert_eq!(store.entries(second)[0].store_epoch, kept);
}

fn an_ended_receiver_drops_what_waits_and_leaves_nothing(mut store: Harness) {
    let [ended, other] = ["session/a", "session/b"].map(|name| store.receiver(name, Limits::default()));
    let mut operations: Vec<_> = (0..2500).map(|_| publish("both", &[ended, other])).collect();
    operations.push(publish("own", &[ended]));
    store.commit(operations);
    store.settle(ended, 0, &[1, 2, 3]);
    store.settle_as(ended, 4, dead_letter("r"));
    let slot = Slot {
        session: ended,
        direction: Direction::Outbound,
        packet_id: 1,
    };
    store.one(Operation::SetInflight {
        slot,
        state: Inflight::Released,
    });
    let drop = Operation::DropReceiver {
        receiver: ended,
        reason: DropReason::SESSION_ENDED,
    };
    assert_eq!(
        store.one(drop.clone()),
        Applied::Affected {
            count: 1,
            more: false
        }
    );
    assert_eq!(store.one(drop), Applied::UnknownReceiver);
    assert_eq!(store.store().totals(ended).unwrap(), None);
    assert_eq!(store.store().find_receiver("session/a").unwrap(), None);
    assert_eq!(
        store.one(publish("m", &[ended])),
        Applied::Published {
            id: 2502,
            passed_over: Vec::new()
        }
    );
    let sum = store.store().ended().unwrap().remove(0);
    assert_eq!(
        (sum.kind.as_str(), sum.paths, sum.counts.waiting()),
        ("session", 1, 0)
    );
    assert_eq!(
        (sum.counts.received, sum.counts.dropped["session_ended"]),
        (2501, 2497)
    );
    assert!(store.store().maintain(store.clock.now()).unwrap());
    store.reopen(false);
    store.maintain();
    assert!(store.page(ended).entries.is_empty());
    assert!(store.store().dead_letters(ended, 0, 9).unwrap().is_empty());
    assert!(store.store().inflight(ended).unwrap().is_empty());
    assert_eq!(store.entries(other).len(), 2500);
    assert!(store.page(other).damaged.is_empty());
    assert_eq!(store.store().receivers(0, 9).unwrap().len(), 1);
}

fn invalid_batches_are_refused(store: Harness) {
    let receiver = store.receiver("a", Limits::default());
    store.publish("m", &[receiver]);
    let operations = vec![publish("m", &[receiver])];
    let late = Batch {
        now: BrokerTime(0),
        first_id: 1,
        operations: operations.clone(),
    };
    assert!(matches!(
        store.store().commit(&[late]),
        Err(StoreError::InvalidBatch { .. })
    ));
    // After an error, what is on disk is unknown: nothing is committed any more.
    let good = Batch {
        now: BrokerTime(0),
        first_id: 2,
        operations,
    };
    assert!(matches!(
        store.store().commit(&[good]),
        Err(StoreError::InvalidBatch { .. })
    ));
    let long = "x".repeat(70_000);
    assert!(
        Operation::PutReceiver {
            name: long,
            limits: Limits::default()
        }
        .check()
        .is_err()
    );
}
