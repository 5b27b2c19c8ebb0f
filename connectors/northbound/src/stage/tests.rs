use std::sync::Arc;

use foreshore_crds::v1alpha1::dataflow::DataflowSpec;
use foreshore_record::{DropReason, Record, TopicName};

use super::{Processed, Stages};

fn spec(stages: serde_json::Value, sinks: serde_json::Value) -> DataflowSpec {
    let spec = serde_json::json!({ "source": { "topics": ["#"] }, "stages": stages, "sinks": sinks });
    serde_json::from_value(spec).expect("spec")
}

fn to_sink(spec: &DataflowSpec, name: &str) -> Stages {
    let sink = spec.sinks.iter().find(|sink| sink.name == *name).expect("sink");
    Stages::compile(spec, sink).unwrap_or_else(|error| panic!("{error}"))
}

fn record(payload: &str) -> Arc<Record> {
    Arc::new(Record::new(
        TopicName::new("line/oven").expect("topic"),
        payload.to_owned(),
    ))
}

fn payloads(processed: &Processed) -> Vec<&str> {
    let Processed::Outputs(outputs) = processed else {
        panic!("{processed:?}")
    };
    outputs
        .iter()
        .map(|output| std::str::from_utf8(&output.payload).expect("text"))
        .collect()
}

fn dropped(reason: DropReason) -> Processed {
    Processed::Dropped(reason)
}

#[test]
fn without_stages_records_pass_as_they_are() {
    let spec = spec(
        serde_json::json!([]),
        serde_json::json!([{ "name": "out", "endpointRef": { "name": "e" } }]),
    );
    let sent = record("\u{0}no json");
    let Processed::Outputs(outputs) = to_sink(&spec, "out").process(&sent) else {
        panic!("no output")
    };
    assert!(
        Arc::ptr_eq(&outputs[0], &sent),
        "the record is shared, not copied"
    );
}

