//! What every implementation has to do.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::expect_used,
    reason = "a failure ends the test that calls it"
)]

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use foreshore_record::{DropReason, Outcome, Qos, Record, SourceNumber, TopicName};

use crate::queue::{Entry, EntryId, Error, OpenPath, Paths, ReadRange, Settlement};

/// An implementation to be tested, with the ways in that [`Paths`] does not have.
#[async_trait]
pub trait Fixture: Send + Sync {
    /// The implementation.
    fn paths(&self) -> Arc<dyn Paths>;

    /// Makes a queue of that name for all records of the topic filter `{name}/#`, with the part of the name after its
    /// last `/`.
    async fn create(&self, path: &str);

    /// Deletes a queue.
    async fn delete(&self, path: &str);

    /// Publishes a record to a queue, and returns when it is durable.
    async fn publish(&self, path: &str, record: Record);
}

const PATH: &str = "dataflow/plant/suite->sink";
const OTHER: &str = "dataflow/plant/suite->other";
const GENEROUS: Duration = Duration::from_secs(60);

/// Runs the suite, beginning without queues.
///
/// # Panics
/// When the implementation does not do what it has to.
pub async fn run_suite(fixture: &dyn Fixture) {
    unknown_paths_are_not_found(fixture).await;
    fixture.create(PATH).await;
    fixture.create(OTHER).await;
    records_come_as_they_were_published(fixture).await;
    ranges_bound_what_is_read(fixture).await;
    a_read_waits_for_the_first_entry(fixture).await;
    settlements_take_effect_once(fixture).await;
    the_later_opening_fences_the_earlier_one(fixture).await;
    unsettled_entries_come_again_and_become_dead_letters_in_the_end(fixture).await;
    a_deleted_path_is_not_found(fixture).await;
}

fn record(text: &str) -> Record {
    Record::new(TopicName::new("sink/value").unwrap(), text.as_bytes().to_vec())
}

fn range() -> ReadRange {
    ReadRange {
        after: 0,
        before: None,
        max_entries: 1000,
        max_bytes: 1 << 20,
        wait: Duration::ZERO,
    }
}

fn delivered(id: EntryId) -> Settlement {
    Settlement {
        id,
        emitted: 1,
        outcome: Outcome::Delivered,
    }
}

async fn open(fixture: &dyn Fixture, path: &str) -> Box<dyn OpenPath> {
    fixture.paths().open(path).await.unwrap()
}

async fn read_all(open: &dyn OpenPath) -> Vec<Entry> {
    open.read(range()).await.unwrap().entries
}

fn texts(entries: &[Entry]) -> Vec<&str> {
    entries
        .iter()
        .map(|entry| std::str::from_utf8(&entry.record.payload).unwrap())
        .collect()
}

async fn settle_all(open: &dyn OpenPath) {
    let ids = read_all(open).await.into_iter().map(|entry| delivered(entry.id));
    open.settle(ids.collect()).await.unwrap();
    assert_eq!(read_all(open).await, []);
}

async fn unknown_paths_are_not_found(fixture: &dyn Fixture) {
    let expected = Error::NotFound {
        path: PATH.to_owned(),
    };
    assert_eq!(fixture.paths().open(PATH).await.err(), Some(expected.clone()));
    assert_eq!(fixture.paths().dead_letters(PATH, 0, 10).await, Err(expected));
}

async fn records_come_as_they_were_published(fixture: &dyn Fixture) {
    let mut published = record("{\"Value\":1}");
    published.qos = Qos::AtLeastOnce;
    published.properties.content_type = Some("application/json".to_owned());
    published.properties.payload_is_utf8 = true;
    published.properties.expiry_seconds = Some(3600);
    published.properties.response_topic = Some("answers".to_owned());
    published.properties.correlation_data = Some((&b"\x00\xff"[..]).into());
    published.properties.push_user("name", "value");
    published.properties.push_user("name", "another value");
    fixture.publish(PATH, published.clone()).await;
    let open = open(fixture, PATH).await;
    let entries = read_all(&*open).await;
    let [entry] = entries.as_slice() else {
        panic!("{entries:?}")
    };
    assert_eq!(entry.attempt, 0);
    assert!(entry.id > 0 && entry.id < open.opening_tail());
    let found = &entry.record;
    assert_eq!(
        (&found.topic, &found.payload),
        (&published.topic, &published.payload)
    );
    assert_eq!(
        (&found.properties, found.qos, found.retain),
        (&published.properties, published.qos, false)
    );
    assert!(
        found
            .number
            .as_ref()
            .is_none_or(|SourceNumber { sequence, .. }| *sequence > 0)
    );
    settle_all(&*open).await;
}

