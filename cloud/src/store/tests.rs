use std::{path::PathBuf, time::Duration};

use foreshore_record::{DataValue, Record, TopicName, value};
use foreshore_record::{Interval, Lane};
use foreshore_runtime::Metrics;
use foreshore_tls::Fingerprint;
use jiff::Timestamp;
use serde_json::json;
use tempfile::TempDir;

use super::{
    edges::{Applicant, TokenRow},
    ingest::{DeliveredEntry, Delivery, Kept},
    ledger::Fenced,
    registry::SeriesFilter,
    retention::Retention,
    *,
};
use crate::{
    samples::{AssetKey, Samples},
    times::nanoseconds,
};

pub(crate) struct Opened {
    pub(crate) store: Store,
    pub(crate) directory: TempDir,
}

pub(crate) fn open() -> Opened {
    open_with(None)
}

fn open_with(max_bytes: Option<u64>) -> Opened {
    let directory = TempDir::new().unwrap();
    let store = Store::open(directory.path(), max_bytes, StoreMetrics::new(&Metrics::new())).unwrap();
    Opened { store, directory }
}

impl Opened {
    async fn reopen(self, max_bytes: Option<u64>) -> Self {
        self.store.close().await;
        let store = Store::open(
            self.directory.path(),
            max_bytes,
            StoreMetrics::new(&Metrics::new()),
        )
        .unwrap();
        Self { store, ..self }
    }

    fn database(&self) -> PathBuf {
        self.directory.path().join(DATABASE)
    }
}

/// Admits an edge and returns its id.
pub(crate) async fn admit(store: &Store, name: &str) -> i64 {
    let (token, key) = (Fingerprint::of(name.as_bytes()), Fingerprint::of(b"key"));
    let row = TokenRow {
        hash: token,
        edge: name.to_owned(),
        ends_at: None,
    };
    let applicant = Applicant {
        token,
        edge: name.to_owned(),
        key,
        certificate_ends_at: i64::MAX,
    };
    let admitted = store.write(Priority::Control, 1, move |context| {
        edges::set_tokens(context, &[row])?;
        edges::admit(context, &applicant, 0)
    });
    admitted.await.unwrap().unwrap().id
}

pub(crate) fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_700_000_000 + second).unwrap()
}

/// A batch of entries `first..=last`, each with one dataset message of one point, observed at second `id`.
fn delivery(edge: i64, store_epoch: u64, first: u64, last: u64) -> Delivery {
    let mut values = Samples::default();
    let mut entries = Vec::new();
    for id in first..=last {
        let topic = TopicName::new("foreshore/data/bottling/filler/process").unwrap();
        let message = [("speed".to_owned(), DataValue::good(id, at(id as i64)))].into();
        values.add(
            &Record::new(topic, value::encode(&message).unwrap()),
            at(id as i64),
        );
        entries.push(DeliveredEntry {
            store_epoch,
            id,
            outputs: vec![values.samples.len()],
            refused: None,
        });
    }
    Delivery {
        edge,
        boot: 1,
        path: "dataflow/bottling/telemetry->cloud".to_owned(),
        path_epoch: 1,
        settles: vec![Interval {
            store_epoch,
            first,
            last,
        }],
        entries,
        values,
        received_at: at(1_000_000),
    }
}

async fn keep(store: &Store, delivery: Delivery) -> Result<Result<Kept, Fenced>, StoreError> {
    let weight = delivery.weight();
    store
        .write(Priority::Lane(Lane::Live), weight, move |context| {
            delivery.keep(context)
        })
        .await
}

async fn counts(store: &Store) -> (u64, u64, u64) {
    let counts = store
        .read(|connection| ledger::counts(connection, None))
        .await
        .unwrap();
    let total = |field: fn(&ledger::PathCounts) -> u64| counts.iter().map(field).sum();
    (
        total(|path| path.committed),
        total(|path| path.repeated),
        total(|path| path.refused),
    )
}

async fn rows(store: &Store, table: &'static str) -> i64 {
    let sql = format!("SELECT count(*) FROM {table}");
    store
        .read(move |connection| Ok(connection.query_row(&sql, [], |row| row.get(0))?))
        .await
        .unwrap()
}

