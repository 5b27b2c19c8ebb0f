use std::{collections::BTreeMap, fs, path::Path, sync::Arc, time::Duration};

use foreshore_control::plan::{EndpointPlan, ObjectRef};
use foreshore_northbound::{
    Batch, Delivery, EndpointSetup, Output, Secrets, Sink, SinkError, SinkFactory as _, SinkSetup,
};
use foreshore_record::{Interval, Lane, Record, TopicName};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::{
    FileSinks, Rotation,
    folder::{Folder, FolderError},
    line,
};

fn record(payload: &[u8]) -> Record {
    Record::new(TopicName::new("line/oven").unwrap(), payload.to_vec())
}

fn written(record: &Record) -> Value {
    let mut lines = Vec::new();
    line::write(record, &mut lines).unwrap();
    let text = String::from_utf8(lines).unwrap();
    assert!(
        text.ends_with('\n') && text.matches('\n').count() == 1,
        "{text:?}"
    );
    serde_json::from_str(&text).unwrap()
}

#[test]
fn a_record_is_one_line_of_json() {
    let mut sent = record(b"{\n  \"Value\": 18446744073709551616.5,\r\n \"text\": \"a\\nb\"\n}");
    sent.ingested_at = Some("2026-01-31T12:00:01Z".parse().unwrap());
    sent.properties.content_type = Some("application/json".to_owned());
    sent.properties.push_user("shift", "early");
    sent.properties.push_user("shift", "late");
    let expected = json!({
        "time": "2026-01-31T12:00:01Z", "topic": "line/oven", "properties": { "shift": "early" },
        "contentType": "application/json", "payload": { "Value": 18446744073709551616.5, "text": "a\nb" },
    });
    assert_eq!(written(&sent), expected);
    sent.properties.push_user("time", "2026-01-31T11:59:59.5Z");
    assert_eq!(written(&sent)["time"], "2026-01-31T11:59:59.5Z");
    assert_eq!(
        written(&record(b"\xff\xd8")),
        json!({ "topic": "line/oven", "payloadBase64": "/9g=" })
    );
    assert_eq!(
        written(&record(b"")),
        json!({ "topic": "line/oven", "payloadBase64": "" })
    );
    assert_eq!(
        written(&record(b"7")),
        json!({ "topic": "line/oven", "payload": 7 })
    );
}

const LARGE: Rotation = Rotation {
    max_bytes: 1 << 20,
    max_age: Duration::from_secs(3600),
    max_files: 3,
};

fn time(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + seconds).unwrap()
}

fn contents(folder: &Path) -> BTreeMap<String, String> {
    let files = fs::read_dir(folder).unwrap().map(|entry| {
        let entry = entry.unwrap();
        (
            entry.file_name().into_string().unwrap(),
            fs::read_to_string(entry.path()).unwrap(),
        )
    });
    files.collect()
}

#[test]
fn a_torn_last_line_is_cut_off_and_whole_ones_stay() {
    let directory = tempfile::tempdir().unwrap();
    let open = || Folder::new(directory.path().join("a/b"), LARGE);
    open().append(b"one\ntwo\n", time(0)).unwrap();
    let name = contents(&directory.path().join("a/b"))
        .into_keys()
        .next()
        .unwrap();
    assert!(name.ends_with(".jsonl.open"), "{name}");
    let file = directory.path().join("a/b").join(&name);
    for torn in ["thr".to_owned(), "x".repeat(200_000)] {
        fs::write(&file, format!("one\ntwo\n{torn}")).unwrap();
        open().append(b"three\n", time(1)).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "one\ntwo\nthree\n");
    }
    fs::write(&file, "torn from the first").unwrap();
    open().append(b"one\n", time(2)).unwrap();
    assert_eq!(fs::read_to_string(&file).unwrap(), "one\n");
}

#[test]
fn files_rotate_by_size_and_age_and_the_oldest_are_deleted() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("notes.jsonl"), "not ours").unwrap();
    let rotation = Rotation {
        max_bytes: 10,
        ..LARGE
    };
    let mut folder = Folder::new(directory.path().to_owned(), rotation);
    for n in 0..6 {
        folder.append(format!("line {n}\n").as_bytes(), time(n)).unwrap();
    }
    folder.append(b"more than a file takes\n", time(6)).unwrap();
    let files = contents(directory.path());
    let lines: Vec<&str> = files.values().map(String::as_str).collect();
    assert_eq!(
        lines,
        [
            "line 3\n",
            "line 4\n",
            "line 5\n",
            "more than a file takes\n",
            "not ours"
        ],
        "{files:?}"
    );
    assert_eq!(files.keys().filter(|name| name.ends_with(".open")).count(), 1);
    let mut aged = Folder::new(directory.path().join("aged"), LARGE);
    aged.append(b"a\n", time(0)).unwrap();
    aged.append(b"b\n", time(3599)).unwrap();
    aged.append(b"c\n", time(3600)).unwrap();
    let files = contents(&directory.path().join("aged"));
    assert_eq!(files.into_values().collect::<Vec<_>>(), ["a\nb\n", "c\n"]);
}

