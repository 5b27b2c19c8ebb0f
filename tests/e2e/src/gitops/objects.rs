//! What was written of the objects of a plant, and by whom.

use std::collections::BTreeMap;

use anyhow::{Result, bail};
use serde_json::{Value, json};

use crate::cluster::Cluster;

/// Kinds of what the plant's users write.
const WRITTEN: &str = "foreshore,secrets";
/// Kinds of what the operator makes of it.
pub(crate) const MADE: &str =
    "deployments,statefulsets,services,serviceaccounts,configmaps,poddisruptionbudgets,pods";

/// Something about each object, by kind and name.
pub(crate) type Objects = BTreeMap<String, Value>;

/// What was written of each object of the plant's users, by whom and when, but for its status.
pub(crate) async fn written(cluster: &Cluster, namespace: &str) -> Result<Objects> {
    let written = objects(cluster, namespace, WRITTEN).await?;
    let written = written.iter().map(|object| {
        let writes: Vec<_> = writes(object).collect();
        (name(object), json!([object["metadata"]["generation"], writes]))
    });
    Ok(written.collect())
}

/// Everything that was made of it, with identity and generation.
pub(crate) async fn made(cluster: &Cluster, namespace: &str) -> Result<Objects> {
    let made = objects(cluster, namespace, MADE).await?;
    let made = made.iter().map(|object| {
        let metadata = &object["metadata"];
        (name(object), json!([metadata["uid"], metadata["generation"]]))
    });
    Ok(made.collect())
}

/// Fails when anything became different.
pub(crate) fn same(before: &Objects, after: &Objects) -> Result<()> {
    let other = before
        .iter()
        .find(|(name, found)| after.get(*name) != Some(*found));
    if let Some((name, found)) = other {
        bail!("{name} was {found} and is {:?}", after.get(name));
    }
    if before.len() != after.len() {
        bail!("{} objects became {}", before.len(), after.len());
    }
    Ok(())
}

/// Fails when somebody else than a manager wrote a field that the plant's users write, or when it wrote none of an object.
pub(crate) async fn only_wrote(cluster: &Cluster, namespace: &str, manager: &str) -> Result<()> {
    for object in objects(cluster, namespace, WRITTEN).await? {
        let writers = writes(&object).filter(|write| {
            ["f:spec", "f:data", "f:stringData"]
                .iter()
                .any(|part| write["fieldsV1"].get(part).is_some())
        });
        let writers: Vec<_> = writers.map(|write| &write["manager"]).collect();
        if writers.iter().any(|writer| **writer != manager) || writers.is_empty() {
            bail!("{} was written by {writers:?}", name(&object));
        }
    }
    Ok(())
}

async fn objects(cluster: &Cluster, namespace: &str, kinds: &str) -> Result<Vec<Value>> {
    cluster
        .items(&[kinds, "-n", namespace, "--show-managed-fields"])
        .await
}

fn name(object: &Value) -> String {
    format!("{} {}", object["kind"], object["metadata"]["name"])
}

/// Whoever wrote something else than a status.
fn writes(object: &Value) -> impl Iterator<Item = &Value> {
    let writes = object["metadata"]["managedFields"].as_array();
    writes
        .into_iter()
        .flatten()
        .filter(|write| write["subresource"].is_null())
}
