//! Nodes whose power is cut.

use anyhow::{Context, Result, bail};

use super::{install, pods};
use crate::cluster::{Cluster, DEADLINE, PLANT, condition, eventually};

/// Cuts the power of the node that runs a connector and no volume: it runs elsewhere soon, and data flows again.
pub(super) async fn of_connector(cluster: &Cluster) -> Result<()> {
    let nodes = cluster.items(&["nodes"]).await?;
    let node = install::SPARE;
    // Its pod goes to the node that will be lost.
    for other in nodes
        .iter()
        .filter_map(|other| other["metadata"]["name"].as_str())
        .filter(|other| *other != node)
    {
        cluster.kubectl(&["cordon", other]).await?;
    }
    cluster
        .kubectl(&[
            "delete",
            "pod",
            "-n",
            PLANT,
            "-l",
            "app.kubernetes.io/component=connector,app.kubernetes.io/instance=opcua",
        ])
        .await?;
    let pod = eventually("the connector runs on the node", DEADLINE, || async {
        let pod = cluster.pod("connector", "opcua").await?;
        Ok(pod.filter(|pod| pod["spec"]["nodeName"] == node))
    })
    .await?;
    for other in nodes
        .iter()
        .filter_map(|other| other["metadata"]["name"].as_str())
    {
        cluster.kubectl(&["uncordon", other]).await?;
    }
    install::flows(cluster).await?;

    let number = node.rsplit('-').next().context("number of the node")?;
    cluster.machine(&["kill-node", number]).await?;
    let moved = eventually("the connector runs on another node", DEADLINE, || async {
        let now = cluster.pod("connector", "opcua").await?;
        Ok(now.filter(|now| now["metadata"]["uid"] != pod["metadata"]["uid"]))
    })
    .await;
    let flows = match moved {
        Ok(_) => install::flows(cluster).await,
        Err(error) => Err(error),
    };
    // Whatever came of it, the others need all nodes.
    cluster.machine(&["start-node", number]).await?;
    flows?;
    pods::settle(cluster).await?;
    install::well(cluster).await
}

/// Cuts the power of the node that holds a broker's volume: the status names node and volume, and when the node is back,
/// data flows again.
pub(super) async fn of_broker(cluster: &Cluster) -> Result<()> {
    let pod = cluster
        .pod("broker", "broker")
        .await?
        .context("the broker has no pod that is ready")?;
    let node = pod["spec"]["nodeName"].as_str().context("node of the broker")?;
    let number = node.rsplit('-').next().context("number of the node")?;
    cluster.machine(&["kill-node", number]).await?;
    let told = eventually("the broker waits for its node", DEADLINE, || async {
        let broker = cluster
            .json(&["get", "brokers.foreshore.dev", "broker", "-n", PLANT])
            .await?;
        let ready = condition(&broker, "Ready");
        let message = ready["message"].as_str().unwrap_or_default();
        let named = message.contains(node) && message.contains("data-broker-broker-0");
        if ready["reason"] != "WaitingForNode" || !named {
            bail!("{ready}");
        }
        Ok(Some(()))
    })
    .await;
    // Whatever came of it, the others need all nodes.
    cluster.machine(&["start-node", number]).await?;
    told?;
    pods::settle(cluster).await?;
    install::well(cluster).await?;
    install::flows(cluster).await
}
