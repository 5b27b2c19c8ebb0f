//! A change that is wrong.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::super::{install, kill, pods::Pods};
use crate::{
    cloud::Cloud,
    cluster::{Cluster, DEADLINE, OPERATOR, PLANT, condition, eventually},
};

/// The Asset that is changed.
const ASSET: &str = "filler";
/// Time in which a new leader has told every role what it shall have.
const SETTLED: Duration = Duration::from_secs(20);

/// An Asset is made to name a Device that does not exist: what was accepted before runs on, also when every operator is
/// killed, until the change is corrected; then nothing is kept of it.
pub(in super::super) async fn stops_nothing(cluster: &Cluster) -> Result<()> {
    install::well(cluster).await?;
    let pods = Pods::of_plant(cluster).await?;
    let right = cluster.json(&["get", "asset", ASSET, "-n", PLANT]).await?;
    let wrong = json!({"spec": {"deviceRef": {"name": "nobody"}}});
    cluster.patch("asset", ASSET, &wrong.to_string()).await?;
    let ran = runs_on(cluster, &right).await;
    let correct = json!({"spec": {"deviceRef": right["spec"]["deviceRef"]}});
    cluster.patch("asset", ASSET, &correct.to_string()).await?;
    ran?;
    install::well(cluster).await?;
    pods.stay(cluster).await?;
    eventually(
        "nothing is kept of a change that is corrected",
        DEADLINE,
        || async {
            let kept = kept(cluster).await?;
            Ok(kept.is_empty().then_some(()))
        },
    )
    .await
}

async fn runs_on(cluster: &Cluster, right: &Value) -> Result<()> {
    let generation = &right["metadata"]["generation"];
    let told = || async {
        let asset = cluster.json(&["get", "asset", ASSET, "-n", PLANT]).await?;
        let ready = condition(&asset, "Ready");
        let message = ready["message"].as_str().unwrap_or_default();
        if ready["reason"] != "NotFound" || !message.contains(&format!("generation {generation} runs on")) {
            bail!("{ready}");
        }
        Ok(Some(()))
    };
    eventually("the status says what runs on", DEADLINE, told).await?;
    eventually("what runs on is kept", DEADLINE, || async {
        let kept = kept(cluster).await?;
        Ok((kept.len() == 1).then_some(()))
    })
    .await?;
    let cloud = Cloud::reach(cluster).await?;
    grows(&cloud, ASSET).await?;
    let before = kill::leader(cluster).await?.context("nobody leads")?;
    cluster
        .kubectl(&[
            "delete",
            "pods",
            "--all",
            "-n",
            OPERATOR,
            "--grace-period=0",
            "--force",
        ])
        .await?;
    eventually("another one leads", DEADLINE, || async {
        Ok(kill::leader(cluster).await?.filter(|now| *now != before))
    })
    .await?;
    tokio::time::sleep(SETTLED).await;
    grows(&cloud, ASSET).await.context("under the next leader")?;
    eventually("the status still says what runs on", DEADLINE, told).await
}

/// Waits for new values of an Asset.
pub(super) async fn grows(cloud: &Cloud, asset: &str) -> Result<()> {
    let before = cloud.newest(asset).await?;
    eventually("values arrive", DEADLINE, || async {
        let now = cloud.newest(asset).await?;
        Ok((now > before).then_some(()))
    })
    .await
}

/// Versions that are kept because a newer one is wrong.
async fn kept(cluster: &Cluster) -> Result<Vec<Value>> {
    cluster
        .items(&["controllerrevisions", "-n", PLANT, "-l", "foreshore.dev/runs-on"])
        .await
}
