//! A plant that is declared and deleted in the order that is worst.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use reqwest::Method;
use serde::Deserialize as _;
use serde_json::Value;

use super::super::{install, pods::Pods};
use crate::{
    api::Api,
    cluster::{Cluster, DEADLINE, OPERATOR, eventually},
};

/// Namespace of this scenario.
const NAMESPACE: &str = "disorder";

/// Kinds with their folders in the API: whoever names others comes before them.
const ORDER: [(&str, &str); 10] = [
    ("Dataflow", "apis/foreshore.dev/v1alpha1/*/dataflows"),
    (
        "DataflowEndpoint",
        "apis/foreshore.dev/v1alpha1/*/dataflowendpoints",
    ),
    ("Asset", "apis/foreshore.dev/v1alpha1/*/assets"),
    ("Device", "apis/foreshore.dev/v1alpha1/*/devices"),
    ("BrokerPolicy", "apis/foreshore.dev/v1alpha1/*/brokerpolicies"),
    ("Connector", "apis/foreshore.dev/v1alpha1/*/connectors"),
    ("Cloud", "apis/foreshore.dev/v1alpha1/*/clouds"),
    ("Broker", "apis/foreshore.dev/v1alpha1/*/brokers"),
    ("Simulator", "apis/foreshore.dev/v1alpha1/*/simulators"),
    ("Secret", "api/v1/*/secrets"),
];

/// Time in which the operator sees one change alone.
const APART: Duration = Duration::from_millis(150);

/// Declares the example beginning with those who name others, and deletes it beginning with those who are named: it gets
/// well, and nothing is left of it.
pub(in super::super) async fn worst_order(cluster: &Cluster) -> Result<()> {
    let operators = Pods::of(cluster, OPERATOR).await?;
    let objects = example(cluster).await?;
    cluster.fresh_namespace(NAMESPACE).await?;
    let api = Api::reach().await?;
    for (folder, object) in &objects {
        let answer = api.send(Method::POST, folder, Some(object)).await?;
        if !answer.is_taken() {
            bail!("{folder}: {}", answer.message());
        }
        tokio::time::sleep(APART).await;
    }
    install::well_in(cluster, NAMESPACE).await?;

    for (folder, object) in objects.iter().rev() {
        let name = object["metadata"]["name"].as_str().context("name")?;
        let answer = api
            .send(Method::DELETE, &format!("{folder}/{name}"), None)
            .await?;
        if !answer.is_taken() {
            bail!("{folder}/{name}: {}", answer.message());
        }
        tokio::time::sleep(APART).await;
    }
    eventually("no pod is left", DEADLINE, || async {
        let left = cluster
            .items(&["pods,deployments,statefulsets", "-n", NAMESPACE])
            .await?;
        let names: Vec<_> = left
            .iter()
            .map(|left| left["metadata"]["name"].to_string())
            .collect();
        if !names.is_empty() {
            bail!("{names:?}");
        }
        Ok(Some(()))
    })
    .await?;
    cluster
        .kubectl(&["delete", "namespace", NAMESPACE, "--wait=false"])
        .await?;
    cluster.namespace_goes(NAMESPACE, DEADLINE).await?;
    operators.stay(cluster).await
}

/// The objects of the example for this namespace, in the worst order, each with its folder in the API.
async fn example(cluster: &Cluster) -> Result<Vec<(String, Value)>> {
    let text = cluster.kubectl(&["kustomize", install::EXAMPLE]).await?;
    let documents: Result<Vec<_>, _> = serde_yaml::Deserializer::from_str(&text)
        .map(Value::deserialize)
        .collect();
    let documents = documents?;
    let mut objects = Vec::new();
    for (kind, folder) in ORDER {
        let folder = format!("/{}", folder.replace('*', &format!("namespaces/{NAMESPACE}")));
        for document in documents.iter().filter(|document| document["kind"] == kind) {
            let mut object = document.clone();
            object["metadata"]["namespace"] = NAMESPACE.into();
            objects.push((folder.clone(), object));
        }
    }
    // All but its namespace.
    if objects.len() + 1 != documents.len() {
        bail!("{} objects of {} are known", objects.len(), documents.len());
    }
    Ok(objects)
}
