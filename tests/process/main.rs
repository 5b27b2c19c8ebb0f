//! Tests of the real binary: `foreshore up` and who speaks to it.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail like tests")]

mod plant;

use std::{fs, time::Duration};

use plant::{Plant, wait_until};
use serde_json::Value;

/// Long enough for a loaded machine to start everything.
const START: Duration = Duration::from_secs(180);

#[test]
fn a_bottling_line_flows_from_its_opc_ua_server_to_the_cloud_and_every_path_balances() {
    let plant = Plant::start();
    plant.wait_until_delivered("dataflow/bottling/telemetry->cloud", 20, START);
    let ledger = plant.end();
    for path in &ledger {
        assert!(path.balances(), "{path:?}");
    }
    let connector = ledger
        .iter()
        .find(|path| path.path.starts_with("connector/bottling/line-1->"));
    assert!(connector.is_some_and(|path| path.delivered > 0), "{ledger:?}");
}

#[test]
fn the_cloud_counts_what_the_ledger_says_it_acknowledged() {
    let plant = Plant::start();
    plant.wait_until_delivered("dataflow/bottling/telemetry->cloud", 20, START);
    let path = "dataflow/bottling/telemetry->cloud";
    // Both counts move; they are the same at some moment, and the cloud's is never smaller.
    let same = wait_until(Duration::from_secs(30), || {
        let emitted = plant.path(path).and_then(|path| path.emitted).unwrap_or_default();
        plant.cloud_count(path) == Some(emitted)
    });
    assert!(
        same,
        "ledger {:?}, cloud {:?}",
        plant.path(path),
        plant.cloud_count(path)
    );
    plant.end();
}

#[test]
fn a_command_writes_a_value_and_calls_a_method() {
    let plant = Plant::start();
    plant.wait_until_delivered("dataflow/bottling/telemetry->cloud", 1, START);
    let called = plant.invoke(
        "bottling/filler",
        "control/set-speed",
        r#"{"BottlesPerMinute":300}"#,
    );
    assert!(called.status.success(), "{called:?}");
    let written = plant.invoke("bottling/filler", "control/write-speed", "275.5");
    assert!(written.status.success(), "{written:?}");
    // The machine shows a new speed with its next scan, like a controller.
    let shown = wait_until(Duration::from_secs(30), || {
        let read = plant.invoke("bottling/filler", "control/read-speed", "null");
        assert!(read.status.success(), "{read:?}");
        String::from_utf8_lossy(&read.stdout).contains("275.5")
    });
    assert!(shown);
    let refused = plant.invoke("bottling/filler", "control/write-speed", "100000");
    let why =
        String::from_utf8_lossy(&refused.stdout).into_owned() + &String::from_utf8_lossy(&refused.stderr);
    assert!(why.contains("BadOutOfRange"), "{refused:?}");
    plant.end();
}

#[test]
fn a_wrong_edit_leaves_running_what_runs_and_says_what_is_wrong() {
    let plant = Plant::start();
    plant.wait_until_delivered("dataflow/bottling/telemetry->cloud", 1, START);
    let file = plant.manifests().join("filler.yaml");
    let right = fs::read_to_string(&file).unwrap();
    fs::write(&file, right.replacen("deviceRef:", "deviceReff:", 1)).unwrap();
    let told = wait_until(Duration::from_secs(20), || {
        let problems = plant.status()["problems"].clone();
        problems.to_string().contains("deviceReff") && problems.to_string().contains("filler.yaml")
    });
    assert!(told, "{}", plant.status()["problems"]);
    let before = plant
        .path("dataflow/bottling/telemetry->cloud")
        .unwrap()
        .delivered;
    plant.wait_until_delivered(
        "dataflow/bottling/telemetry->cloud",
        before + 10,
        Duration::from_secs(60),
    );
    fs::write(&file, right).unwrap();
    let mended = wait_until(Duration::from_secs(20), || {
        plant.status()["problems"] == Value::Array(Vec::new())
    });
    assert!(mended, "{}", plant.status()["problems"]);
    plant.end();
}

#[test]
fn a_data_directory_serves_one_process() {
    let plant = Plant::start();
    plant.wait_until_delivered("dataflow/bottling/telemetry->cloud", 1, START);
    let second = plant.second();
    let why = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(
        !second.status.success() && why.contains("in use by another foreshore"),
        "{why}"
    );
    plant.end();
}

#[test]
fn killed_outright_it_goes_on_where_it_was() {
    let rounds = if std::env::var("FORESHORE_TEST_FULL").is_ok_and(|full| !full.is_empty()) {
        20
    } else {
        2
    };
    let path = "dataflow/bottling/telemetry->cloud";
    let mut plant = Plant::start();
    let mut delivered = 0;
    for _ in 0..rounds {
        plant.wait_until_delivered(path, delivered + 10, START);
        delivered = plant.path(path).unwrap().delivered;
        plant = plant.kill_and_restart();
    }
    plant.wait_until_delivered(path, delivered + 10, START);
    let same = wait_until(Duration::from_secs(30), || {
        plant.cloud_count(path) == plant.path(path).and_then(|path| path.emitted)
    });
    assert!(
        same,
        "ledger {:?}, cloud {:?}",
        plant.path(path),
        plant.cloud_count(path)
    );
    for path in plant.end() {
        assert!(path.balances(), "{path:?}");
    }
}