async fn ranges_bound_what_is_read(fixture: &dyn Fixture) {
    for text in ["one", "two", "three", "four"] {
        fixture.publish(PATH, record(text)).await;
    }
    let open = open(fixture, PATH).await;
    let all = open.read(range()).await.unwrap();
    assert_eq!(texts(&all.entries), ["one", "two", "three", "four"]);
    assert!(all.entries.is_sorted_by_key(|entry| entry.id));
    assert!(all.tail > all.entries[3].id);
    let of = async |range| open.read(range).await.unwrap().entries;
    let (first, third) = (all.entries[0].id, all.entries[2].id);
    assert_eq!(
        texts(
            &of(ReadRange {
                max_entries: 2,
                ..range()
            })
            .await
        ),
        ["one", "two"]
    );
    assert_eq!(
        texts(
            &of(ReadRange {
                after: first,
                max_bytes: 8,
                ..range()
            })
            .await
        ),
        ["two", "three"]
    );
    assert_eq!(
        texts(
            &of(ReadRange {
                after: first,
                max_bytes: 1,
                ..range()
            })
            .await
        ),
        ["two"]
    );
    assert_eq!(
        texts(
            &of(ReadRange {
                before: Some(third),
                ..range()
            })
            .await
        ),
        ["one", "two"]
    );
    assert_eq!(
        texts(
            &of(ReadRange {
                after: third,
                before: Some(third),
                ..range()
            })
            .await
        ),
        [""; 0]
    );
    assert_eq!(
        texts(
            &of(ReadRange {
                after: EntryId::MAX,
                ..range()
            })
            .await
        ),
        [""; 0]
    );
    // Settled in any order.
    open.settle(vec![delivered(third)]).await.unwrap();
    assert_eq!(texts(&read_all(&*open).await), ["one", "two", "four"]);
    settle_all(&*open).await;
}

async fn a_read_waits_for_the_first_entry(fixture: &dyn Fixture) {
    let open = open(fixture, PATH).await;
    let waiting = open
        .read(ReadRange {
            wait: Duration::from_millis(20),
            ..range()
        })
        .await
        .unwrap();
    assert_eq!(waiting.entries, []);
    let publish = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        fixture.publish(OTHER, record("not for us")).await;
        fixture.publish(PATH, record("late")).await;
    };
    let reading = open.read(ReadRange {
        wait: Duration::from_secs(20),
        ..range()
    });
    let (read, ()) = tokio::time::timeout(GENEROUS, async { tokio::join!(reading, publish) })
        .await
        .unwrap();
    assert_eq!(texts(&read.unwrap().entries), ["late"]);
    settle_all(&*open).await;
}

