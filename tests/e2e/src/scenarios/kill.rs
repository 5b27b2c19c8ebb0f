//! Pods that end without a word.

use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::{install, scale};
use crate::{
    cloud::Cloud,
    cluster::{Cluster, DEADLINE, OPERATOR, PLANT, eventually, is_ready},
};

/// How often operators are killed, and each role.
const KILLS: u32 = 3;
const KILLS_FULL: u32 = 50;
/// How often each role is killed alone, and how often all are at the same time.
const ALONE: u32 = 1;
const ALONE_FULL: u32 = 5;
const TOGETHER: u32 = 4;

/// Roles of the example, by component and instance.
pub(super) const ROLES: [(&str, &str); 7] = [
    ("connector", "opcua"),
    ("connector", "onvif"),
    ("broker", "broker"),
    ("dataflow", "dataflows"),
    ("cloud", "cloud"),
    ("simulator", "line-1"),
    ("simulator", "camera-1"),
];

/// Kills the leader again and again, while a change is under way: another one leads, data flows all the time, and the
/// objects are the same as before.
pub(super) async fn operators(cluster: &Cluster) -> Result<()> {
    let before = objects(cluster).await?;
    let cloud = Cloud::reach(cluster).await?;
    for round in 0..if cluster.full { KILLS_FULL } else { KILLS } {
        let leader = leader(cluster).await?.context("nobody leads")?;
        let committed = cloud.committed().await?;
        let patch = format!(r#"{{"spec":{{"description":"round {round}"}}}}"#);
        cluster.patch("asset", "capper", &patch).await?;
        kill(cluster, OPERATOR, std::slice::from_ref(&leader)).await?;
        eventually("another one leads", DEADLINE, || async {
            let now = self::leader(cluster).await?;
            Ok(now.filter(|now| *now != leader))
        })
        .await?;
        eventually("data flows without a leader", DEADLINE, || async {
            let now = cloud.committed().await?;
            Ok((now > committed).then_some(()))
        })
        .await?;
    }
    install::well(cluster).await?;
    let after = objects(cluster).await?;
    if before != after {
        bail!("objects before: {before:#?}\nafter: {after:#?}");
    }
    Ok(())
}

/// Kills the pod of each role, and then those of all roles at once: they come back by themselves, data flows again, and
/// in the end the ledger balances.
pub(super) async fn roles(cluster: &Cluster) -> Result<()> {
    for _ in 0..if cluster.full { ALONE_FULL } else { ALONE } {
        for role in ROLES {
            let (component, instance) = role;
            come_back(cluster, &[role])
                .await
                .with_context(|| format!("after {component} {instance} was killed"))?;
        }
    }
    for round in 1..=TOGETHER {
        come_back(cluster, &ROLES)
            .await
            .with_context(|| format!("round {round} of all at once"))?;
    }
    scale::balanced(cluster).await
}

/// Kills the pods of these roles at the same time: others come, everything gets well, and data flows.
async fn come_back(cluster: &Cluster, roles: &[(&str, &str)]) -> Result<()> {
    let (mut names, mut killed) = (Vec::new(), Vec::new());
    for (component, instance) in roles {
        let pod = eventually("the pod is ready", DEADLINE, || cluster.pod(component, instance)).await?;
        let name = pod["metadata"]["name"].as_str().context("name of the pod")?;
        names.push(name.to_owned());
        killed.push((component, instance, pod["metadata"]["uid"].clone()));
    }
    kill(cluster, PLANT, &names).await?;
    for (component, instance, uid) in &killed {
        eventually("another pod is ready", DEADLINE, || async {
            let now = cluster.pod(component, instance).await?;
            Ok(now.filter(|now| now["metadata"]["uid"] != *uid))
        })
        .await
        .with_context(|| format!("{component} {instance}"))?;
    }
    install::well(cluster).await?;
    install::flows(cluster).await
}

/// Ends pods at once.
async fn kill(cluster: &Cluster, namespace: &str, pods: &[String]) -> Result<()> {
    let mut delete = vec!["delete", "pod", "-n", namespace, "--grace-period=0", "--force"];
    delete.extend(pods.iter().map(String::as_str));
    cluster.kubectl(&delete).await.map(drop)
}

/// The pod that leads, while it runs.
pub(crate) async fn leader(cluster: &Cluster) -> Result<Option<String>> {
    let lease = cluster
        .json(&["get", "lease", "foreshore-operator", "-n", OPERATOR])
        .await?;
    let holder = lease["spec"]["holderIdentity"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    let pods = cluster.items(&["pods", "-n", OPERATOR]).await?;
    let running = pods
        .iter()
        .any(|pod| pod["metadata"]["name"] == holder.as_str() && is_ready(pod));
    tokio::time::sleep(Duration::from_millis(200)).await;
    Ok(running.then_some(holder))
}

/// Everything that the operator made, or was made for it, by kind and name, with identity.
pub(super) async fn objects(cluster: &Cluster) -> Result<Vec<String>> {
    let kinds = "deployments,statefulsets,services,serviceaccounts,poddisruptionbudgets,networkpolicies,configmaps,\
         persistentvolumeclaims";
    let selector = "app.kubernetes.io/name=foreshore";
    let mut names = Vec::new();
    for namespace in [PLANT, OPERATOR] {
        for object in cluster.items(&[kinds, "-n", namespace, "-l", selector]).await? {
            let metadata = &object["metadata"];
            names.push(format!(
                "{} {namespace} {} {}",
                object["kind"], metadata["name"], metadata["uid"]
            ));
        }
    }
    names.sort();
    Ok(names)
}
