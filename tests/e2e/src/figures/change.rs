//! The time from a change of an Asset to the moment when the API server tells that its connector has taken it.
//!
//! That is longer than the time to the connector's acknowledgement, by the writing of the status and its way back.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use reqwest::Method;
use serde_json::{Value, json};

use super::percentile;
use crate::{
    api::Api,
    cluster::{PLANT, condition},
};

/// Assets of the simulated line, which take turns.
const ASSETS: [&str; 5] = ["filler", "capper", "labeller", "palletiser", "line"];
/// Changes that are measured.
const CHANGES: usize = 200;
const CHANGES_QUICK: usize = 20;
/// Time between two changes.
const INTERVAL: Duration = Duration::from_millis(400);
/// Longest that one may take.
const LONGEST: Duration = Duration::from_secs(30);

/// Changes Assets one after the other.
pub(super) async fn times(quick: bool) -> Result<String> {
    let api = Api::reach().await?;
    let mut times = Vec::new();
    for round in 0..if quick { CHANGES_QUICK } else { CHANGES } {
        let asset = ASSETS[round % ASSETS.len()];
        times.push(
            time(&api, asset, round)
                .await
                .with_context(|| format!("change {round} of {asset}"))?,
        );
        tokio::time::sleep(INTERVAL).await;
    }
    times.sort_by(f64::total_cmp);
    let changes = times.len();
    Ok(format!(
        "### From a change of an Asset to the status that says its connector has it\n\n\
         | changes | p50 | p90 | p99 | slowest |\n|---|---|---|---|---|\n| {changes} | {:.0} ms | {:.0} ms | {:.0} ms | {:.0} ms |\n\n\
         Floor: p99 of 250 ms to the connector's acknowledgement, which comes before the status is written.\n",
        percentile(&times, 50),
        percentile(&times, 90),
        percentile(&times, 99),
        percentile(&times, 100),
    ))
}

/// Milliseconds that one change takes.
pub(super) async fn time(api: &Api, asset: &str, round: usize) -> Result<f64> {
    let path = format!("/apis/foreshore.dev/v1alpha1/namespaces/{PLANT}/assets/{asset}");
    let before = api.send(Method::GET, &path, None).await?.body;
    let version = before["metadata"]["resourceVersion"]
        .as_str()
        .context("version")?;
    let watch = format!(
        "/apis/foreshore.dev/v1alpha1/namespaces/{PLANT}/assets?watch=true&fieldSelector=metadata.name%3D{asset}\
         &resourceVersion={version}&timeoutSeconds={}",
        LONGEST.as_secs()
    );
    let mut events = api.watch(&watch).await?;
    let patch = json!({ "spec": { "description": format!("measured in round {round}") } });
    let began = Instant::now();
    let answer = api.merge(&path, &patch).await?;
    ensure!(answer.is_taken(), "{}", answer.message());
    let generation = answer.body["metadata"]["generation"]
        .as_i64()
        .context("generation")?;
    loop {
        let event = events.next().await?.context("the watch ended")?;
        if is_taken(&event["object"], generation) {
            return Ok(began.elapsed().as_secs_f64() * 1000.0);
        }
    }
}

fn is_taken(asset: &Value, generation: i64) -> bool {
    let ready = condition(asset, "Ready");
    asset["status"]["observedGeneration"] == generation
        && ready["status"] == "True"
        && ready["observedGeneration"] == generation
}
