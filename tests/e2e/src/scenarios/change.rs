//! Changes: of a user, which must reach a connector, and of others, which must not last.

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::install;
use crate::cluster::{Cluster, DEADLINE, PLANT, condition, eventually};

/// Changes an Asset: the connector acknowledges it, and no pod is another one than before.
pub(super) async fn reaches(cluster: &Cluster) -> Result<()> {
    let pods = identities(cluster).await?;
    let asset = ["asset", "filler", "-n", PLANT];
    let before = cluster.json(&[&["get"][..], &asset].concat()).await?;
    let generation = before["metadata"]["generation"].as_i64().context("generation")?;
    let patch = json!({"spec": {"description": format!("changed at generation {generation}")}}).to_string();
    cluster
        .kubectl(&[&["patch"][..], &asset, &["--type=merge", "-p", &patch]].concat())
        .await?;
    eventually("the change is in force", DEADLINE, || async {
        let now = cluster.json(&[&["get"][..], &asset].concat()).await?;
        let ready = condition(&now, "Ready");
        let seen = now["status"]["observedGeneration"].as_i64();
        let in_force = seen == Some(generation + 1) && ready["status"] == "True";
        if !in_force {
            bail!(
                "observed generation {seen:?} of {}, ready: {ready}",
                generation + 1
            );
        }
        Ok(Some(()))
    })
    .await?;
    if identities(cluster).await? != pods {
        bail!("a pod was restarted");
    }
    Ok(())
}

/// Changes and deletes objects that the operator made.
pub(super) async fn drift(cluster: &Cluster) -> Result<()> {
    cluster
        .kubectl(&[
            "patch",
            "service",
            "broker-broker",
            "-n",
            PLANT,
            "--type=merge",
            "-p",
            r#"{"spec":{"selector":{"app.kubernetes.io/instance":"nobody"}}}"#,
        ])
        .await?;
    cluster
        .kubectl(&[
            "scale",
            "deployment",
            "opcua-connector",
            "-n",
            PLANT,
            "--replicas=0",
        ])
        .await?;
    cluster
        .kubectl(&["delete", "serviceaccount", "onvif-connector", "-n", PLANT])
        .await?;
    eventually("the objects are as they were", DEADLINE, || async {
        let service = cluster
            .json(&["get", "service", "broker-broker", "-n", PLANT])
            .await?;
        let selects = &service["spec"]["selector"]["app.kubernetes.io/instance"];
        let deployment = cluster
            .json(&["get", "deployment", "opcua-connector", "-n", PLANT])
            .await?;
        let replicas = &deployment["spec"]["replicas"];
        cluster
            .json(&["get", "serviceaccount", "onvif-connector", "-n", PLANT])
            .await?;
        if selects != "broker" || replicas != 1 {
            bail!("the service selects {selects}, the deployment has {replicas} replicas");
        }
        Ok(Some(()))
    })
    .await?;
    install::well(cluster).await?;
    install::flows(cluster).await
}

/// Each pod of the plant, with how often its container was started.
async fn identities(cluster: &Cluster) -> Result<Vec<(Value, Value)>> {
    let pods = cluster.items(&["pods", "-n", PLANT]).await?;
    let mut identities: Vec<_> = pods
        .into_iter()
        .map(|pod| {
            let restarts = pod["status"]["containerStatuses"][0]["restartCount"].clone();
            (pod["metadata"]["uid"].clone(), restarts)
        })
        .collect();
    identities.sort_by_key(|(uid, _)| uid.to_string());
    Ok(identities)
}
