//! Values, as they are published.

use foreshore_record::{property, value};
use serde_json::{Value, json};

use crate::{
    plant::{NAMESPACE, Plant, Security, device_spec, is_key, node},
    server::{Counts, Kind, SOON, Server},
};

/// Every kind of address and of value, and two addresses that do not exist.
fn spec() -> Value {
    let point = |name: &str, address: String| json!({ "name": name, "address": address });
    json!({ "datasets": [
        {
            "name": "all",
            "samplingInterval": "0s",
            "publishingInterval": "100ms",
            "queueSize": 100,
            "dataPoints": [
                point("status", node("Status")),
                point("path", node("Path")),
                point("mode", "ns=3;s=Line.Mode".to_owned()),
                point("recipe", node("Recipe")),
                point("stamped", format!("/Objects/nsu={NAMESPACE};Line/3:Stamped")),
                point("moment", node("Moment")),
                point("nowhere", node("Nowhere")),
                point("elsewhere", "nsu=urn:foreshore:peer:nothing;s=Line.Counter".to_owned()),
            ],
        },
        {
            "name": "whole",
            "samplingInterval": "0s",
            "publishingInterval": "100ms",
            "queueSize": 100,
            "keyFrame": { "count": 1 },
            "opcua": { "startNode": format!("nsu={NAMESPACE};s=Line") },
            "dataPoints": [point("counter", "/3:Counter".to_owned()), point("mode", node("Mode"))],
        },
        {
            "name": "coarse",
            "samplingInterval": "0s",
            "publishingInterval": "100ms",
            "queueSize": 100,
            "dataPoints": [{ "name": "level", "address": node("Level"), "deadband": { "absolute": 1.0 } }],
        },
    ] })
}

async fn values_arrive(kind: Kind, stamp: &str, application: &str) {
    let mut server = Server::start(kind, &[]);
    for security in [Security::None, Security::Sign, Security::SignAndEncrypt] {
        let plant = Plant::start(&server, &server.address(), device_spec(security), spec()).await;
        plant
            .wait(
                |plant| {
                    ["status", "path", "mode", "recipe", "stamped", "moment"]
                        .iter()
                        .all(|point| !plant.values("all", point).is_empty())
                },
                "some values are missing",
            )
            .await;
        values_are_plain(&plant, stamp);
        unknown_addresses_are_named(&plant).await;
        whole_frames_are_whole(&plant, application).await;
        small_changes_are_left_out(&plant).await;
        plant.wait_for_reason("Healthy").await;
        drop(plant.harness.stop(SOON).await);
        server.wait_for_counts(Counts {
            sessions: 0,
            subscriptions: 0,
        });
    }
}

/// Structures are nested objects, enumerations their numbers, and times are the server's own.
fn values_are_plain(plant: &Plant, stamp: &str) {
    let value = |point| plant.values("all", point).remove(0);
    let path = json!([{ "X": 1.0, "Y": 2.0 }, { "X": 3.0, "Y": 4.0 }]);
    let status = json!({ "Position": path[0], "Path": path, "Counts": [1, 2, 3], "Mode": 1 });
    assert_eq!((value("status"), value("path")), (status, path));
    assert_eq!((value("mode"), value("recipe")), (json!(1), json!([1, 2, 3])));
    let stamped = plant.frames("all").into_iter().find_map(|frame| {
        let mut values = value::decode(&frame.payload).unwrap();
        values.remove("stamped")
    });
    let stamped = stamped.unwrap();
    assert_eq!(stamped.value, json!(7));
    assert_eq!(stamped.source_timestamp, Some(stamp.parse().unwrap()));
    assert_eq!(value("moment"), json!(stamp));
}

/// Unknown addresses stop no others, and are named.
async fn unknown_addresses_are_named(plant: &Plant) {
    let reports = &plant.harness.reports;
    let named = reports
        .wait_until(SOON, |reports| {
            let report = reports.report("Asset", "line", "Dataset all");
            report.is_some_and(|report| {
                report.reason == "AddressUnknown"
                    && report.health == foreshore_control::Health::Degraded
                    && report.evidence.starts_with("2 of 8 data points fail: ")
                    && report.evidence.contains("nowhere (BadNodeIdUnknown)")
                    && report
                        .evidence
                        .contains(r#"elsewhere (the server has no namespace "urn:foreshore:peer:nothing")"#)
            })
        })
        .await;
    assert!(named, "{:?}", reports.report("Asset", "line", "Dataset all"));
}

/// With a key frame at each message every message holds every point; and says where it comes from.
async fn whole_frames_are_whole(plant: &Plant, application: &str) {
    plant
        .wait(|plant| plant.frames("whole").len() >= 10, "no frames")
        .await;
    for frame in plant.frames("whole") {
        let values = value::decode(&frame.payload).unwrap();
        assert!(is_key(&frame) && values.len() == 2, "{frame:?}");
        assert_eq!(frame.user_property(property::CE_SOURCE), Some(application));
    }
}

/// Changes within the deadband are left out.
async fn small_changes_are_left_out(plant: &Plant) {
    plant
        .wait(|plant| plant.values("coarse", "level").len() >= 5, "no levels")
        .await;
    let levels = plant.values("coarse", "level");
    let steps = levels
        .windows(2)
        .map(|pair| pair[1].as_f64().unwrap() - pair[0].as_f64().unwrap());
    assert!(steps.into_iter().all(|step| step >= 1.0), "{levels:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn values_of_asyncua_arrive() {
    values_arrive(
        Kind::Asyncua,
        "2020-01-02T03:04:05.678901Z",
        "urn:foreshore:peer:asyncua",
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn values_of_node_opcua_arrive() {
    values_arrive(
        Kind::Node,
        "2020-01-02T03:04:05.678Z",
        "urn:foreshore:peer:node-opcua",
    )
    .await;
}
