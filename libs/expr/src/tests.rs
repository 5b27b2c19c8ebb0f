mod checking;
mod evaluation;
mod oracle;

use foreshore_record::{Qos, Record, TopicName, property};

use crate::{Budget, Environment, EvalError, Expected, Meter, RecordView, Value, check};

/// A dataset message of an oven.
fn record() -> Record {
    let payload = br#"{
        "temperature": {"Value": 81.5, "SourceTimestamp": "2026-01-31T12:00:00Z"},
        "count": {"Value": 20},
        "state": {"Value": "Running", "StatusCode": 1073741824},
        "Oven.Set-Point": {"Value": 80.0},
        "tags": ["hot", "oven", "hot"],
        "limits": [60, 80.5, 18446744073709551615],
        "nested": {"list": [{"a": 1}, {"a": 2}, {"b": 3}]},
        "nothing": null,
        "escaped\n": "line\nbreak"
    }"#;
    let mut record = Record::new(TopicName::new("line/oven/data").expect("topic"), &payload[..]);
    record.qos = Qos::AtLeastOnce;
    record.ingested_at = Some("2026-01-31T12:00:01.5Z".parse().expect("time"));
    record.properties.content_type = Some("application/json".to_owned());
    for (name, value) in [
        (property::NAMESPACE, "bottling"),
        (property::ASSET, "oven-1"),
        (property::MEMBER, "state"),
        (property::CE_TIME, "2026-01-31T12:00:00.25Z"),
        ("shift", "early"),
        ("shift", "late"),
    ] {
        record.properties.push_user(name, value);
    }
    record
}

/// The value as JSON.
fn evaluate(source: &str) -> Result<String, EvalError> {
    evaluate_with(source, Budget::default())
}

fn evaluate_with(source: &str, budget: Budget) -> Result<String, EvalError> {
    let program =
        check(source, &Environment::record(), Expected::Any).unwrap_or_else(|e| panic!("{source}: {e}"));
    let record = record();
    let value = program.evaluate(&RecordView::new(&record), &mut Meter::new(budget))?;
    Ok(String::from_utf8(value.to_json()?).expect("text"))
}

#[track_caller]
fn gives(source: &str, json: &str) {
    match evaluate(source) {
        Ok(found) => assert_eq!(found, json, "{source}"),
        Err(error) => panic!("{source}: {error}"),
    }
}

#[track_caller]
fn fails(source: &str, message: &str) {
    match evaluate(source) {
        Ok(found) => panic!("{source} gave {found}"),
        Err(error) => assert_eq!(error.to_string(), message, "{source}"),
    }
}

#[track_caller]
fn refused(source: &str, message: &str) {
    match check(source, &Environment::record(), Expected::Any) {
        Ok(_) => panic!("{source} was accepted"),
        Err(error) => assert_eq!(error.to_string(), message, "{source}"),
    }
}

#[test]
fn a_program_can_be_shared_between_threads() {
    fn assert_shared<T: Send + Sync + Clone + 'static>() {}
    assert_shared::<crate::Program>();
    assert_shared::<Value<'static>>();
}
