use std::sync::atomic::Ordering;

use serde_json::json;

use super::plant::{Plant, connection, dataflow, endpoint, line, path, quick, until};

#[tokio::test]
async fn an_edit_changes_stages_while_records_flow_and_loses_nothing() {
    let mut plant = Plant::new().await;
    let marked = |edit: u32| {
        line(json!([{ "name": "mark", "map": { "fields": [
            { "output": "edit", "expression": edit.to_string() },
            { "output": "n", "expression": "payload" },
        ] } }]))
    };
    plant.flow(marked(0)).await.expect("flow");
    for edit in 1..=12_u32 {
        for n in 0..20 {
            plant.publish("out", edit * 100 + n);
        }
        plant.flow(marked(edit)).await.expect("edit");
    }
    until("delivery", || plant.ledger("out").waiting == 0).await;
    let ledger = plant.ledger("out");
    assert!(ledger.balances(), "{ledger:?}");
    // More edits than tries: an edit must not count as one.
    assert_eq!(
        (ledger.delivered, ledger.dead_lettered, ledger.redelivered),
        (240, 0, 0),
        "{ledger:?}"
    );
    plant.publish("out", 7);
    let script = plant.scripts.of("out");
    until("last edit in force", || {
        script.payloads().contains(&r#"{"edit":12,"n":7}"#.to_owned())
    })
    .await;
    plant.end().await;
}

#[tokio::test]
async fn an_unchanged_dataflow_is_left_alone() {
    let mut plant = Plant::new().await;
    plant.flow(line(json!([]))).await.expect("flow");
    plant.publish("out", 1);
    until("delivery", || plant.ledger("out").delivered == 1).await;
    plant.flow(line(json!([]))).await.expect("same");
    plant
        .set(&endpoint("other", "elsewhere"))
        .await
        .expect("unrelated");
    plant.publish("out", 2);
    until("delivery", || plant.ledger("out").delivered == 2).await;
    let script = plant.scripts.of("out");
    assert_eq!(
        (
            script.made.load(Ordering::Relaxed),
            script.closed.load(Ordering::Relaxed)
        ),
        (1, 0)
    );
    plant.set(&endpoint("files", "moved")).await.expect("endpoint");
    until("new sink", || script.made.load(Ordering::Relaxed) == 2).await;
    assert_eq!(script.closed.load(Ordering::Relaxed), 1);
    plant.end().await;
}

#[tokio::test]
async fn what_comes_from_an_endpoint_is_read_there_and_other_changes_leave_it_alone() {
    let mut plant = Plant::new().await;
    plant.set(&endpoint("other", "there")).await.expect("endpoint");
    let mut spec = line(json!([]));
    spec["source"]["endpointRef"] = json!({ "name": "other" });
    plant.flow(spec.clone()).await.expect("flow");
    let elsewhere = plant.scripts.elsewhere.clone();
    let publish = |payload: &str| {
        let topic = foreshore_record::TopicName::new("line/value").expect("topic");
        elsewhere.publish(
            &path("out"),
            foreshore_record::Record::new(topic, payload.to_owned()),
        )
    };
    publish("1");
    let script = plant.scripts.of("out");
    until("delivery", || script.payloads() == ["1"]).await;
    assert_eq!(
        plant.ledger("out").received,
        0,
        "our broker has nothing to do with it"
    );

    plant.set(&endpoint("third", "nowhere")).await.expect("unrelated");
    plant.flow(spec.clone()).await.expect("same");
    publish("2");
    until("delivery", || script.payloads() == ["1", "2"]).await;
    assert_eq!(script.made.load(Ordering::Relaxed), 1);

    // Another address is another session.
    plant.set(&endpoint("other", "moved")).await.expect("endpoint");
    until("new sink", || script.made.load(Ordering::Relaxed) == 2).await;
    publish("3");
    until("delivery", || script.payloads() == ["1", "2", "3"]).await;

    spec["source"]["endpointRef"] = json!({ "name": "nowhere" });
    let found = plant.flow(spec).await.expect_err("refused").to_string();
    assert_eq!(
        found,
        "EndpointMissing: source names endpoint \"nowhere\", which is not there"
    );
    plant.end().await;
}

#[tokio::test]
async fn what_cannot_be_run_is_refused_and_what_ran_goes_on() {
    let mut plant = Plant::new().await;
    plant.flow(line(json!([]))).await.expect("flow");
    let refusal = async |plant: &mut Plant, spec| plant.flow(spec).await.expect_err("refused").to_string();
    let bad = line(json!([{ "name": "some", "filter": { "expression": "paylod.x > 1" } }]));
    let found = refusal(&mut plant, bad).await;
    assert!(
        found.starts_with("ExpressionInvalid: stage \"some\", filter.expression: unknown variable at 1:1"),
        "{found}"
    );
    let mut elsewhere = line(json!([]));
    elsewhere["sinks"][0]["endpointRef"]["name"] = json!("nowhere");
    let found = refusal(&mut plant, elsewhere).await;
    assert_eq!(
        found,
        "EndpointMissing: sink \"out\" leads to endpoint \"nowhere\", which is not there"
    );
    let mut broker = line(json!([]));
    broker["source"]["brokerRef"] = json!({ "name": "other" });
    let found = refusal(&mut plant, broker).await;
    assert_eq!(
        found,
        "BrokerMissing: no connection to broker \"other\" in namespace \"plant\""
    );
    let found = plant
        .set(&endpoint("files", "refused"))
        .await
        .expect_err("refused")
        .to_string();
    assert_eq!(found, "PathRefused: path is refused");

    plant.publish("out", "still running");
    until("delivery", || plant.ledger("out").delivered == 1).await;
    assert_eq!(plant.scripts.of("out").made.load(Ordering::Relaxed), 1);

    plant.set(&connection("second")).await.expect("connection");
    let found = plant
        .flow(line(json!([])))
        .await
        .expect_err("ambiguous")
        .to_string();
    assert!(found.starts_with("Ambiguous: "), "{found}");
    plant.end().await;
}

#[tokio::test]
async fn a_kind_that_is_not_ours_is_refused() {
    let mut plant = Plant::new().await;
    let path = foreshore_control::plan::PathPlan {
        namespace: super::plant::NAMESPACE.to_owned(),
        path: path("out"),
        topics: Vec::new(),
        max_bytes: None,
        max_age_seconds: None,
        overflow: Default::default(),
        reader: "runner".to_owned(),
    };
    let found = plant.set(&path).await.expect_err("refused");
    assert_eq!(found.reason, "UnsupportedHere");
    plant.end().await;
}

#[tokio::test]
async fn switched_off_and_deleted_dataflows_end_their_sinks() {
    let mut plant = Plant::new().await;
    plant.flow(line(json!([]))).await.expect("flow");
    let script = plant.scripts.of("out");
    until("sink", || script.probes.load(Ordering::Relaxed) > 0).await;
    let mut off = line(json!([]));
    off["enabled"] = json!(false);
    plant.flow(off).await.expect("off");
    until("end", || script.closed.load(Ordering::Relaxed) == 1).await;
    plant.publish("out", "kept");
    assert_eq!(plant.ledger("out").waiting, 1);
    plant.flow(line(json!([]))).await.expect("on");
    until("delivery", || plant.ledger("out").delivered == 1).await;
    let metrics = plant.metrics.encode().expect("metrics");
    assert!(
        metrics
            .contains(r#"foreshore_dataflow_outputs_total{namespace="plant",dataflow="flow",sink="out"} 1"#),
        "{metrics}"
    );
    plant.remove("Dataflow", "flow").await.expect("removed");
    until("end", || script.closed.load(Ordering::Relaxed) == 2).await;
    let metrics = plant.metrics.clone();
    until("metrics forgotten", || {
        !metrics.encode().expect("metrics").contains(r#"dataflow="flow""#)
    })
    .await;
    plant.end().await;
}

#[tokio::test]
async fn routes_lead_records_to_different_sinks() {
    let mut plant = Plant::new().await;
    let spec = json!({
        "source": { "topics": ["#"] },
        "stages": [{ "name": "by", "route": { "routes": [{ "name": "high", "expression": "payload > 5" }] } }],
        "sinks": [
            { "name": "high", "endpointRef": { "name": "files" }, "inputs": ["by.high"], "lane": "Alarm" },
            { "name": "all", "endpointRef": { "name": "files" }, "inputs": ["source"], "lane": "Bulk" },
        ],
        "delivery": quick(),
    });
    plant
        .set(&dataflow("other", line(json!([]))))
        .await
        .expect("another dataflow whose queue is missing");
    plant.flow(spec).await.expect("flow");
    for n in 0..10 {
        plant.publish("high", n);
        plant.publish("all", n);
    }
    until("settlement", || {
        plant.ledger("high").waiting + plant.ledger("all").waiting == 0
    })
    .await;
    let high = plant.ledger("high");
    assert_eq!((high.delivered, high.dropped.get("unrouted")), (4, Some(&6)));
    assert_eq!(plant.ledger("all").delivered, 10);
    let lanes = |sink: &str| plant.scripts.of(sink).received.lock()[0].lane;
    assert_eq!(
        (lanes("high"), lanes("all")),
        (foreshore_record::Lane::Alarm, foreshore_record::Lane::Bulk)
    );
    plant.end().await;
}
