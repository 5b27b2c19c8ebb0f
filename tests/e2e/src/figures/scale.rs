//! Many objects whose pods no node takes: what the operator alone does with them.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use futures::{TryStreamExt, stream};
use reqwest::Method;
use serde_json::{Value, json};

use super::footprint;
use crate::{
    api::Api,
    cluster::{Cluster, OPERATOR, eventually, is_ready},
};

const NAMESPACE: &str = "many";
const DEVICES: usize = 200;
const ASSETS: usize = 10_000;
const ASSETS_QUICK: usize = 1_000;
const POINTS: usize = 20;
/// Requests at a time.
const AT_ONCE: usize = 16;
/// Longest that everything may take.
const LONGEST: Duration = Duration::from_secs(900);

/// Declares them while no operator runs, starts one, and watches until every one has a status; then until nothing is
/// written any more.
pub(super) async fn without_machines(cluster: &Cluster, quick: bool) -> Result<String> {
    let assets = if quick { ASSETS_QUICK } else { ASSETS };
    let api = Api::reach().await?;
    operators(cluster, 0).await?;
    cluster.kubectl(&["create", "namespace", NAMESPACE]).await?;
    let began = Instant::now();
    declare(&api, assets).await?;
    let declared = began.elapsed();
    eprintln!("    {assets} assets declared in {:.0} s", declared.as_secs_f64());

    let began = Instant::now();
    operators(cluster, 1).await?;
    let known = eventually("every asset has a status", LONGEST, || async {
        let found = observed(&api).await?;
        Ok((found == assets).then_some(began.elapsed()))
    })
    .await?;
    let pods = cluster.items(&["pods", "-n", OPERATOR]).await?;
    let operator = pods
        .iter()
        .find(|pod| is_ready(pod))
        .context("no operator is ready")?;
    let memory = footprint::of_pod(operator)?.resident;
    eprintln!("    every asset has a status after {:.0} s", known.as_secs_f64());

    tokio::time::sleep(Duration::from_secs(if quick { 15 } else { 60 })).await;
    let before = versions(&api).await?;
    let watched = Duration::from_secs(if quick { 10 } else { 60 });
    tokio::time::sleep(watched).await;
    let after = versions(&api).await?;
    let written = after
        .iter()
        .filter(|(name, version)| before.get(*name) != Some(*version))
        .count();
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
    eventually("no operator runs", LONGEST, || async {
        let pods = cluster.items(&["pods", "-n", OPERATOR]).await?;
        Ok(pods.is_empty().then_some(()))
    })
    .await
}

async fn declare(api: &Api, assets: usize) -> Result<()> {
    let nowhere = json!({ "nodeSelector": { "example.com/nowhere": "true" } });
    let first = vec![
        object(
            "Broker",
            "broker",
            json!({ "listeners": [], "storage": { "backend": "Memory" }, "pod": nowhere }),
        ),
        object(
            "Connector",
            "opcua",
            json!({ "protocol": "opcua", "pod": nowhere }),
        ),
    ];
    let devices = (0..DEVICES).map(|device| {
        let address = format!("opc.tcp://machine-{device}.example.com:4840");
        object(
            "Device",
            &format!("device-{device}"),
            json!({ "address": address, "opcua": {} }),
        )
    });
    let points: Vec<_> = (0..POINTS)
        .map(|point| json!({ "name": format!("point-{point}"), "address": format!("ns=2;s=Machine.Point{point}") }))
        .collect();
    let assets = (0..assets).map(|asset| {
        let spec = json!({
            "deviceRef": { "name": format!("device-{}", asset % DEVICES) },
            "datasets": [{ "name": "values", "dataPoints": points }],
        });
        object("Asset", &format!("asset-{asset}"), spec)
    });
    let all = first.into_iter().chain(devices).chain(assets);
    stream::iter(all.map(Ok))
        .try_for_each_concurrent(AT_ONCE, |object| async move {
            let kind = object["kind"].as_str().context("kind")?.to_lowercase();
            let path = format!("/apis/foreshore.dev/v1alpha1/namespaces/{NAMESPACE}/{kind}s");
            let answer = api.send(Method::POST, &path, Some(&object)).await?;
            ensure!(
                answer.is_taken(),
                "{}: {}",
                object["metadata"]["name"],
                answer.message()
            );
            anyhow::Ok(())
        })
        .await
}

fn object(kind: &str, name: &str, spec: Value) -> Value {
    json!({
        "apiVersion": "foreshore.dev/v1alpha1",
        "kind": kind,
        "metadata": { "name": name, "namespace": NAMESPACE },
        "spec": spec,
    })
}

/// All Assets, page by page.
async fn assets(api: &Api) -> Result<Vec<Value>> {
    let mut all = Vec::new();
    let mut next = String::new();
    loop {
        let path = format!("/apis/foreshore.dev/v1alpha1/namespaces/{NAMESPACE}/assets?limit=1000{next}");
        let page = api.send(Method::GET, &path, None).await?;
        if !page.is_taken() {
            bail!("{}", page.message());
        }
        all.extend(page.body["items"].as_array().cloned().unwrap_or_default());
        match page.body["metadata"]["continue"]
            .as_str()
            .filter(|next| !next.is_empty())
        {
            Some(token) => next = format!("&continue={token}"),
            None => return Ok(all),
        }
    }
}

/// How many Assets the operator has judged.
async fn observed(api: &Api) -> Result<usize> {
    // Each look takes time of the API server: not too often.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let assets = assets(api).await?;
    let judged = |asset: &&Value| asset["status"]["observedGeneration"] == asset["metadata"]["generation"];
    Ok(assets.iter().filter(judged).count())
}

async fn versions(api: &Api) -> Result<BTreeMap<String, String>> {
    let assets = assets(api).await?;
    let version = |asset: Value| {
        let metadata = &asset["metadata"];
        (
            metadata["name"].to_string(),
            metadata["resourceVersion"].to_string(),
        )
    };
    Ok(assets.into_iter().map(version).collect())
}
