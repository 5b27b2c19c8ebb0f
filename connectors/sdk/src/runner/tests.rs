//! The runner with a scripted connector against a broker stand-in.

mod commands;
mod data;
mod handover;
mod plans;
mod session;

use std::{path::Path, sync::Arc, time::Duration};

use foreshore_record::{Record, value};
use serde_json::json;

use crate::{
    plan::{AssetPlan, DevicePlan},
    runner::RunnerOptions,
    testkit::{FakeConnector, Harness, Recorder, asset, device},
};

/// Generous: a deadline, never a measurement.
const SOON: Duration = Duration::from_secs(30);
/// What would come, comes within a few round trips.
const NOT_NOW: Duration = Duration::from_millis(150);

fn line() -> DevicePlan {
    device(
        "line",
        "fake://line",
        json!({ "custom": { "type": "fake" }, "reconnect": { "initial": "5ms", "maximum": "20ms" } }),
    )
    .unwrap()
}

fn filler() -> AssetPlan {
    asset(
        "filler",
        "line",
        json!({
            "datasets": [{ "name": "fast", "dataPoints": [{ "name": "a", "address": "1" }, { "name": "b", "address": "2" }] }],
            "actionGroups": [{ "name": "ops", "actions": [
                { "name": "start", "type": "Call" },
                { "name": "speed", "type": "Write", "idempotent": true },
                { "name": "state", "type": "Read" },
            ]}],
        }),
    )
    .unwrap()
}

fn options(directory: &Path) -> RunnerOptions {
    let mut options = RunnerOptions::new(directory.to_owned());
    options.report_interval = Duration::from_millis(50);
    options
}

async fn harness(connector: &FakeConnector, options: RunnerOptions) -> Harness {
    Harness::with(Arc::new(connector.clone()), options, Default::default())
        .await
        .unwrap()
}

async fn assert_one_asset_is_observed(connector: &FakeConnector) {
    let one = |fake: &FakeConnector| fake.observed().last().is_some_and(|assets| assets.len() == 1);
    assert!(connector.wait_until(SOON, one).await);
}

async fn assert_endpoint_becomes(harness: &Harness, reason: &str) {
    let told = |reports: &Recorder| reports.reason("Device", "line", "Endpoint") == reason;
    assert!(harness.reports.wait_until(SOON, told).await);
}

/// A device with one asset, linked.
async fn linked(directory: &Path) -> (Harness, FakeConnector) {
    linked_with(options(directory)).await
}

async fn linked_with(options: RunnerOptions) -> (Harness, FakeConnector) {
    let connector = FakeConnector::default();
    let mut harness = harness(&connector, options).await;
    harness.set(&line()).await.unwrap();
    harness.set(&filler()).await.unwrap();
    assert_one_asset_is_observed(&connector).await;
    assert_endpoint_becomes(&harness, "Healthy").await;
    (harness, connector)
}

/// Data messages, without the request schemas.
fn data(records: Vec<Record>) -> Vec<Record> {
    records
        .into_iter()
        .filter(|record| record.topic.as_str().starts_with("foreshore/data/"))
        .collect()
}

/// The value of point `a` in each message.
fn values_of_a(records: &[Record]) -> Vec<i64> {
    let value_of = |record: &Record| {
        value::decode(&record.payload).unwrap()["a"]
            .value
            .as_i64()
            .unwrap()
    };
    records.iter().map(value_of).collect()
}

fn sequences(records: &[Record]) -> Vec<u64> {
    records
        .iter()
        .map(|record| record.number.as_ref().unwrap().sequence)
        .collect()
}
