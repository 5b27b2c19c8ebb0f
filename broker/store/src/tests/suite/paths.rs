//! Openings, attempts, dead letters.

use crate::{
    Applied, Limits, Operation,
    tests::{Harness, dead_letter},
};

over_all_back_ends!(
    an_opening_fences_the_one_before,
    what_was_handed_out_gains_an_attempt,
    attempts_that_are_used_up_make_a_dead_letter,
    dead_letters_are_kept_read_replayed_and_removed,
    dead_letters_are_bounded,
);

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
    for _ in 0..5 {
        store.publish("m", &[receiver]);
    }
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
    for payload in ["poison", "late", "live"] {
        store.publish(payload, &[receiver, other]);
    }
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
