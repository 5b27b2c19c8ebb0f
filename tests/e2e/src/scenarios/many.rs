//! Many objects beside a plant that works.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::install;
use crate::{
    api::Api,
    cluster::Cluster,
    many::{self, ASSETS, NAMESPACE},
};

/// Every one of them is judged, then nothing is written, and the plant is well all the while and when they go.
pub(super) async fn are_judged(cluster: &Cluster) -> Result<()> {
    install::well(cluster).await?;
    cluster.kubectl(&["create", "namespace", NAMESPACE]).await?;
    let api = Api::reach().await?;
    many::declare(&api, ASSETS).await?;
    many::judged(&api, ASSETS).await?;
    install::well(cluster).await?;
    // What was told while the last statuses were written is written within this time.
    tokio::time::sleep(Duration::from_secs(30)).await;
    let written = many::written_within(&api, Duration::from_secs(60)).await?;
    ensure!(written == 0, "{written} assets were written at rest");
    cluster
        .kubectl(&["delete", "namespace", NAMESPACE, "--wait=false"])
        .await?;
    cluster.namespace_goes(NAMESPACE, many::LONGEST).await?;
    install::well(cluster).await
}
