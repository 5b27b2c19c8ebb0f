//! Many objects whose pods no node takes: what the operator alone does with them.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::footprint;
use crate::{
    api::Api,
    cluster::{Cluster, DEADLINE, OPERATOR, eventually, is_ready},
    many::{self, ASSETS, DEVICES, NAMESPACE, POINTS},
};

const ASSETS_QUICK: usize = 1_000;

/// Declares them while no operator runs, starts one, and watches until every one has a status; then until nothing is
/// written any more.
pub(super) async fn without_machines(cluster: &Cluster, quick: bool) -> Result<String> {
    let assets = if quick { ASSETS_QUICK } else { ASSETS };
    let api = Api::reach().await?;
    operators(cluster, 0).await?;
    cluster.kubectl(&["create", "namespace", NAMESPACE]).await?;
    let began = Instant::now();
    many::declare(&api, assets).await?;
    let declared = began.elapsed();
    eprintln!("    {assets} assets declared in {:.0} s", declared.as_secs_f64());

    let began = Instant::now();
    operators(cluster, 1).await?;
    let known = many::judged(&api, assets).await?.duration_since(began);
    let pods = cluster.items(&["pods", "-n", OPERATOR]).await?;
    let operator = pods
        .iter()
        .find(|pod| is_ready(pod))
        .context("no operator is ready")?;
    let memory = footprint::of_pod(operator)?.resident;
    eprintln!("    every asset has a status after {:.0} s", known.as_secs_f64());

    tokio::time::sleep(Duration::from_secs(if quick { 15 } else { 60 })).await;
    let watched = Duration::from_secs(if quick { 10 } else { 60 });
    let written = many::written_within(&api, watched).await?;
    let at_rest = footprint::of_pod(operator)?.resident;

    Ok(format!(
        "### {assets} Assets of {POINTS} points on {DEVICES} Devices, without pods\n\n\
         | declared by this test in | operator started to the last status | operator's RSS then | at rest | objects written at rest in {} s |\n\
         |---|---|---|---|---|\n| {:.0} s | {:.0} s | {} MiB | {} MiB | {written} |\n\n\
         The time holds the start of the pod. Floors: 60 s on two processors, which the API server and its store share \
         here; 150 MB; nothing written.\n",
        watched.as_secs(),
        declared.as_secs_f64(),
        known.as_secs_f64(),
        memory.div_ceil(1024),
        at_rest.div_ceil(1024),
    ))
}

/// Has so many operators, and waits until it is so.
async fn operators(cluster: &Cluster, count: usize) -> Result<()> {
    let replicas = format!("--replicas={count}");
    cluster
        .kubectl(&["scale", "deployment", "foreshore", "-n", OPERATOR, &replicas])
        .await?;
    if count > 0 {
        return Ok(());
    }
    eventually("no operator runs", DEADLINE, || async {
        let pods = cluster.items(&["pods", "-n", OPERATOR]).await?;
        Ok(pods.is_empty().then_some(()))
    })
    .await
}
