//! An API server that answers nobody, or only seldom.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::json;

use super::super::{change, drift, install, pods, scale};
use crate::{
    cloud::Metrics,
    cluster::{Cluster, OPERATOR},
    metrics,
};

/// How long it answers nobody: longer than a leader may lead without it, and than nodes may be silent.
const AWAY: Duration = Duration::from_secs(45);
const AWAY_FULL: Duration = Duration::from_secs(240);
/// Parts of that time in each of which data has to flow.
const PARTS: u32 = 3;

/// Name of what throttles.
const THROTTLE: &str = "foreshore-throttle";

/// The API server answers nobody for minutes: data flows on, and when it is back everything gets well and a change is taken
/// as before.
pub(in super::super) async fn away(cluster: &Cluster) -> Result<()> {
    install::well(cluster).await?;
    // Not by way of the API server.
    let cloud = Metrics::of(cluster).await?;
    cluster.machine(&["stop-api"]).await?;
    let flows = flows(&cloud, if cluster.full { AWAY_FULL } else { AWAY }).await;
    cluster.machine(&["start-api"]).await?;
    flows?;
    pods::settle(cluster).await?;
    install::well(cluster).await?;
    install::flows(cluster).await?;
    change::reaches(cluster).await?;
    scale::balanced(cluster).await
}

/// Whether data arrives in each part of a time.
async fn flows(cloud: &Metrics, during: Duration) -> Result<()> {
    let mut before = cloud.committed().await?;
    for part in 1..=PARTS {
        tokio::time::sleep(during / PARTS).await;
        let now = cloud.committed().await?;
        ensure!(
            now > before,
            "nothing was committed in part {part} of {PARTS} of {during:?}: {now} as before"
        );
        before = now;
    }
    Ok(())
}

/// The API server refuses most of what the operator asks, since it may ask one thing at a time and not queue: what others
/// change is made again nevertheless.
pub(in super::super) async fn throttles(cluster: &Cluster) -> Result<()> {
    install::well(cluster).await?;
    cluster
        .kubectl_with(&["apply", "-f", "-"], &throttle().to_string())
        .await?;
    let done = drift::does_not_last(cluster).await;
    let refused = refused(cluster).await;
    let kinds = "flowschemas,prioritylevelconfigurations";
    let selector = format!("app.kubernetes.io/name={THROTTLE}");
    cluster.kubectl(&["delete", kinds, "-l", &selector]).await?;
    done?;
    let refused = refused?;
    eprintln!("    {refused} requests of the operator were refused");
    ensure!(refused > 0.0, "no request was refused");
    install::well(cluster).await?;
    change::reaches(cluster).await
}

/// One seat for the operator, and many for nobody, so that one is all that its share gives.
fn throttle() -> serde_json::Value {
    let metadata = |name: &str| json!({ "name": name, "labels": { "app.kubernetes.io/name": THROTTLE } });
    let level = |name: &str, shares: u32| {
        json!({
            "apiVersion": "flowcontrol.apiserver.k8s.io/v1", "kind": "PriorityLevelConfiguration",
            "metadata": metadata(name),
            "spec": {
                "type": "Limited",
                "limited": {
                    "nominalConcurrencyShares": shares,
                    "borrowingLimitPercent": 0,
                    "limitResponse": { "type": "Reject" },
                },
            },
        })
    };
    let account = json!({
        "kind": "ServiceAccount",
        "serviceAccount": { "name": "foreshore", "namespace": OPERATOR },
    });
    let everything = json!({
        "verbs": ["*"], "apiGroups": ["*"], "resources": ["*"], "namespaces": ["*"], "clusterScope": true,
    });
    let schema = json!({
        "apiVersion": "flowcontrol.apiserver.k8s.io/v1", "kind": "FlowSchema",
        "metadata": metadata(THROTTLE),
        "spec": {
            "matchingPrecedence": 2,
            "priorityLevelConfiguration": { "name": THROTTLE },
            "rules": [{ "subjects": [account], "resourceRules": [everything] }],
        },
    });
    json!({
        "apiVersion": "v1", "kind": "List",
        "items": [level(THROTTLE, 1), level("foreshore-throttle-rest", 1000), schema],
    })
}

/// How many requests were refused, as the API server counts.
async fn refused(cluster: &Cluster) -> Result<f64> {
    let metrics = cluster.kubectl(&["get", "--raw", "/metrics"]).await?;
    let label = format!("priority_level=\"{THROTTLE}\"");
    metrics::sum(&metrics, "apiserver_flowcontrol_rejected_requests_total", &label)
}
