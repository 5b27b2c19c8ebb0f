//! Many objects whose pods no node takes: what the operator alone does with them.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use futures::{TryStreamExt, stream};
use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    api::Api,
    cluster::{Cluster, OPERATOR},
};

pub(crate) const NAMESPACE: &str = "many";
pub(crate) const ASSETS: usize = 10_000;
/// Data points of each Asset.
pub(crate) const POINTS: usize = 20;
/// Devices that the Assets divide among them.
pub(crate) const DEVICES: usize = 200;
/// Requests at a time.
const AT_ONCE: usize = 16;
/// Longest that judging them may take, and deleting them.
pub(crate) const LONGEST: Duration = Duration::from_secs(900);

/// Waits until every Asset has a status; an operator that has to be started again ends the wait.
pub(crate) async fn judged(cluster: &Cluster, api: &Api, count: usize) -> Result<()> {
    let began = Instant::now();
    let restarts = restarts(cluster).await?;
    loop {
        let found = observed(api).await?;
        if found == count {
            return Ok(());
        }
        for (pod, now) in self::restarts(cluster).await? {
            ensure!(
                restarts.get(&pod).map_or(0, |before| before.0) == now.0,
                "{pod} was started again with {found} of {count} assets judged: {}",
                now.1
            );
        }
        ensure!(
            began.elapsed() < LONGEST,
            "{found} of {count} assets are judged after {LONGEST:?}"
        );
    }
}

/// How often each operator was started again, and why.
async fn restarts(cluster: &Cluster) -> Result<BTreeMap<String, (u64, String)>> {
    let pods = cluster.items(&["pods", "-n", OPERATOR]).await?;
    let restarts = |pod: Value| {
        let container = &pod["status"]["containerStatuses"][0];
        let count = container["restartCount"].as_u64().unwrap_or(0);
        let why = container["lastState"]["terminated"].to_string();
        (pod["metadata"]["name"].to_string(), (count, why))
    };
    Ok(pods.into_iter().map(restarts).collect())
}

/// How many Assets are written within a time in which nothing changes.
pub(crate) async fn written_within(api: &Api, time: Duration) -> Result<usize> {
    let before = versions(api).await?;
    tokio::time::sleep(time).await;
    let after = versions(api).await?;
    let is_written = |(name, version): &(&String, &String)| before.get(*name) != Some(*version);
    Ok(after.iter().filter(is_written).count())
}

/// Declares so many Assets, and what they are about.
pub(crate) async fn declare(api: &Api, assets: usize) -> Result<()> {
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
