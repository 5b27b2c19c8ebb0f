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
    cluster::{self, OPERATOR},
    metrics,
};

pub(crate) const NAMESPACE: &str = "many";
pub(crate) const ASSETS: usize = 10_000;
/// Data points of each Asset.
pub(crate) const POINTS: usize = 20;
/// Devices that the Assets divide among them.
pub(crate) const DEVICES: usize = 200;
/// Requests at a time.
const AT_ONCE: usize = 16;
/// Time without a status after which all seem to be written.
const CALM: Duration = Duration::from_secs(5);
/// Longest that judging them may take, and deleting them.
pub(crate) const LONGEST: Duration = Duration::from_secs(900);

/// Waits until every Asset has a status, and tells when the last one was written, to the second; an operator that has to
/// be started again ends the wait.
pub(crate) async fn judged(api: &Api, count: usize) -> Result<Instant> {
    let began = Instant::now();
    let before = operators(api).await?;
    let mut last = (0.0, began);
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let now = operators(api).await?;
        let written = now.values().map(|operator| operator.statuses).sum();
        if written > last.0 {
            last = (written, Instant::now());
        }
        // A look at all Assets takes as much of the API server's time as some hundred statuses.
        let is_calm = last.0 > 0.0 && last.1.elapsed() > CALM;
        if is_calm && observed(api).await? == count {
            return Ok(last.1);
        }
        for (pod, operator) in now {
            ensure!(
                before.get(&pod).map_or(0, |before| before.restarts) == operator.restarts,
                "{pod} was started again with {written} statuses written: {}",
                operator.ended
            );
        }
        ensure!(
            began.elapsed() < LONGEST,
            "{} of {count} assets are judged after {LONGEST:?}",
            observed(api).await?
        );
    }
}

struct Operator {
    /// How often it was started again.
    restarts: u64,
    /// Why, the last time.
    ended: String,
    /// How many statuses it has written; none while it does not answer.
    statuses: f64,
}

/// The operators, by the names of their pods.
async fn operators(api: &Api) -> Result<BTreeMap<String, Operator>> {
    let path = format!("/api/v1/namespaces/{OPERATOR}/pods");
    let pods = api.send(Method::GET, &path, None).await?;
    ensure!(pods.is_taken(), "{}", pods.message());
    let mut operators = BTreeMap::new();
    for pod in pods.body["items"].as_array().into_iter().flatten() {
        let name = pod["metadata"]["name"].as_str().context("name of a pod")?;
        let metrics = api.text(&format!("{path}/{name}:9090/proxy/metrics")).await;
        let operator = Operator {
            restarts: cluster::restarts(pod),
            ended: pod["status"]["containerStatuses"][0]["lastState"]["terminated"].to_string(),
            statuses: metrics::sum(
                &metrics.unwrap_or_default(),
                "foreshore_operator_status_writes_total",
                "",
            )?,
        };
        operators.insert(name.to_owned(), operator);
    }
    Ok(operators)
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
