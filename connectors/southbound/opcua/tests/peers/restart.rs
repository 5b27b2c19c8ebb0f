//! The server is killed, and comes back.

use foreshore_connector_sdk::testkit::Recorder;

use crate::{
    plant::{NAMESPACE, Plant, Security, counter_spec, device_spec, interruptions},
    server::{Counts, Kind, SOON, Server},
};

/// A server that was killed comes back on the same port, numbers its namespaces otherwise, and counts from one again.
async fn data_flows_again(kind: Kind, security: Security) {
    let mut server = Server::start(kind, &[]);
    let mut asset = counter_spec();
    asset["datasets"][0]["dataPoints"][0]["address"] =
        format!("/Objects/nsu={NAMESPACE};Line/nsu={NAMESPACE};Counter").into();
    let slow = serde_json::json!({ "name": "slow", "dataPoints": [{ "name": "status", "address": crate::plant::node("Status") }] });
    asset["datasets"].as_array_mut().unwrap().push(slow);
    let plant = Plant::start(&server, &server.address(), device_spec(security), asset).await;
    plant.wait_for_counter(0, 20).await;
    plant
        .wait(
            |plant| !plant.values("slow", "status").is_empty(),
            "no structure came",
        )
        .await;

    server.kill();
    let evidence = plant.wait_for_reason("Reconnecting").await;
    assert!(evidence.starts_with("connection lost: Bad"), "{evidence}");
    let reports = &plant.harness.reports;
    let told = |reports: &Recorder| reports.reason("Asset", "line", "Dataset fast") == "Reconnecting";
    assert!(
        reports.wait_until(SOON, told).await,
        "the dataset is healthy without a server"
    );
    let before = plant.counter();
    server.start_again(&["swap"]);

    plant.wait_for_counter(before.len(), 60).await;
    plant.wait_for_reason("Healthy").await;
    let after = plant.counter();
    let breaks = interruptions(&after);
    assert_eq!(breaks.len(), 1, "{breaks:?}");
    assert_eq!(plant.gaps(), 1, "the time without a server is a gap");
    plant
        .wait(
            |plant| plant.values("slow", "status").len() >= 2,
            "no structure came",
        )
        .await;
    let structures = plant.values("slow", "status");
    assert_eq!(
        structures.first(),
        structures.last(),
        "a structure is read by the types of before"
    );
    server.wait_for_counts(Counts {
        sessions: 1,
        subscriptions: 2,
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_of_asyncua_is_survived() {
    data_flows_again(Kind::Asyncua, Security::SignAndEncrypt).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_of_node_opcua_is_survived() {
    data_flows_again(Kind::Node, Security::None).await;
}

/// A server that was away for longer than it keeps anything is dialled anew, as on the first day, and the gap is told.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_was_away_for_long_is_dialled_anew() {
    let mut server = Server::start(Kind::Node, &[]);
    let mut spec = device_spec(Security::SignAndEncrypt);
    spec["opcua"]["sessionTimeout"] = "2s".into();
    spec["opcua"]["subscriptionLifetime"] = "3s".into();
    let plant = Plant::start(&server, &server.address(), spec, counter_spec()).await;
    plant.wait_for_counter(0, 20).await;
    server.kill();
    plant.wait_for_reason("Reconnecting").await;
    plant.wait_for_reason("Unreachable").await;
    let before = plant.counter().len();
    server.start_again(&[]);
    plant.wait_for_counter(before, 20).await;
    plant.wait_for_reason("Healthy").await;
    assert_eq!((interruptions(&plant.counter()).len(), plant.gaps()), (1, 1));
}