#[tokio::test]
async fn repeats_are_recognised_whatever_batch_they_come_in() {
    let opened = open();
    let edge = admit(&opened.store, "plant").await;
    let kept = keep(&opened.store, delivery(edge, 7, 1, 10))
        .await
        .unwrap()
        .unwrap();
    assert_eq!((kept.committed, kept.repeated), (10, 0));
    assert_eq!(
        kept.done,
        [Interval {
            store_epoch: 7,
            first: 1,
            last: 10
        }]
    );

    // Partly known, and cut another way.
    let kept = keep(&opened.store, delivery(edge, 7, 6, 15))
        .await
        .unwrap()
        .unwrap();
    assert_eq!((kept.committed, kept.repeated), (5, 5));
    assert_eq!(
        kept.done,
        [Interval {
            store_epoch: 7,
            first: 1,
            last: 15
        }]
    );

    // The same ids of another epoch of the store are other entries.
    let kept = keep(&opened.store, delivery(edge, 8, 1, 10))
        .await
        .unwrap()
        .unwrap();
    assert_eq!((kept.committed, kept.repeated), (10, 0));

    let opened = opened.reopen(None).await;
    let kept = keep(&opened.store, delivery(edge, 7, 1, 15))
        .await
        .unwrap()
        .unwrap();
    assert_eq!((kept.committed, kept.repeated), (0, 15));
    assert_eq!(counts(&opened.store).await, (25, 20, 0));
    assert_eq!(
        (
            rows(&opened.store, "history").await,
            rows(&opened.store, "intervals").await
        ),
        (25, 2)
    );
}

#[tokio::test]
async fn what_is_filtered_is_done_and_what_is_refused_is_not() {
    let opened = open();
    let edge = admit(&opened.store, "plant").await;
    let with_refusal = || {
        let mut batch = delivery(edge, 7, 4, 6);
        batch.settles[0].first = 1;
        batch.entries[1].refused = Some("too large".to_owned());
        batch
    };
    let kept = keep(&opened.store, with_refusal()).await.unwrap().unwrap();
    assert_eq!(
        (kept.committed, kept.refused.len(), kept.refused[0].id),
        (2, 1, 5)
    );
    let done = |first, last| Interval {
        store_epoch: 7,
        first,
        last,
    };
    assert_eq!(kept.done, [done(1, 4), done(6, 6)]);
    // The refusal is told again to who missed it, and is kept once it can be.
    let kept = keep(&opened.store, with_refusal()).await.unwrap().unwrap();
    assert_eq!((kept.committed, kept.repeated, kept.refused.len()), (0, 2, 1));
    let kept = keep(&opened.store, delivery(edge, 7, 5, 5))
        .await
        .unwrap()
        .unwrap();
    assert_eq!((kept.committed, kept.done), (1, vec![done(1, 6)]));
    assert_eq!(counts(&opened.store).await, (3, 2, 2));
}

#[tokio::test]
async fn an_older_process_with_an_older_opening_is_fenced_and_no_other() {
    let opened = open();
    let edge = admit(&opened.store, "plant").await;
    let by = |boot, path_epoch, id| Delivery {
        boot,
        path_epoch,
        ..delivery(edge, 7, id, id)
    };
    assert!(keep(&opened.store, by(1, 5, 1)).await.unwrap().is_ok());
    assert!(keep(&opened.store, by(2, 6, 2)).await.unwrap().is_ok());
    assert_eq!(
        keep(&opened.store, by(1, 5, 3)).await.unwrap(),
        Err(Fenced { present: 6 })
    );
    // The path was released and declared again: its epochs begin anew.
    assert!(keep(&opened.store, by(2, 1, 4)).await.unwrap().is_ok());
    assert!(keep(&opened.store, by(3, 1, 5)).await.unwrap().is_ok());
    // It moved back to a process that opened it later.
    assert!(keep(&opened.store, by(2, 2, 6)).await.unwrap().is_ok());
    assert_eq!(counts(&opened.store).await, (5, 0, 0));
}

