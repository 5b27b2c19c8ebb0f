//! Numbers of sources, retained messages, and what MQTT sessions keep.

use std::sync::atomic::Ordering;

use foreshore_record::SourceNumber;

use crate::{
    Applied, Direction, EntryFlags, Inflight, Limits, Operation, OverflowPolicy, Publish, Refusal, Slot,
    tests::{Harness, message, numbered, publish_message},
};

over_all_back_ends!(
    repeats_and_older_lives_of_a_source_are_discarded,
    a_refusal_is_final_for_its_number,
    retained_messages_follow_their_topic,
    sessions_and_wills_are_kept,
    packets_in_flight_are_kept_and_recognise_a_repeat,
);

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
    let mut by_client: Vec<_> = sessions
        .iter()
        .map(|blob| (blob.client_id.as_str(), &blob.state[..]))
        .collect();
    if !store.keeps_order() {
        by_client.sort_unstable();
    }
    assert_eq!(by_client, [("a", &state[..]), ("b", &b""[..])]);
    // Whatever comes first, the other comes after it.
    let first = Some(sessions[0].client_id.as_str());
    assert_eq!(store.store().sessions(first, 9).unwrap(), sessions[1..]);
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
