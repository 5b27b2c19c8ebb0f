//! The end of an installation, in the wrong order.

use anyhow::{Result, bail};

use crate::cluster::{Cluster, DEADLINE, OPERATOR, PLANT, eventually};

/// Removes the operator first and the plant after it: nothing waits for somebody who is gone.
pub(super) async fn leaves_nothing(cluster: &Cluster) -> Result<()> {
    cluster
        .helm(&["uninstall", "foreshore", "-n", OPERATOR, "--wait"])
        .await?;
    cluster
        .kubectl(&["delete", "namespace", PLANT, "--wait=false"])
        .await?;
    eventually("the namespace of the plant is gone", DEADLINE, || async {
        let left = cluster.items(&["namespaces"]).await?;
        let plant = left
            .iter()
            .find(|namespace| namespace["metadata"]["name"] == PLANT);
        if let Some(plant) = plant {
            bail!("it is still there: {}", plant["status"]["conditions"]);
        }
        Ok(Some(()))
    })
    .await?;
    // The definitions stay, with what they hold elsewhere: their chart says so.
    cluster.kubectl(&["get", "crd", "assets.foreshore.dev"]).await?;
    Ok(())
}
