//! Changes of a user, which must reach a connector.

use anyhow::{Context, Result, bail};
use serde_json::json;

use super::pods::Pods;
use crate::cluster::{Cluster, DEADLINE, PLANT, condition, eventually};

/// Changes an Asset: the connector acknowledges it, and no pod is another one than before.
pub(super) async fn reaches(cluster: &Cluster) -> Result<()> {
    let pods = Pods::of_plant(cluster).await?;
    let asset = ["asset", "filler", "-n", PLANT];
    let before = cluster.json(&[&["get"][..], &asset].concat()).await?;
    let generation = before["metadata"]["generation"].as_i64().context("generation")?;
    let patch = json!({"spec": {"description": format!("changed at generation {generation}")}}).to_string();
    cluster.patch("asset", "filler", &patch).await?;
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
    pods.stay(cluster).await
}
