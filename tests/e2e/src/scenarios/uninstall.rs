//! The end of an installation, in the wrong order.

use anyhow::Result;

use crate::cluster::{Cluster, DEADLINE, OPERATOR, PLANT};

/// Removes the operator first and the plant after it: nothing waits for somebody who is gone.
pub(super) async fn leaves_nothing(cluster: &Cluster) -> Result<()> {
    cluster
        .helm(&["uninstall", "foreshore", "-n", OPERATOR, "--wait"])
        .await?;
    cluster
        .kubectl(&["delete", "namespace", PLANT, "--wait=false"])
        .await?;
    cluster.namespace_goes(PLANT, DEADLINE).await?;
    // The definitions stay, with what they hold elsewhere: their chart says so.
    cluster.kubectl(&["get", "crd", "assets.foreshore.dev"]).await?;
    Ok(())
}
