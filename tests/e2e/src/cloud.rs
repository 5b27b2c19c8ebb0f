//! The cloud endpoint of the example, as its users reach it: through a port-forward to its pod.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context, Result, bail};
use jiff::Timestamp;
use serde_json::Value;

use crate::{
    cluster::{Cluster, PLANT},
    forward::Forward,
    metrics,
};

/// The token of the example's Secret.
const TOKEN: &str = "example-api-token-0123456789abcdef";

/// Values of a page of history.
const PAGE: u32 = 1000;

/// A cloud endpoint that can be asked.
pub(crate) struct Cloud {
    forward: Forward,
    client: reqwest::Client,
}

impl Cloud {
    /// Reaches the pod of the cloud endpoint.
    pub(crate) async fn reach(cluster: &Cluster) -> Result<Self> {
        let pod = pod(cluster).await?;
        let pod = pod["metadata"]["name"].as_str().context("name of the pod")?;
        let pod = format!("pod/{pod}");
        let forward = Forward::start(&["port-forward", "-n", PLANT, &pod, ":7080"]).await?;
        let client = client()?;
        Ok(Self { forward, client })
    }

    /// Asks.
    pub(crate) async fn get(&self, path: &str) -> Result<Value> {
        let response = self
            .client
            .get(format!("http://{}{path}", self.forward.address()))
            .bearer_auth(TOKEN)
            .send()
            .await?;
        let status = response.status();
        if !status.is_success() {
            bail!("{path}: {status}: {}", response.text().await.unwrap_or_default());
        }
        Ok(response.json().await?)
    }

    /// When the newest value of an asset was measured; `None` before there was one.
    pub(crate) async fn newest(&self, asset: &str) -> Result<Option<String>> {
        let shown = self.get(&format!("/api/assets/{PLANT}/{asset}")).await?;
        Ok(newest(&shown).map(ToOwned::to_owned))
    }

    /// The values of an asset's points that were measured since then, in that order.
    pub(crate) async fn history(&self, asset: &str, since: Timestamp) -> Result<BTreeMap<String, Vec<f64>>> {
        let mut points: BTreeMap<String, Vec<f64>> = BTreeMap::new();
        let mut after = String::new();
        loop {
            let path = format!("/api/assets/{PLANT}/{asset}/values?limit={PAGE}&from={since}{after}");
            let page = self.get(&path).await?;
            for item in page["items"].as_array().into_iter().flatten() {
                if let (Some(point), Some(value)) = (item["point"].as_str(), item["value"].as_f64()) {
                    points.entry(point.to_owned()).or_default().push(value);
                }
            }
            match page["next"].as_str() {
                Some(next) => after = format!("&after={next}"),
                None => return Ok(points),
            }
        }
    }

    /// What the cloud has committed of all paths.
    pub(crate) async fn committed(&self) -> Result<u64> {
        let ledger = self.get("/api/ledger").await?;
        let items = ledger["items"].as_array().cloned().unwrap_or_default();
        Ok(items.iter().filter_map(|item| item["committed"].as_u64()).sum())
    }
}

/// Metrics of the pod of the cloud endpoint, asked without the API server from a network that leads to pods.
pub(crate) struct Metrics {
    address: String,
    client: reqwest::Client,
}

impl Metrics {
    /// Finds the pod.
    pub(crate) async fn of(cluster: &Cluster) -> Result<Self> {
        let pod = pod(cluster).await?;
        let address = pod["status"]["podIP"].as_str().context("address of the pod")?;
        Ok(Self {
            address: format!("{address}:9090"),
            client: client()?,
        })
    }

    /// How many values it has committed since it was started.
    pub(crate) async fn committed(&self) -> Result<f64> {
        let metrics = self
            .client
            .get(format!("http://{}/metrics", self.address))
            .send()
            .await?;
        let metrics = metrics.error_for_status()?.text().await?;
        metrics::sum(&metrics, "foreshore_cloud_commit_age_seconds_count", "")
    }
}

fn client() -> Result<reqwest::Client> {
    let client = reqwest::Client::builder().no_proxy();
    Ok(client.timeout(Duration::from_secs(10)).build()?)
}

/// The pod of the cloud endpoint, when it is ready.
async fn pod(cluster: &Cluster) -> Result<Value> {
    let pod = cluster.pod("cloud", "cloud").await?;
    pod.context("the cloud endpoint has no pod that is ready")
}

/// The largest timestamp anywhere in the values of an asset.
fn newest(value: &Value) -> Option<&str> {
    match value {
        Value::Object(members) => members
            .iter()
            .filter_map(|(member, value)| match value {
                Value::String(text) if member == "time" || member == "sourceTime" => Some(text.as_str()),
                Value::Object(_) | Value::Array(_) => newest(value),
                _ => None,
            })
            .max(),
        Value::Array(items) => items.iter().filter_map(newest).max(),
        _ => None,
    }
}
