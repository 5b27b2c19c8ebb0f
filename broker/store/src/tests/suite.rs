//! What every back end does in the same way.

use std::{sync::atomic::Ordering, time::Duration};

use foreshore_record::{DropReason, Outcome, SourceNumber};

use super::{Harness, dead_letter, everything, message, numbered, payload_of, publish, publish_message};
use crate::{
    Applied, Batch, BrokerTime, Direction, EntryFlags, Inflight, Limits, Message, Operation, OverflowPolicy,
    Publish, ReadRange, Refusal, Settlement, Slot, StoreError,
};

macro_rules! over_all_back_ends {
    ($($name:ident),* $(,)?) => {
        mod memory {
            $(#[test]
            fn $name() {
                super::$name(super::Harness::memory());
            })*
        }
        mod disk {
            $(#[test]
            fn $name() {
                super::$name(super::Harness::disk());
            })*
        }
    };
}

over_all_back_ends!(
    entries_are_read_in_order_and_leave_once,
    settling_out_of_order_moves_the_head_to_the_lowest_that_waits,
    a_message_for_several_is_stored_once_and_goes_with_the_last,
    what_comes_and_goes_in_one_group_is_counted_and_not_written,
    groups_are_applied_in_their_order,
    reads_are_bounded,
    ids_and_receivers_are_never_given_twice,
    repeats_and_older_lives_of_a_source_are_discarded,
    a_refusal_is_final_for_its_number,
    an_opening_fences_the_one_before,
    what_was_handed_out_gains_an_attempt,
    attempts_that_are_used_up_make_a_dead_letter,
    dead_letters_are_kept_read_replayed_and_removed,
    dead_letters_are_bounded,
    a_full_queue_rejects,
    a_full_queue_drops_the_oldest,
    a_full_queue_drops_the_new_one,
    old_entries_leave,
    expired_entries_are_told_to_the_reader,
    the_clock_never_runs_backwards,
    an_ended_receiver_drops_what_waits_and_leaves_nothing,
    retained_messages_follow_their_topic,
    sessions_and_wills_are_kept,
    packets_in_flight_are_kept_and_recognise_a_repeat,
    limits_can_be_changed,
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
    (0..6).for_each(|_| drop(store.publish("m", &[receiver])));
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
    (0..6).for_each(|_| drop(store.publish("0123456789", &[receiver])));
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

fn repeats_and_older_lives_of_a_source_are_discarded(mut store: Harness) {
    let receiver = store.receiver("a", Limits::default());
    let offer = |store: &Harness, epoch, sequence| {
        store.one(publish_message(
            numbered(&format!("{epoch}.{sequence}"), epoch, sequence),
            &[receiver],
        ))
    };
    assert!(matches!(offer(&store, 1, 41), Applied::Published { .. }));
    assert!(matches!(offer(&store, 1, 42), Applied::Published { .. }));
    store.reopen(false);
    assert_eq!(offer(&store, 1, 42), Applied::Refused(Refusal::Repeated));
    assert_eq!(offer(&store, 1, 41), Applied::Refused(Refusal::Repeated));
    assert!(matches!(offer(&store, 1, 45), Applied::Published { .. }));
    assert!(matches!(offer(&store, 2, 1), Applied::Published { .. }));
    assert_eq!(
        offer(&store, 1, 46),
        Applied::Refused(Refusal::Fenced { epoch: 2 })
    );
    assert_eq!(store.payloads(receiver), ["1.41", "1.42", "1.45", "2.1"]);
    let source = store.store().source("connector/plant/line").unwrap().unwrap();
    assert_eq!(
        (source.epoch, source.sequence, source.accepted, source.refused),
        (2, 1, 4, 0)
    );
    assert_eq!((source.repeated, source.fenced, source.gaps), (2, 1, 1));
    assert!(source.to_ledger("p").balances());
    assert_eq!(store.store().sources(None, 9).unwrap(), [source]);
}

fn a_refusal_is_final_for_its_number(store: Harness) {
    let limits = Limits {
        max_bytes: Some(30),
        overflow: OverflowPolicy::Reject,
        ..Limits::default()
    };
    let receiver = store.receiver("a", limits);
    let offer = |sequence| store.one(publish_message(numbered("0123456789", 1, sequence), &[receiver]));
    assert!(matches!(offer(1), Applied::Published { .. }));
    assert_eq!(offer(2), Applied::Refused(Refusal::QueueFull { receiver }));
    store.settle(receiver, 0, &[1]);
    assert_eq!(offer(2), Applied::Refused(Refusal::Repeated));
    assert!(matches!(offer(3), Applied::Published { .. }));
    let number = SourceNumber {
        source: "connector/plant/line".to_owned(),
        epoch: 1,
        sequence: 4,
    };
    assert_eq!(store.one(Operation::Refuse { number }), Applied::Done);
    assert_eq!(offer(4), Applied::Refused(Refusal::Repeated));
    let ledger = store
        .store()
        .source("connector/plant/line")
        .unwrap()
        .unwrap()
        .to_ledger("p");
    assert_eq!(
        (ledger.received, ledger.delivered, ledger.dropped["refused"]),
        (4, 2, 2)
    );
}

fn an_opening_fences_the_one_before(mut store: Harness) {
    let receiver = store.receiver("dataflow/a", Limits::default());
    store.publish("m", &[receiver]);
    let first = store.open_path(receiver);
    assert_eq!((first.epoch, first.head, first.tail), (1, 1, 2));
    store.reopen(false);
    let second = store.open_path(receiver);
    assert_eq!(second.epoch, 2);
    assert_eq!(
        store.settle(receiver, first.epoch, &[1]),
        Applied::Fenced { epoch: 2 }
    );
    let hand_out = Operation::HandOut {
        receiver,
        epoch: 1,
        after: 0,
        up_to: 1,
        redelivered: 0,
    };
    assert_eq!(store.one(hand_out), Applied::Fenced { epoch: 2 });
    assert_eq!(store.payloads(receiver), ["m"]);
    assert_eq!(
        store.settle(receiver, 2, &[1]),
        Applied::Settled {
            settled: 1,
            unknown: 0
        }
    );
    assert_eq!(store.settle(99, 0, &[1]), Applied::UnknownReceiver);
}

fn what_was_handed_out_gains_an_attempt(mut store: Harness) {
    let receiver = store.receiver("session/a", Limits::default());
    (0..5).for_each(|_| drop(store.publish("m", &[receiver])));
    for round in 0..30 {
        let epoch = store.open_path(receiver).epoch;
        let attempts: Vec<_> = store
            .entries(receiver)
            .iter()
            .map(|entry| entry.attempt)
            .collect();
        let expected = round.min(u32::from(Limits::MAX_ATTEMPTS));
        assert_eq!(attempts, [expected, expected, 0, 0, expected]);
        let hand_out = |after, up_to| Operation::HandOut {
            receiver,
            epoch,
            after,
            up_to,
            redelivered: u64::from(round > 0),
        };
        store.commit(vec![hand_out(0, 2), hand_out(4, 77)]);
        if round % 10 == 0 {
            store.reopen(round % 20 == 0);
        }
    }
    assert_eq!(store.totals(receiver).ledger.redelivered, 58);
    // What comes later was not handed out, whatever was claimed.
    store.publish("n", &[receiver]);
    assert_eq!(store.entries(receiver)[5].attempt, 0);
}

fn attempts_that_are_used_up_make_a_dead_letter(store: Harness) {
    let limits = Limits {
        max_attempts: Some(3),
        ..Limits::default()
    };
    let receiver = store.receiver("dataflow/a", limits);
    let other = store.receiver("dataflow/b", Limits::default());
    ["poison", "late", "live"].map(|payload| store.publish(payload, &[receiver, other]));
    for round in 1..=3 {
        let opening = store.open_path(receiver);
        assert_eq!((opening.epoch, opening.dead_lettered), (round, 0));
        let epoch = opening.epoch;
        let hand_out = |after, up_to| Operation::HandOut {
            receiver,
            epoch,
            after,
            up_to,
            redelivered: 0,
        };
        store.commit(vec![hand_out(0, 1), hand_out(2, 3)]);
        if round == 2 {
            store.settle(receiver, epoch, &[3]);
        }
    }
    let opening = store.open_path(receiver);
    assert_eq!((opening.dead_lettered, opening.head), (1, 2));
    assert_eq!(store.payloads(receiver), ["late"]);
    let letter = store.store().dead_letters(receiver, 0, 9).unwrap().remove(0);
    assert_eq!(
        (letter.id, letter.stage.as_str(), letter.attempts),
        (1, "open", 4)
    );
    assert_eq!(&letter.record.payload[..], b"poison");
    assert_eq!(store.totals(receiver).ledger.dead_lettered, 1);
    assert_eq!(store.payloads(other), ["poison", "late", "live"]);
}

fn dead_letters_are_kept_read_replayed_and_removed(mut store: Harness) {
    let receiver = store.receiver("dataflow/a", Limits::default());
    let replay = store.receiver("dataflow/a/replay", Limits::default());
    for payload in ["a", "b", "c", "d"] {
        let id = store.publish(payload, &[receiver]);
        store.settle_as(receiver, id, dead_letter("no such table"));
    }
    store.reopen(false);
    let letters = store.store().dead_letters(receiver, 1, 2).unwrap();
    assert_eq!(letters.iter().map(|letter| letter.id).collect::<Vec<_>>(), [2, 3]);
    assert_eq!(
        (letters[0].stage.as_str(), letters[0].reason.as_str()),
        ("sink", "no such table")
    );
    let applied = store.one(Operation::Replay {
        from: receiver,
        ids: vec![2, 9, 3],
        to: replay,
    });
    assert_eq!(
        applied,
        Applied::Affected {
            count: 2,
            more: false
        }
    );
    assert_eq!(store.payloads(replay), ["b", "c"]);
    assert_eq!(
        store
            .entries(replay)
            .iter()
            .map(|entry| entry.id)
            .collect::<Vec<_>>(),
        [5, 7]
    );
    assert_eq!(store.publish("e", &[receiver]), 8);
    let applied = store.one(Operation::DeleteDeadLetters {
        receiver,
        ids: vec![1, 2],
    });
    assert_eq!(
        applied,
        Applied::Affected {
            count: 1,
            more: false
        }
    );
    assert_eq!(store.store().dead_letters(receiver, 0, 9).unwrap().len(), 1);
    assert_eq!(store.totals(receiver).ledger.dead_lettered, 4);
    assert_eq!(store.totals(replay).ledger.received, 2);
    store.one(Operation::DeleteDeadLetters {
        receiver,
        ids: vec![4],
    });
    assert_eq!(store.totals(receiver).dead_letter_bytes, 0);
}

fn dead_letters_are_bounded(store: Harness) {
    let limits = Limits {
        max_dead_letter_bytes: Some(200),
        ..Limits::default()
    };
    let receiver = store.receiver("dataflow/a", limits);
    for _ in 0..10 {
        let id = store.publish(&"x".repeat(20), &[receiver]);
        store.settle_as(receiver, id, dead_letter("r"));
    }
    let totals = store.totals(receiver);
    let kept = store.store().dead_letters(receiver, 0, 99).unwrap();
    assert!(totals.dead_letter_bytes <= 200 && !kept.is_empty());
    assert_eq!(kept.last().unwrap().id, 10);
    assert_eq!(
        (totals.ledger.dead_lettered, totals.dead_letters_evicted),
        (10, 10 - kept.len() as u64)
    );
    let id = store.publish(&"x".repeat(500), &[receiver]);
    store.settle_as(receiver, id, dead_letter("larger than all"));
    assert_eq!(store.store().dead_letters(receiver, 0, 99).unwrap().len(), 1);
}

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
            passed_over: vec![full]
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
    (0..4).for_each(|index| drop(store.publish(&format!("012345678{index}"), &[full, other])));
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

fn expired_entries_are_told_to_the_reader(mut store: Harness) {
    let receiver = store.receiver("a", Limits::default());
    let expiring = |payload, seconds| {
        let expires_at = Some(store.clock.now().after(Duration::from_secs(seconds)));
        publish_message(
            Message {
                expires_at,
                ..message(payload)
            },
            &[receiver],
        )
    };
    let operations = vec![
        expiring("1s", 1),
        publish("never", &[receiver]),
        expiring("1s too", 1),
        expiring("9s", 9),
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

fn retained_messages_follow_their_topic(mut store: Harness) {
    let put = |payload: &str| {
        let message = message(payload);
        Operation::Publish(Publish {
            message,
            receivers: Vec::new(),
            update_retained: true,
            receipt: None,
        })
    };
    let kept = |store: &Harness| {
        store
            .store()
            .retained_message("plant/line")
            .unwrap()
            .map(|kept| kept.record.payload.clone())
    };
    store.one(put("first"));
    store.one(put("second"));
    store.reopen(false);
    assert_eq!(kept(&store).unwrap(), "second");
    assert_eq!(store.store().retained(None, 9).unwrap()[0].id, 2);
    assert!(store.store().retained(Some("plant/line"), 9).unwrap().is_empty());
    store.one(put(""));
    assert_eq!(kept(&store), None);
    store.one(put("third"));
    store.one(Operation::DeleteRetained {
        topic: "plant/line".to_owned(),
    });
    assert!(store.store().retained(None, 9).unwrap().is_empty());
    if !store.is_on_disk() {
        store.free.store(0, Ordering::SeqCst);
        assert_eq!(store.one(put("no space")), Applied::Refused(Refusal::NoSpace));
    }
}

fn sessions_and_wills_are_kept(mut store: Harness) {
    let (client_id, state) = ("a".to_owned(), bytes::Bytes::from_static(b"state"));
    store.commit(vec![
        Operation::PutSession {
            client_id: client_id.clone(),
            state: "old".into(),
        },
        Operation::PutSession {
            client_id: client_id.clone(),
            state: state.clone(),
        },
        Operation::PutSession {
            client_id: "b".to_owned(),
            state: "".into(),
        },
        Operation::PutWill {
            client_id: client_id.clone(),
            state: "will".into(),
        },
    ]);
    store.reopen(true);
    let sessions = store.store().sessions(None, 9).unwrap();
    assert_eq!(
        sessions
            .iter()
            .map(|blob| &blob.client_id[..])
            .collect::<Vec<_>>(),
        ["a", "b"]
    );
    assert_eq!(sessions[0].state, state);
    assert_eq!(store.store().sessions(Some("a"), 9).unwrap(), sessions[1..]);
    assert_eq!(store.store().sessions(None, 1).unwrap(), sessions[..1]);
    assert_eq!(store.store().wills(None, 9).unwrap()[0].state, "will");
    let delete = vec![
        Operation::DeleteSession {
            client_id: client_id.clone(),
        },
        Operation::DeleteWill { client_id },
    ];
    store.commit(delete);
    assert_eq!(store.store().sessions(None, 9).unwrap().len(), 1);
    assert!(store.store().wills(None, 9).unwrap().is_empty());
}

fn packets_in_flight_are_kept_and_recognise_a_repeat(mut store: Harness) {
    let receiver = store.receiver("session/a", Limits::default());
    let slot = |direction, packet_id| Slot {
        session: receiver,
        direction,
        packet_id,
    };
    let receive = || {
        let message = message("exactly once");
        let receipt = Some(slot(Direction::Inbound, 7));
        let receivers = vec![(receiver, EntryFlags::default())];
        Operation::Publish(Publish {
            message,
            receivers,
            update_retained: false,
            receipt,
        })
    };
    assert!(matches!(store.one(receive()), Applied::Published { .. }));
    store.reopen(false);
    assert_eq!(store.one(receive()), Applied::Refused(Refusal::Repeated));
    assert_eq!(store.entries(receiver).len(), 1);
    let state = Inflight::Sent { receiver, id: 1 };
    store.one(Operation::SetInflight {
        slot: slot(Direction::Outbound, 7),
        state,
    });
    let inflight = store.store().inflight(receiver).unwrap();
    assert_eq!(
        inflight,
        [
            (slot(Direction::Inbound, 7), Inflight::Received),
            (slot(Direction::Outbound, 7), state)
        ]
    );
    store.one(Operation::ClearInflight {
        slot: slot(Direction::Inbound, 7),
    });
    assert!(matches!(store.one(receive()), Applied::Published { .. }));
    let cleared = store.one(Operation::ClearSession { session: receiver });
    assert_eq!(
        cleared,
        Applied::Affected {
            count: 2,
            more: false
        }
    );
    assert!(store.store().inflight(receiver).unwrap().is_empty());
}

fn limits_can_be_changed(mut store: Harness) {
    let receiver = store.receiver("a", Limits::default());
    (0..4).for_each(|_| drop(store.publish("0123456789", &[receiver])));
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