#[tokio::test]
async fn values_are_read_by_time_over_many_series_and_pages() {
    let opened = open();
    let edge = admit(&opened.store, "plant").await;
    let mut batch = delivery(edge, 7, 1, 1);
    batch.values = Samples::default();
    batch.entries.clear();
    for id in 1..=40 {
        let topic = TopicName::new("foreshore/data/bottling/filler/process").unwrap();
        // Two points of one time in every message; every fourth message has the time of the one before.
        let time = at(if id % 4 == 0 { id - 1 } else { id });
        let message = ["speed", "torque"]
            .map(|point| (point.to_owned(), DataValue::good(id, time)))
            .into();
        batch
            .values
            .add(&Record::new(topic, value::encode(&message).unwrap()), time);
        let outputs = vec![batch.values.samples.len()];
        batch.entries.push(DeliveredEntry {
            store_epoch: 7,
            id: id as u64,
            outputs,
            refused: None,
        });
    }
    batch.settles[0].last = 40;
    assert_eq!(keep(&opened.store, batch).await.unwrap().unwrap().committed, 40);

    let key = AssetKey {
        namespace: "bottling".to_owned(),
        name: "filler".to_owned(),
    };
    let series = opened.store.read(move |connection| {
        let asset = registry::assets_named(connection, &key)?.remove(0);
        registry::series_of(connection, asset.id, &SeriesFilter::default())
    });
    let series: Vec<i64> = series.await.unwrap().iter().map(|series| series.id).collect();
    assert_eq!(series.len(), 2);
    let read = async |after, limit| {
        let series = series.clone();
        let (from, to) = (nanoseconds(at(10)), nanoseconds(at(30)));
        let read =
            move |connection: &Connection| history::values(connection, &series, from, to, after, limit);
        opened.store.read(read).await.unwrap()
    };
    let all = read(None, usize::MAX).await;
    // The messages 10 to 29, two values each; 30 itself is outside.
    assert_eq!(all.len(), 2 * 20);
    assert!(all.is_sorted_by_key(|value| value.place));
    for page in [1, 3, 7] {
        let (mut paged, mut after) = (Vec::new(), None);
        loop {
            let found = read(after, page).await;
            let Some(last) = found.last() else { break };
            after = Some(last.place);
            paged.extend(found);
        }
        assert_eq!(paged, all, "pages of {page}");
    }
}

#[tokio::test]
async fn the_last_value_is_the_newest_and_not_that_of_a_clock_that_ran_ahead() {
    let opened = open();
    let edge = admit(&opened.store, "plant").await;
    let last = async || {
        opened
            .store
            .read(|connection| registry::last_value(connection, 1))
            .await
            .unwrap()
            .unwrap()
            .value
    };
    keep(&opened.store, delivery(edge, 7, 50, 60))
        .await
        .unwrap()
        .unwrap();
    // A backlog that arrives later is older.
    keep(&opened.store, delivery(edge, 7, 1, 40))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(last().await, json!(60));
    let mut ahead = delivery(edge, 7, 70, 70);
    ahead.values.samples[0].time = i64::MAX;
    ahead.received_at = at(70);
    keep(&opened.store, ahead).await.unwrap().unwrap();
    assert_eq!(last().await, json!(70));
    keep(&opened.store, delivery(edge, 7, 80, 80))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(last().await, json!(80));
}

#[tokio::test]
async fn a_full_store_keeps_nothing_of_a_batch_and_goes_on_when_there_is_room() {
    let opened = open_with(Some(512 << 10));
    let edge = admit(&opened.store, "plant").await;
    let (mut first, mut refused) = (1, None);
    while refused.is_none() && first < 1_000_000 {
        match keep(&opened.store, delivery(edge, 7, first, first + 499)).await {
            Ok(kept) => assert_eq!(kept.unwrap().committed, 500),
            Err(error) => refused = Some(error),
        }
        first += 500;
    }
    assert_eq!(refused.map(|error| error.reason()), Some("StoreFull"));
    let (committed, ..) = counts(&opened.store).await;
    assert_eq!(rows(&opened.store, "history").await as u64, committed);

    let opened = opened.reopen(Some(8 << 20)).await;
    let kept = keep(&opened.store, delivery(edge, 7, 1, committed + 500))
        .await
        .unwrap()
        .unwrap();
    assert_eq!((kept.committed, kept.repeated), (500, committed));
}

#[tokio::test]
async fn a_busy_database_is_told_and_passes() {
    let opened = open();
    let edge = admit(&opened.store, "plant").await;
    let other = Connection::open(opened.database()).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let error = keep(&opened.store, delivery(edge, 7, 1, 5)).await.unwrap_err();
    assert_eq!(error.reason(), "StoreBusy");
    other.execute_batch("ROLLBACK").unwrap();
    assert_eq!(
        keep(&opened.store, delivery(edge, 7, 1, 5))
            .await
            .unwrap()
            .unwrap()
            .committed,
        5
    );
}

#[tokio::test]
async fn one_process_has_the_directory() {
    let opened = open();
    let again = Store::open(opened.directory.path(), None, StoreMetrics::new(&Metrics::new()));
    assert_eq!(
        again.err(),
        Some(StoreError::Locked {
            path: opened.directory.path().to_owned()
        })
    );
    drop(opened.reopen(None).await);
}

