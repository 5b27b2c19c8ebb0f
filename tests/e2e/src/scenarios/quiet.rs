//! A plant at rest.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Result, bail};

use super::install;
use crate::cluster::{Cluster, OPERATOR, PLANT};

/// How long it is watched.
const REST: Duration = Duration::from_secs(20);
const REST_FULL: Duration = Duration::from_secs(60);

/// Nothing of ours is written while nothing changes, but for the lease.
pub(super) async fn at_rest(cluster: &Cluster) -> Result<()> {
    install::well(cluster).await?;
    // What was told while the plant came to rest is written within this time.
    tokio::time::sleep(Duration::from_secs(15)).await;
    let before = versions(cluster).await?;
    tokio::time::sleep(if cluster.full { REST_FULL } else { REST }).await;
    let after = versions(cluster).await?;
    let written: Vec<_> = after
        .iter()
        .filter(|(name, version)| before.get(*name) != Some(*version))
        .collect();
    if !written.is_empty() {
        bail!("written at rest: {written:?}");
    }
    Ok(())
}

/// Resource versions of everything that the operator writes.
async fn versions(cluster: &Cluster) -> Result<BTreeMap<String, String>> {
    let kinds =
        "deployments,statefulsets,services,serviceaccounts,configmaps,secrets,networkpolicies,foreshore";
    let mut versions = BTreeMap::new();
    for namespace in [PLANT, OPERATOR] {
        for object in cluster.items(&[kinds, "-n", namespace]).await? {
            let metadata = &object["metadata"];
            let name = format!("{} {}/{}", object["kind"], namespace, metadata["name"]);
            versions.insert(name, metadata["resourceVersion"].to_string());
        }
    }
    Ok(versions)
}
