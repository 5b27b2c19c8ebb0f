//! Which pods there are.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context, Result, bail};

use crate::cluster::{Cluster, DEADLINE, PLANT, eventually, is_ready, restarts};

/// Time in which a pod that is to come or to go does.
const CALM: Duration = Duration::from_secs(15);

/// The pods of a namespace that do not end, by name: each with its identity, and how often its container was started again.
pub(super) struct Pods {
    namespace: String,
    pods: BTreeMap<String, (String, u64)>,
}

impl Pods {
    /// Those of the plant.
    pub(super) async fn of_plant(cluster: &Cluster) -> Result<Self> {
        Self::of(cluster, PLANT).await
    }

    /// Those of a namespace.
    pub(super) async fn of(cluster: &Cluster, namespace: &str) -> Result<Self> {
        let mut pods = BTreeMap::new();
        for pod in cluster.items(&["pods", "-n", namespace]).await? {
            if !pod["metadata"]["deletionTimestamp"].is_null() {
                continue;
            }
            let text = |member: &str| {
                let text = pod["metadata"][member].as_str();
                text.map(str::to_owned).context("metadata of a pod")
            };
            pods.insert(text("name")?, (text("uid")?, restarts(&pod)));
        }
        Ok(Self {
            namespace: namespace.to_owned(),
            pods,
        })
    }

    /// Fails when another one is there, one of them is gone, or one was started again.
    pub(super) async fn stay(&self, cluster: &Cluster) -> Result<()> {
        let now = Self::of(cluster, &self.namespace).await?;
        if now.pods != self.pods {
            bail!(
                "pods of namespace {} were {:?} and are {:?}",
                self.namespace,
                self.pods,
                now.pods
            );
        }
        Ok(())
    }
}

/// Waits until no pod of the plant comes or goes any more: Kubernetes takes pods from nodes that it has not heard of, in
/// the test cluster after five seconds, and a node that was lost may have left one that still has to end.
pub(super) async fn settle(cluster: &Cluster) -> Result<()> {
    eventually("no pod comes or goes", DEADLINE, || async {
        let before = Pods::of_plant(cluster).await?;
        tokio::time::sleep(CALM).await;
        before.stay(cluster).await?;
        let pods = cluster.items(&["pods", "-n", PLANT]).await?;
        for pod in &pods {
            if !is_ready(pod) {
                bail!("{} is not ready, or ends", pod["metadata"]["name"]);
            }
        }
        Ok(Some(()))
    })
    .await
}