#[test]
fn a_line_of_stages_filters_and_maps() {
    let spec = spec(
        serde_json::json!([
            { "name": "hot", "filter": { "expression": "payload.t > 80" } },
            { "name": "shape", "map": { "fields": [
                { "output": "celsius", "expression": "payload.t" },
                { "output": "fahrenheit", "expression": "payload.t * 1.8 + 32" },
                { "output": "meta.topic", "expression": "topic" },
                { "output": "meta.line", "expression": "topic.split('/')[0]" },
            ], "topic": "'hot/' + topic" } },
        ]),
        serde_json::json!([{ "name": "out", "endpointRef": { "name": "e" } }]),
    );
    let stages = to_sink(&spec, "out");
    assert_eq!(
        stages.process(&record(r#"{"t": 79}"#)),
        dropped(DropReason::FILTERED)
    );
    let processed = stages.process(&record(r#"{"t": 100}"#));
    let expected = r#"{"celsius":100,"fahrenheit":212.0,"meta":{"topic":"line/oven","line":"line"}}"#;
    assert_eq!(payloads(&processed), [expected]);
    let Processed::Outputs(outputs) = processed else {
        panic!("no output")
    };
    assert_eq!(outputs[0].topic.as_str(), "hot/line/oven");
    assert_eq!(
        outputs[0].properties.content_type.as_deref(),
        Some("application/json")
    );
}

#[test]
fn what_fails_names_stage_and_reason() {
    let spec = spec(
        serde_json::json!([
            { "name": "some", "filter": { "expression": "payload.t > 80" } },
            { "name": "shape", "map": { "fields": [{ "output": "a.b", "expression": "payload.x / 0.0" }] } },
            { "name": "move", "map": { "topic": "payload.topic" } },
        ]),
        serde_json::json!([{ "name": "out", "endpointRef": { "name": "e" } }]),
    );
    let stages = to_sink(&spec, "out");
    let failed = |payload: &str| match stages.process(&record(payload)) {
        Processed::Failed { stage, reason } => format!("{stage}: {reason}"),
        other => panic!("{other:?}"),
    };
    assert_eq!(failed("{}"), "some: no such key: t");
    assert_eq!(
        failed("21 degrees"),
        "some: payload is not JSON: trailing characters at line 1 column 4"
    );
    assert_eq!(
        failed(r#"{"t": "hot"}"#),
        "some: > is not defined for string, int"
    );
    assert_eq!(failed(r#"{"t": 81}"#), "shape: a.b: no such key: x");
    let found = failed(r#"{"t": 81, "x": 1}"#);
    assert!(
        found.starts_with("shape: new payload can't be written: a number that is infinite"),
        "{found}"
    );

    let only_topic = super::Stages::compile(
        &self::spec(
            serde_json::json!([{ "name": "move", "map": { "topic": "payload.topic" } }]),
            serde_json::json!([{ "name": "out", "endpointRef": { "name": "e" } }]),
        ),
        &spec.sinks[0],
    )
    .expect("stages");
    let failed = |payload: &str| match only_topic.process(&record(payload)) {
        Processed::Failed { reason, .. } => reason,
        other => panic!("{other:?}"),
    };
    assert_eq!(
        failed(r#"{"topic": "a/+"}"#),
        "topic: topic holds '+', which is not allowed there: \"a/+\""
    );
    assert_eq!(
        failed(r#"{"topic": 7}"#),
        "topic: expression gave int, string is needed"
    );
    assert_eq!(
        payloads(&only_topic.process(&record(r#"{"topic": "a"}"#))),
        [r#"{"topic": "a"}"#]
    );
}

#[test]
fn passthrough_keeps_removes_and_adds_members() {
    let spec = spec(
        serde_json::json!([{ "name": "shape", "map": {
            "passthrough": true,
            "remove": ["secret", "deep.inner", "a.b"],
            "fields": [
                { "output": "deep.added", "expression": "payload.n + 1" },
                { "output": "n", "expression": "{'was': payload.n}" },
                { "output": "n.also", "expression": "true" },
                { "output": "plain.now", "expression": "payload.plain" },
            ],
        } }]),
        serde_json::json!([{ "name": "out", "endpointRef": { "name": "e" } }]),
    );
    let stages = to_sink(&spec, "out");
    let payload = r#"{"secret":1,"n":7,"deep":{"inner":1,"kept":[1,{"x":null}]},"a.b":2,"plain":"text"}"#;
    let expected =
        r#"{"n":{"was":7,"also":true},"deep":{"kept":[1,{"x":null}],"added":8},"plain":{"now":"text"}}"#;
    assert_eq!(payloads(&stages.process(&record(payload))), [expected]);
    let Processed::Failed { reason, .. } = stages.process(&record("[1]")) else {
        panic!("no object")
    };
    assert_eq!(
        reason,
        "passthrough needs a payload that is an object, found list"
    );
}

#[test]
fn routes_lead_to_the_first_that_holds() {
    let spec = spec(
        serde_json::json!([
            { "name": "by", "route": { "routes": [
                { "name": "alarm", "expression": "payload.level >= 3" },
                { "name": "warning", "expression": "payload.level >= 2" },
                { "name": "unused", "expression": "payload.level == 1" },
            ] } },
            { "name": "loud", "inputs": ["by.alarm"], "map": { "fields": [{ "output": "loud", "expression": "payload.level" }] } },
        ]),
        serde_json::json!([
            { "name": "pager", "endpointRef": { "name": "e" }, "inputs": ["loud"] },
            { "name": "log", "endpointRef": { "name": "e" }, "inputs": ["by.warning", "loud", "source"] },
            { "name": "quiet", "endpointRef": { "name": "e" }, "inputs": ["by.warning"] },
        ]),
    );
    let level = |level: i32| record(&format!(r#"{{"level":{level}}}"#));
    let (pager, log, quiet) = (
        to_sink(&spec, "pager"),
        to_sink(&spec, "log"),
        to_sink(&spec, "quiet"),
    );
    assert_eq!(payloads(&pager.process(&level(3))), [r#"{"loud":3}"#]);
    assert_eq!(pager.process(&level(2)), dropped(DropReason::ROUTED_ELSEWHERE));
    assert_eq!(pager.process(&level(1)), dropped(DropReason::ROUTED_ELSEWHERE));
    assert_eq!(pager.process(&level(0)), dropped(DropReason::other("unrouted")));
    // Two ways lead to one sink: two outputs of one record.
    assert_eq!(payloads(&log.process(&level(3))).len(), 2);
    assert_eq!(payloads(&log.process(&level(2))).len(), 2);
    assert_eq!(payloads(&log.process(&level(0))), [r#"{"level":0}"#]);
    assert_eq!(payloads(&quiet.process(&level(2))), [r#"{"level":2}"#]);
    assert_eq!(quiet.process(&level(3)), dropped(DropReason::ROUTED_ELSEWHERE));
    // A stage that does not lead to the sink can't fail it.
    assert!(matches!(quiet.process(&record("{}")), Processed::Failed { stage, .. } if stage == "by"));
}

#[test]
fn otherwise_takes_what_no_route_takes() {
    let spec = spec(
        serde_json::json!([{ "name": "by", "route": {
            "routes": [{ "name": "odd", "expression": "payload % 2 == 1" }],
            "otherwise": "even",
        } }]),
        serde_json::json!([{ "name": "out", "endpointRef": { "name": "e" }, "inputs": ["by.even"] }]),
    );
    let stages = to_sink(&spec, "out");
    assert_eq!(payloads(&stages.process(&record("4"))), ["4"]);
    assert_eq!(
        stages.process(&record("5")),
        dropped(DropReason::ROUTED_ELSEWHERE)
    );
}

#[test]
fn graphs_that_multiply_records_are_bounded() {
    // Each stage takes what the two before it give: the ways grow as Fibonacci's numbers.
    let stages: Vec<_> = (0..32)
        .map(|n| {
            let inputs = match n {
                0 => vec!["source".to_owned()],
                1 => vec!["source".to_owned(), "s0".to_owned()],
                n => vec![format!("s{}", n - 1), format!("s{}", n - 2)],
            };
            serde_json::json!({ "name": format!("s{n}"), "inputs": inputs, "filter": { "expression": "true" } })
        })
        .collect();
    let spec = spec(
        stages.into(),
        serde_json::json!([{ "name": "out", "endpointRef": { "name": "e" } }]),
    );
    let processed = to_sink(&spec, "out").process(&record("{}"));
    assert!(matches!(processed, Processed::Failed { .. }), "{processed:?}");
}

#[test]
fn one_value_written_many_times_does_not_grow_without_bound() {
    let fields: Vec<_> = (0..200)
        .map(|n| serde_json::json!({ "output": format!("copy{n}"), "expression": "payload" }))
        .collect();
    let spec = spec(
        serde_json::json!([{ "name": "shape", "map": { "fields": fields } }]),
        serde_json::json!([{ "name": "out", "endpointRef": { "name": "e" } }]),
    );
    let payload = format!("\"{}\"", "x".repeat(1 << 20));
    let Processed::Failed { reason, .. } = to_sink(&spec, "out").process(&record(&payload)) else {
        panic!("no failure")
    };
    assert!(reason.contains("more than 16777216 bytes"), "{reason}");
}
