//! Events of the server, as they are published.

use foreshore_record::Record;
use serde_json::{Value, json};

use crate::{
    plant::{ASSET, NAMESPACE, Plant, Security, device_spec},
    server::{Kind, Server},
};

fn spec(event_type: &str) -> Value {
    let cycle = json!([{ "name": "cycle", "browsePath": format!("/nsu={NAMESPACE};Cycle") }]);
    let line = format!("nsu={NAMESPACE};s=Line");
    json!({ "eventGroups": [{ "name": "line", "events": [
        { "name": "cycle", "address": line, "opcua": { "eventType": event_type, "fields": cycle } },
        { "name": "severe", "address": line, "opcua": { "eventType": event_type, "fields": cycle, "minSeverity": 400 } },
        { "name": "other", "address": line, "opcua": { "sourceNames": ["another line"] } },
    ] }] })
}

fn bodies(plant: &Plant, event: &str) -> Vec<Value> {
    let topic = format!("foreshore/events/plant/{ASSET}/line/{event}");
    let kept = plant.harness.broker.kept().into_iter();
    kept.filter(|record: &Record| record.topic.as_str() == topic)
        .map(|record| serde_json::from_slice(&record.payload).unwrap())
        .collect()
}

async fn events_arrive(kind: Kind, security: Security) {
    let server = Server::start(kind, &[]);
    let plant = Plant::start(
        &server,
        &server.address(),
        device_spec(security),
        spec(&server.event_type()),
    )
    .await;
    let enough = |plant: &Plant| bodies(plant, "cycle").len() >= 5 && bodies(plant, "severe").len() >= 2;
    plant.wait(enough, "events are missing").await;
    let cycles: Vec<u64> = bodies(&plant, "cycle")
        .iter()
        .map(|body| body["cycle"].as_u64().unwrap())
        .collect();
    assert_eq!(crate::plant::interruptions(&cycles), [], "{cycles:?}");
    for body in bodies(&plant, "cycle") {
        let cycle = body["cycle"].as_u64().unwrap();
        assert_eq!(body["Message"], json!(format!("cycle {cycle}")));
        assert!(body["EventId"].is_string() && body["Time"].is_string(), "{body}");
    }
    for body in bodies(&plant, "severe") {
        assert_eq!(
            (&body["Severity"], body["cycle"].as_u64().unwrap() % 2),
            (&json!(400), 0)
        );
    }
    assert_eq!(bodies(&plant, "other"), Vec::<Value>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn events_of_asyncua_arrive() {
    events_arrive(Kind::Asyncua, Security::None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn events_of_node_opcua_arrive() {
    events_arrive(Kind::Node, Security::SignAndEncrypt).await;
}