#[test]
fn a_folder_that_can_not_be_made_is_an_error_that_names_it() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("file"), "").unwrap();
    let error: FolderError = Folder::new(directory.path().join("file/below"), LARGE)
        .check(time(0))
        .unwrap_err();
    assert!(error.to_string().contains("file/below: create: "), "{error}");
}

fn setup(file: Value, sink: Value) -> SinkSetup {
    let object = |name: &str| ObjectRef {
        namespace: "plant".to_owned(),
        name: name.to_owned(),
        uid: "1".to_owned(),
        generation: 1,
    };
    let endpoint = EndpointPlan {
        object: object("files"),
        spec: serde_json::from_value(json!({ "file": file })).unwrap(),
    };
    SinkSetup {
        dataflow: object("flow"),
        sink: serde_json::from_value(sink).unwrap(),
        delivery: serde_json::from_value(json!({})).unwrap(),
        path: "dataflow/plant/flow->out".to_owned(),
        endpoint: EndpointSetup {
            endpoint,
            secrets: Secrets::default(),
            brokers: Arc::default(),
        },
        origin: "uid-broker".to_owned(),
    }
}

fn out() -> Value {
    json!({ "name": "out", "endpointRef": { "name": "files" } })
}

async fn deliver(sink: &dyn Sink, payloads: &[&str]) -> Result<Vec<Delivery>, SinkError> {
    let outputs: Vec<Output> = (1..)
        .zip(payloads)
        .map(|(id, payload)| {
            let record = Arc::new(record(payload.as_bytes()));
            Output {
                store_epoch: 1,
                id,
                index: 0,
                attempt: 0,
                record,
            }
        })
        .collect();
    let settles = [Interval {
        store_epoch: 1,
        first: 1,
        last: payloads.len() as u64,
    }];
    let path = "dataflow/plant/flow->out";
    sink.deliver(Batch {
        path,
        path_epoch: 1,
        lane: Lane::Live,
        settles: &settles,
        outputs: &outputs,
    })
    .await
}

#[tokio::test]
async fn a_sink_writes_below_the_data_directory_and_goes_on_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let sinks = FileSinks::new(Some(directory.path().to_owned()));
    let setup = setup(json!({ "path": "archive" }), out());
    sinks.check_endpoint(&setup.endpoint).unwrap();
    sinks.check_sink(&setup).unwrap();
    for round in 0..2 {
        let sink = sinks.create(&setup).await.unwrap();
        sink.probe().await.unwrap();
        let first = format!("{round}");
        assert_eq!(
            deliver(&*sink, &[&first, "{}"]).await,
            Ok(vec![Delivery::Delivered; 2])
        );
        sink.close().await;
    }
    let files = contents(&directory.path().join("archive/plant/flow/out"));
    assert_eq!(files.len(), 1);
    let payloads = files.values().flat_map(|text| text.lines());
    let payloads: Vec<Value> = payloads
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["payload"].clone())
        .collect();
    assert_eq!(payloads, [json!(0), json!({}), json!(1), json!({})]);
}

#[tokio::test]
async fn what_can_not_be_written_is_no_delivery() {
    let directory = tempfile::tempdir().unwrap();
    let sinks = FileSinks::new(Some(directory.path().to_owned()));
    fs::write(directory.path().join("archive"), "a file in the way").unwrap();
    let sink = sinks
        .create(&setup(json!({ "path": "archive" }), out()))
        .await
        .unwrap();
    assert!(sink.probe().await.is_err());
    assert!(deliver(&*sink, &["1"]).await.is_err());
    fs::remove_file(directory.path().join("archive")).unwrap();
    assert_eq!(deliver(&*sink, &["1"]).await, Ok(vec![Delivery::Delivered]));
}

#[test]
fn what_is_not_supported_is_refused() {
    let sinks = FileSinks::new(Some("/nonexistent".into()));
    let refused = |file: Value, sink: Value| {
        let setup = setup(file, sink);
        let judged = sinks
            .check_endpoint(&setup.endpoint)
            .and_then(|()| sinks.check_sink(&setup));
        judged.unwrap_err().to_string()
    };
    let found = refused(json!({ "path": "a", "compression": "Zstd" }), out());
    assert_eq!(
        found,
        "UnsupportedHere: compression Zstd of files is not supported yet, None is"
    );
    let found = refused(json!({ "path": "../a" }), out());
    assert_eq!(found, "PathInvalid: path \"../a\" leaves the data directory");
    let mut sink = out();
    sink["file"] = json!({ "path": "{asset}" });
    let found = refused(json!({ "path": "a" }), sink);
    assert!(
        found.starts_with("PathInvalid: path \"{asset}\" has an unknown placeholder"),
        "{found}"
    );
    let nowhere = FileSinks::new(None);
    let found = nowhere
        .check_endpoint(&setup(json!({ "path": "a" }), out()).endpoint)
        .unwrap_err();
    assert_eq!(found.reason, "UnsupportedHere");
}
