//! Definitions of a newer release beside an operator that does not know them yet.

use anyhow::{Context, Result, bail};
use serde_json::json;

use super::{
    super::{install, pods::Pods},
    wrong_change::grows,
};
use crate::{
    cloud::Cloud,
    cluster::{Cluster, DEADLINE, PLANT, condition, eventually},
};

const DEFINITION: &str = "assets.foreshore.dev";
/// Where a field of a spec is defined, as a JSON pointer.
const FIELD: &str = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/ofTomorrow";
const ASSET: &str = "filler";

/// A field that only a newer release knows is named in the status, and what was accepted before runs on.
pub(in super::super) async fn field(cluster: &Cluster) -> Result<()> {
    install::well(cluster).await?;
    let pods = Pods::of_plant(cluster).await?;
    define(
        cluster,
        &json!([{"op": "add", "path": FIELD, "value": {"type": "string"}}]),
    )
    .await?;
    let told = is_told(cluster).await;
    let without = json!({"spec": {"ofTomorrow": null}});
    cluster.patch("asset", ASSET, &without.to_string()).await?;
    define(cluster, &json!([{"op": "remove", "path": FIELD}])).await?;
    told?;
    install::well(cluster).await?;
    pods.stay(cluster).await
}

async fn define(cluster: &Cluster, change: &serde_json::Value) -> Result<()> {
    let change = change.to_string();
    cluster
        .kubectl(&["patch", "crd", DEFINITION, "--type=json", "-p", &change])
        .await
        .map(drop)
}

async fn is_told(cluster: &Cluster) -> Result<()> {
    let with = json!({"spec": {"ofTomorrow": "x"}}).to_string();
    eventually("the API server knows the field", DEADLINE, || async {
        cluster.patch("asset", ASSET, &with).await?;
        let asset = cluster.json(&["get", "asset", ASSET, "-n", PLANT]).await?;
        Ok((asset["spec"]["ofTomorrow"] == "x").then_some(()))
    })
    .await?;
    eventually("the status names the field", DEADLINE, || async {
        let asset = cluster.json(&["get", "asset", ASSET, "-n", PLANT]).await?;
        let ready = condition(&asset, "Ready");
        let message = ready["message"].as_str().unwrap_or_default();
        if ready["reason"] != "Invalid" || !message.contains("ofTomorrow") || !message.contains("runs on") {
            bail!("{ready}");
        }
        Ok(Some(()))
    })
    .await?;
    let cloud = Cloud::reach(cluster).await?;
    grows(&cloud, ASSET).await.context("of what was accepted before")
}