async fn settlements_take_effect_once(fixture: &dyn Fixture) {
    let totals = async || {
        let totals = fixture.paths().totals().await.unwrap();
        totals
            .into_iter()
            .find(|totals| totals.ledger.path == PATH)
            .unwrap()
    };
    let before = totals().await.ledger;
    for text in ["delivered", "split", "dead", "filtered", "waiting"] {
        fixture.publish(PATH, record(text)).await;
    }
    let open = open(fixture, PATH).await;
    let ids: Vec<EntryId> = read_all(&*open).await.iter().map(|entry| entry.id).collect();
    let dead = Outcome::DeadLettered {
        stage: "scale".to_owned(),
        reason: "division by zero".to_owned(),
    };
    let settlements = vec![
        delivered(ids[0]),
        Settlement {
            id: ids[1],
            emitted: 3,
            outcome: Outcome::Delivered,
        },
        Settlement {
            id: ids[2],
            emitted: 0,
            outcome: dead,
        },
        Settlement {
            id: ids[3],
            emitted: 0,
            outcome: Outcome::Dropped {
                reason: DropReason::FILTERED,
            },
        },
    ];
    open.settle(settlements.clone()).await.unwrap();
    open.settle(settlements).await.unwrap();
    let after = totals().await;
    assert!(after.ledger.balances(), "{after:?}");
    assert_eq!(after.ledger.received, before.received + 5);
    assert_eq!(after.ledger.delivered, before.delivered + 2);
    assert_eq!(after.ledger.emitted.unwrap_or(0), before.emitted.unwrap_or(0) + 4);
    assert_eq!(after.ledger.dead_lettered, before.dead_lettered + 1);
    assert_eq!(after.ledger.dropped.get("filtered"), Some(&1));
    assert_eq!(after.ledger.waiting, 1);
    assert!(after.waiting_bytes >= 7, "{after:?}");

    let letters = fixture.paths().dead_letters(PATH, 0, 10).await.unwrap();
    let [letter] = letters.as_slice() else {
        panic!("{letters:?}")
    };
    assert_eq!(
        (letter.id, letter.stage.as_str(), letter.reason.as_str()),
        (ids[2], "scale", "division by zero")
    );
    assert_eq!(&letter.record.payload[..], b"dead");
    assert_eq!(fixture.paths().dead_letters(PATH, ids[2], 10).await.unwrap(), []);
    assert_eq!(
        fixture
            .paths()
            .replay(PATH, &[ids[2], ids[2], 999_999])
            .await
            .unwrap(),
        1
    );
    assert_eq!(texts(&read_all(&*open).await), ["waiting", "dead"]);
    assert_eq!(fixture.paths().dead_letters(PATH, 0, 10).await.unwrap(), []);
    assert!(totals().await.ledger.balances());
    settle_all(&*open).await;
}

async fn the_later_opening_fences_the_earlier_one(fixture: &dyn Fixture) {
    fixture.publish(PATH, record("contested")).await;
    let earlier = open(fixture, PATH).await;
    let id = read_all(&*earlier).await[0].id;
    let later = open(fixture, PATH).await;
    assert!(later.epoch() > earlier.epoch());
    let fenced = Error::Fenced {
        path: PATH.to_owned(),
    };
    assert_eq!(earlier.read(range()).await, Err(fenced.clone()));
    assert_eq!(earlier.settle(vec![delivered(id)]).await, Err(fenced));
    assert_eq!(texts(&read_all(&*later).await), ["contested"]);
    settle_all(&*later).await;
}

async fn unsettled_entries_come_again_and_become_dead_letters_in_the_end(fixture: &dyn Fixture) {
    fixture.publish(PATH, record("poison")).await;
    for attempt in 0..5 {
        let open = open(fixture, PATH).await;
        let entries = read_all(&*open).await;
        assert_eq!((texts(&entries), entries[0].attempt), (vec!["poison"], attempt));
    }
    let open = open(fixture, PATH).await;
    assert_eq!(read_all(&*open).await, []);
    let letters = fixture.paths().dead_letters(PATH, 0, 10).await.unwrap();
    assert_eq!(letters.len(), 1);
    assert_eq!(&letters[0].record.payload[..], b"poison");
}

async fn a_deleted_path_is_not_found(fixture: &dyn Fixture) {
    let open = open(fixture, OTHER).await;
    fixture.delete(OTHER).await;
    let expected = Error::NotFound {
        path: OTHER.to_owned(),
    };
    assert_eq!(open.read(range()).await, Err(expected.clone()));
    let settled = open.settle(vec![delivered(1)]).await;
    assert!(
        matches!(settled, Err(Error::NotFound { .. } | Error::Closed { .. })),
        "{settled:?}"
    );
    assert_eq!(fixture.paths().open(OTHER).await.err(), Some(expected));
}
