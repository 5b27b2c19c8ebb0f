//! From nothing to values at the cloud endpoint, with the commands of the README.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::{
    cloud::Cloud,
    cluster::{Cluster, DEADLINE, OPERATOR, PLANT, condition, eventually},
};

/// The manifests of the example.
pub(crate) const EXAMPLE: &str = "deploy/examples/bottling-line";

/// The node that gets no volume.
pub(super) const SPARE: &str = "node-3";

/// Installs both charts and the example, and waits for values.
pub(super) async fn to_data(cluster: &Cluster) -> Result<()> {
    operator(cluster).await?;
    // A node without volumes can be lost later.
    if cluster.has_machines() {
        cluster.kubectl(&["cordon", SPARE]).await?;
    }
    cluster
        .kubectl(&["apply", "--server-side", "-k", EXAMPLE])
        .await?;
    well(cluster).await?;
    if cluster.has_machines() {
        cluster.kubectl(&["uncordon", SPARE]).await?;
    }
    flows(cluster).await
}

/// Installs the definitions.
pub(super) async fn definitions(cluster: &Cluster) -> Result<()> {
    cluster
        .helm(&[
            "upgrade",
            "--install",
            "foreshore-crds",
            "charts/foreshore-crds",
            "-n",
            OPERATOR,
            "--create-namespace",
        ])
        .await
        .map(drop)
}

/// Installs both charts.
pub(crate) async fn operator(cluster: &Cluster) -> Result<()> {
    definitions(cluster).await?;
    cluster
        .kubectl(&[
            "label",
            "--overwrite",
            "namespace",
            OPERATOR,
            "pod-security.kubernetes.io/enforce=restricted",
        ])
        .await?;
    cluster
        .helm(&[
            "upgrade",
            "--install",
            "foreshore",
            "charts/foreshore",
            "-n",
            OPERATOR,
            "--wait",
            "--timeout",
            "120s",
            "--set",
            "image.repository=localhost/foreshore",
            "--set",
            "image.tag=dev",
            "--set",
            "image.pullPolicy=Never",
            "--set",
            "replicas=2",
        ])
        .await?;
    Ok(())
}

/// Waits until every object of the plant is in force as it is declared, and no pod is still to be replaced.
pub(crate) async fn well(cluster: &Cluster) -> Result<()> {
    well_in(cluster, PLANT).await
}

/// As [`well`], in another namespace that holds the example.
pub(crate) async fn well_in(cluster: &Cluster, namespace: &str) -> Result<()> {
    eventually("every object is ready", DEADLINE, || async {
        let objects = cluster.items(&["foreshore", "-n", namespace]).await?;
        if objects.len() < 20 {
            bail!("found {} objects", objects.len());
        }
        for object in &objects {
            let ready = condition(object, "Ready");
            let (kind, name) = (&object["kind"], &object["metadata"]["name"]);
            if object["status"]["observedGeneration"] != object["metadata"]["generation"] {
                bail!("{kind} {name} has changed, and its status is of before");
            }
            if ready["status"] != "True" {
                bail!(
                    "{kind} {name} is not ready: {} {}",
                    ready["reason"],
                    ready["message"]
                );
            }
        }
        for workload in cluster
            .items(&["deployments,statefulsets", "-n", namespace])
            .await?
        {
            if !is_rolled_out(&workload) {
                let (kind, name) = (&workload["kind"], &workload["metadata"]["name"]);
                bail!("{kind} {name} replaces pods: {}", workload["status"]);
            }
        }
        Ok(Some(()))
    })
    .await
}

/// Whether all pods of a Deployment or StatefulSet are as it has them now, and ready.
fn is_rolled_out(workload: &Value) -> bool {
    let status = &workload["status"];
    let count = |member: &str| status[member].as_u64().unwrap_or(0);
    let wanted = workload["spec"]["replicas"].as_u64().unwrap_or(1);
    status["observedGeneration"] == workload["metadata"]["generation"]
        && ["replicas", "updatedReplicas", "readyReplicas"]
            .into_iter()
            .all(|member| count(member) == wanted)
}

/// Waits until values that are measured from now on are committed at the cloud endpoint.
pub(crate) async fn flows(cluster: &Cluster) -> Result<()> {
    // The pod may be another one than a moment ago.
    eventually("the cloud endpoint commits values", DEADLINE, || async {
        let cloud = Cloud::reach(cluster).await?;
        let before = cloud.committed().await?;
        tokio::time::sleep(Duration::from_secs(2)).await;
        let after = cloud.committed().await?;
        let newest = cloud.newest("filler").await?.context("no value of the filler")?;
        if after <= before {
            bail!("{after} outputs are committed, as before; the newest value is of {newest}");
        }
        Ok(Some(()))
    })
    .await
}
