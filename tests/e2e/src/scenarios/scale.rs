//! Devices go over between the pods of a Connector, while their server counts.

use std::{collections::BTreeMap, fmt::Write as _, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use jiff::Timestamp;
use serde_json::Value;

use super::install;
use crate::{
    cloud::Cloud,
    cluster::{Cluster, DEADLINE, PLANT, condition, eventually},
};

const DEVICES: usize = 6;
const POINTS: usize = 2;
/// Rounds of three pods and one.
const ROUNDS: u32 = 1;
const ROUNDS_FULL: u32 = 5;

/// A server whose points count up by one, and devices that watch it.
///
/// The server counts while nobody looks too, so that what a device missed, or told twice, shows in what arrived.
fn counting() -> String {
    let mut text = format!(
        "apiVersion: foreshore.dev/v1alpha1\nkind: Simulator\nmetadata: {{name: counter}}\n\
         spec:\n  opcua: {{loadPoints: {}, loadInterval: 100ms}}\n",
        DEVICES * POINTS
    );
    for device in 0..DEVICES {
        write!(
            text,
            "---\napiVersion: foreshore.dev/v1alpha1\nkind: Device\nmetadata: {{name: counter-{device}}}\n\
             spec:\n  simulatorRef: {{name: counter}}\n  trust: {{acceptUntrusted: true}}\n  opcua: {{}}\n\
             ---\napiVersion: foreshore.dev/v1alpha1\nkind: Asset\nmetadata: {{name: counter-{device}}}\n\
             spec:\n  deviceRef: {{name: counter-{device}}}\n  datasets:\n  - name: count\n    \
             samplingInterval: 20ms\n    publishingInterval: 500ms\n    queueSize: 200\n    dataPoints:\n"
        )
        .ok();
        for point in 0..POINTS {
            let node = device * POINTS + point;
            writeln!(
                text,
                "    - {{name: p{point}, address: 'nsu=urn:foreshore:sim:bottling-line;s=Load.{node}'}}"
            )
            .ok();
        }
    }
    text
}

/// Scales a Connector to three pods and back: every point of every device has counted up by one all the time.
pub(super) async fn of_connector(cluster: &Cluster) -> Result<()> {
    let manifest = counting();
    cluster
        .kubectl_with(&["apply", "--server-side", "-n", PLANT, "-f", "-"], &manifest)
        .await?;
    spread(cluster, 1).await?;
    // What an earlier run left in the cloud endpoint does not count.
    let since = Timestamp::now();
    grows(cluster, since).await?;
    for _ in 0..if cluster.full { ROUNDS_FULL } else { ROUNDS } {
        for replicas in [3, 1] {
            let patch = format!(r#"{{"spec":{{"replicas":{replicas}}}}}"#);
            cluster.patch("connector", "opcua", &patch).await?;
            spread(cluster, replicas).await?;
            grows(cluster, since).await?;
        }
    }
    // A pod with another template takes over from the one before it.
    let before = cluster
        .pod("connector", "opcua")
        .await?
        .context("no connector is ready")?;
    let patch = format!(r#"{{"spec":{{"pod":{{"annotations":{{"example.com/run":"{since}"}}}}}}}}"#);
    cluster.patch("connector", "opcua", &patch).await?;
    let before = before["metadata"]["uid"]
        .as_str()
        .context("identity of the pod")?;
    eventually("another pod serves", DEADLINE, || async {
        let pods = instances(cluster).await?;
        let served: usize = pods.values().sum();
        Ok((pods.len() == 1 && served == DEVICES && !pods.contains_key(before)).then_some(()))
    })
    .await?;
    grows(cluster, since).await?;
    counted(cluster, since).await?;
    let undo = r#"{"spec":{"pod":null,"replicas":null}}"#;
    cluster.patch("connector", "opcua", undo).await?;
    cluster
        .kubectl_with(&["delete", "-n", PLANT, "-f", "-"], &manifest)
        .await?;
    install::well(cluster).await
}

/// How many devices of the counter each pod serves, by the pod's identity.
async fn instances(cluster: &Cluster) -> Result<BTreeMap<String, usize>> {
    let devices = cluster.items(&["devices", "-n", PLANT]).await?;
    let mut instances = BTreeMap::new();
    for device in &devices {
        let name = device["metadata"]["name"].as_str().unwrap_or_default();
        if let Some(instance) = device["status"]["instance"].as_str()
            && name.starts_with("counter-")
        {
            *instances.entry(instance.to_owned()).or_default() += 1;
        }
    }
    Ok(instances)
}

/// Waits until the devices are served by so many pods.
async fn spread(cluster: &Cluster, replicas: usize) -> Result<()> {
    eventually("devices are spread", DEADLINE, || async {
        let connector = cluster.json(&["get", "connector", "opcua", "-n", PLANT]).await?;
        let (ready, healthy) = (condition(&connector, "Ready"), condition(&connector, "Healthy"));
        let instances = instances(cluster).await?;
        let served: usize = instances.values().sum();
        if ready["status"] != "True"
            || healthy["status"] != "True"
            || instances.len() != replicas
            || served != DEVICES
        {
            bail!("devices by pod {instances:?}, ready {ready}, healthy {healthy}");
        }
        Ok(Some(()))
    })
    .await
}

/// Waits until values that are counted from now on have arrived of every device.
async fn grows(cluster: &Cluster, since: Timestamp) -> Result<()> {
    let cloud = Cloud::reach(cluster).await?;
    let start = lengths(&cloud, since).await?;
    eventually("values of every device arrive", DEADLINE, || async {
        let now = lengths(&cloud, since).await?;
        let grown = start.iter().zip(&now).all(|(before, now)| *now >= before + 20);
        tokio::time::sleep(Duration::from_millis(500)).await;
        Ok(grown.then_some(()))
    })
    .await
}

async fn lengths(cloud: &Cloud, since: Timestamp) -> Result<Vec<usize>> {
    let mut lengths = Vec::new();
    for device in 0..DEVICES {
        // Before its first value it is not known there.
        let points = cloud
            .history(&format!("counter-{device}"), since)
            .await
            .unwrap_or_default();
        lengths.push(points.values().map(Vec::len).sum());
    }
    Ok(lengths)
}

/// Every point has counted up by one, from the first value that arrived to the last.
async fn counted(cluster: &Cluster, since: Timestamp) -> Result<()> {
    let cloud = Cloud::reach(cluster).await?;
    let (mut values, mut wrong) = (0, Vec::new());
    for device in 0..DEVICES {
        let points = cloud.history(&format!("counter-{device}"), since).await?;
        for point in 0..POINTS {
            let name = format!("p{point}");
            let counted = points
                .get(&name)
                .with_context(|| format!("no values of counter-{device}/{name}"))?;
            values += counted.len();
            for pair in counted.windows(2) {
                let step = pair[1] - pair[0];
                if (step - 1.0).abs() > f64::EPSILON {
                    wrong.push(format!("counter-{device}/{name}: {} after {}", pair[1], pair[0]));
                }
            }
        }
    }
    eprintln!("    {values} values of {} points", DEVICES * POINTS);
    ensure!(
        wrong.is_empty(),
        "of {values} values {} are lost, doubled or out of order: {wrong:?}",
        wrong.len()
    );
    balanced(cluster).await
}

/// Nothing is unaccounted for in the ledger of the plant's broker.
pub(super) async fn balanced(cluster: &Cluster) -> Result<()> {
    let number = |path: &Value, member: &str| path[member].as_u64().unwrap_or(0);
    // It is asked of pods that are ready, which none is for a moment after its node was silent.
    eventually("the broker's pod is ready", DEADLINE, || {
        cluster.pod("broker", "broker")
    })
    .await?;
    let ledger = cluster.ledger(PLANT).await?;
    ensure!(!ledger.is_empty(), "the ledger is empty");
    for path in &ledger {
        let dropped = path["dropped"].as_object().into_iter().flatten();
        let dropped: u64 = dropped.filter_map(|(_, count)| count.as_u64()).sum();
        let left =
            number(path, "delivered") + number(path, "waiting") + number(path, "dead_lettered") + dropped;
        ensure!(number(path, "received") == left, "does not balance: {path}");
    }
    Ok(())
}