#[tokio::test]
async fn a_database_of_the_first_format_is_brought_up_to_date() {
    let directory = TempDir::new().unwrap();
    let first = Connection::open(directory.path().join(DATABASE)).unwrap();
    first
        .execute_batch(concat!(
            include_str!("schema.sql"),
            "INSERT INTO edges (id, name, key, admitted_at, certificate_ends_at) VALUES (7, 'plant', x'00', 1, 2);
             INSERT INTO assets (edge, namespace, name, first_seen_at) VALUES (7, 'bottling', 'filler', 1);
             PRAGMA application_id = 0x4653434c; PRAGMA user_version = 1;"
        ))
        .unwrap();
    drop(first);
    let store = Store::open(directory.path(), None, StoreMetrics::new(&Metrics::new())).unwrap();
    let key = AssetKey {
        namespace: "bottling".to_owned(),
        name: "filler".to_owned(),
    };
    let found = store.read(move |connection| {
        let assets = registry::assets_named(connection, &key)?;
        Ok::<_, StoreError>((registry::version(connection, 7)?, assets))
    });
    let (version, assets) = found.await.unwrap();
    // Of an edge that told nothing yet, what it sent data of counts as there.
    assert_eq!((version.len(), assets.len(), assets[0].declared), (0, 1, true));
    store.close().await;
}

#[test]
fn strange_files_are_refused_and_left_alone() {
    let open =
        |directory: &TempDir| Store::open(directory.path(), None, StoreMetrics::new(&Metrics::new())).err();
    let directory = TempDir::new().unwrap();
    let path = directory.path().join(DATABASE);
    let strange = Connection::open(&path).unwrap();
    strange
        .execute_batch("CREATE TABLE precious (x); PRAGMA application_id = 99")
        .unwrap();
    assert!(matches!(open(&directory), Some(StoreError::Open { .. })));
    assert_eq!(
        strange.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0)),
        Ok(1)
    );

    let directory = TempDir::new().unwrap();
    let path = directory.path().join(DATABASE);
    let newer = Connection::open(&path).unwrap();
    newer
        .execute_batch("PRAGMA application_id = 0x4653434c; PRAGMA user_version = 99")
        .unwrap();
    let error = open(&directory);
    assert_eq!(
        error,
        Some(StoreError::Newer {
            path: path.clone(),
            found: 99,
            supported: 2
        })
    );

    std::fs::write(&path, b"not a database, but long enough for a header ".repeat(50)).unwrap();
    assert!(matches!(open(&directory), Some(StoreError::Open { .. })));
}

#[tokio::test]
async fn history_is_cut_back_by_age_and_by_bytes() {
    let opened = open();
    let edge = admit(&opened.store, "plant").await;
    keep(&opened.store, delivery(edge, 7, 1, 12_000))
        .await
        .unwrap()
        .unwrap();
    let retention = |max_age, max_bytes| Retention {
        max_age: Duration::from_secs(max_age),
        max_bytes,
        audit_max_age: Duration::from_secs(1),
        interval: Duration::from_secs(3600),
    };
    let deleted = retention(1_000, None)
        .pass(&opened.store, at(11_001))
        .await
        .unwrap();
    assert_eq!((deleted, rows(&opened.store, "history").await), (10_000, 2_000));

    keep(&opened.store, delivery(edge, 7, 12_001, 40_000))
        .await
        .unwrap()
        .unwrap();
    let (full, limit) = (rows(&opened.store, "history").await, 400 << 10);
    let deleted = retention(1_000_000, Some(limit))
        .pass(&opened.store, at(40_001))
        .await
        .unwrap();
    let left = rows(&opened.store, "history").await;
    assert_eq!(full - left, deleted as i64);
    assert!(
        (1_000..full / 2).contains(&left),
        "{left} of {full} values are left"
    );
    let oldest = opened.store.read(|connection| {
        Ok(connection.query_row("SELECT min(time) FROM history", [], |row| row.get::<_, i64>(0))?)
    });
    assert_eq!(oldest.await.unwrap(), nanoseconds(at(40_001 - left)));
    // What was deleted is still known to be done.
    assert_eq!(
        keep(&opened.store, delivery(edge, 7, 1, 1_000))
            .await
            .unwrap()
            .unwrap()
            .repeated,
        1_000
    );
}
