//! The cloud endpoint is away for longer than anybody's patience.

use std::{
    fs,
    rc::Rc,
    time::{Duration, Instant},
};

use crate::{
    plant::{Plant, SOON, START},
    proxy::Proxy,
    publisher::{Load, Publisher},
    site::{Manifests, Site, is_full},
};

const NUMBERS: &str = "dataflow/bottling/numbers->cloud";

/// Manifests of an edge whose cloud is another process, behind a port.
fn edge(site: &Site, port: u16, authority: &str) -> Manifests {
    let manifests = site.example("edge");
    manifests.remove("cloud.yaml");
    manifests.add_numbers();
    let to = format!(
        "address: 127.0.0.1:{port}\n    keepAlive: 2s\n    caSecretRef:\n      name: cloud-authority"
    );
    manifests.edit("dataflows.yaml", "cloudRef:\n      name: cloud", &to);
    let pem: String = authority.lines().map(|line| format!("    {line}\n")).collect();
    manifests.write(
        "authority.yaml",
        &format!("apiVersion: v1\nkind: Secret\nmetadata:\n  name: cloud-authority\n  namespace: bottling\nstringData:\n  ca.crt: |\n{pem}"),
    );
    manifests
}

/// Edge and cloud are two processes with a network between them. The network swallows everything; meanwhile the cloud is
/// killed and started again. What piles up is delivered when the network is back, but what happens then goes first.
#[test]
fn a_cloud_that_was_away_gets_live_data_first_and_then_everything_once() {
    let site = Rc::new(Site::new());
    let manifests = site.example("cloud");
    manifests.keep(&["cloud.yaml", "secrets.yaml"]);
    let mut cloud_process = Plant::at(&site, &manifests, "cloud-data", &[]);
    let authority = cloud_process
        .data()
        .join("roles/cloud/bottling/cloud/data/authority/ca.crt");
    cloud_process.wait_until("the cloud's authority", START, || authority.exists());
    let network = Proxy::to(site.ports.edge_link);
    let manifests = edge(&site, network.port, &fs::read_to_string(authority).unwrap());
    let mut plant = Plant::at(&site, &manifests, "edge-data", &[]);
    plant.wait_until_flowing(crate::plant::TELEMETRY);
    let answer = cloud_process.invoke(
        "bottling/filler",
        "control/set-speed",
        r#"{"BottlesPerMinute":300}"#,
    );
    assert!(answer.status.success(), "{answer:?}");

    network.swallow(true);
    let away = Instant::now();
    plant.wait_until("the dataflow is told to be unhealthy", SOON, || {
        plant.object("Dataflow", "telemetry")["healthy"] == "False"
    });
    let row = plant.object("Dataflow", "telemetry");
    assert_eq!(row["reason"], "Unreachable", "{row:#}");
    assert!(
        row["evidence"]
            .as_str()
            .is_some_and(|evidence| !evidence.is_empty()),
        "{row:#}"
    );
    assert!(row["next"].is_string(), "{row:#}");
    assert_eq!(plant.object("DataflowEndpoint", "cloud")["healthy"], "False");
    assert_eq!(plant.object("Dataflow", "archive")["healthy"], "True");

    // A command is not kept for later.
    cloud_process.wait_until("the cloud knows that the edge is away", SOON, || {
        cloud_process
            .cloud()
            .edge()
            .is_some_and(|edge| edge["connected"] == false)
    });
    let asked = Instant::now();
    let answer = cloud_process.invoke(
        "bottling/filler",
        "control/set-speed",
        r#"{"BottlesPerMinute":300}"#,
    );
    assert!(!answer.status.success(), "{answer:?}");
    assert!(
        String::from_utf8_lossy(&answer.stderr).contains("Unavailable"),
        "{answer:?}"
    );
    assert!(
        asked.elapsed() < Duration::from_secs(15),
        "half of the command's own time"
    );

    let backlog = if is_full() { 40_000 } else { 8_000 };
    let load = Load { rate: 0, size: 1000 };
    let mut past = Publisher::start(site.ports.mqtt, "numbers/past", load);
    past.wait_for(backlog, START);
    past.finish();
    cloud_process.kill();
    cloud_process.restart();
    let cloud = cloud_process.cloud();
    cloud_process.wait_until("the cloud answers again", START, || cloud.edge().is_some());
    plant.wait_until("everything waits", SOON, || {
        plant
            .path(NUMBERS)
            .is_some_and(|path| path.waiting >= past.acknowledged.len() as u64)
    });

    let parts = plant.object("Dataflow", "numbers")["parts"].clone();
    assert!(
        parts[0]["message"]
            .as_str()
            .is_some_and(|told| told.contains("records wait")),
        "{parts:#}"
    );

    // Of a short interruption nothing is made; this one was none.
    while away.elapsed() < Duration::from_secs(15) {
        std::thread::sleep(Duration::from_millis(250));
    }

    // The backlog takes a while to get through this.
    network.pace(128 * 1024);
    let load = Load { rate: 20, size: 10 };
    let mut present = Publisher::start(site.ports.mqtt, "numbers/present", load);
    present.wait_for(1, SOON);
    network.swallow(false);
    present.hear();
    let last = present.acknowledged.last().copied();
    plant.wait_until("something newer than the outage in the cloud", START, || {
        cloud
            .numbers("numbers/present")
            .last_key_value()
            .map(|(number, _)| *number)
            > last
    });
    let waiting = plant.path(NUMBERS).unwrap().waiting;
    assert!(
        waiting > past.acknowledged.len() as u64 / 4,
        "{waiting} wait behind what is live"
    );
    plant.wait_until("the dataflow is healthy again", SOON, || {
        plant.object("Dataflow", "numbers")["healthy"] == "True"
    });
    let answer = cloud_process.invoke(
        "bottling/filler",
        "control/set-speed",
        r#"{"BottlesPerMinute":280}"#,
    );
    assert!(answer.status.success(), "{answer:?}");
    present.finish();
    network.pace(0);

    plant.wait_until("nothing waits", START, || {
        plant.path(NUMBERS).is_some_and(|path| path.waiting == 0)
    });
    past.assert_once_in(&cloud);
    present.assert_once_in(&cloud);
    for path in [NUMBERS, crate::plant::TELEMETRY] {
        plant.wait_until_same_in(&cloud, path);
    }
    plant.end_balanced();
    cloud_process.end();
}
