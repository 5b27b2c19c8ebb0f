//! Changes of others to what the operator made, which must not last.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::install;
use crate::cluster::{Cluster, DEADLINE, PLANT, eventually};

/// Kinds of the operator's that it watches.
const KINDS: &str = "deployments,statefulsets,services,serviceaccounts,poddisruptionbudgets,networkpolicies";

/// What others change: kind, name and patch.
const CHANGED: [(&str, &str, &str); 6] = [
    (
        "service",
        "broker-broker",
        r#"{"spec": {"selector": {"app.kubernetes.io/instance": "nobody"}}}"#,
    ),
    ("deployment", "opcua-connector", r#"{"spec": {"replicas": 0}}"#),
    (
        "statefulset",
        "cloud-cloud",
        r#"{"spec": {"template": {"spec": {"terminationGracePeriodSeconds": 1}}}}"#,
    ),
    ("networkpolicy", "broker-broker", r#"{"spec": {"ingress": []}}"#),
    (
        "poddisruptionbudget",
        "broker-broker",
        // Beside the other field it is refused, so that the object can't be mended.
        r#"{"spec": {"maxUnavailable": null, "minAvailable": 1}}"#,
    ),
    (
        "serviceaccount",
        "opcua-connector",
        r#"{"automountServiceAccountToken": true}"#,
    ),
];

/// What others delete: kind and name.
const DELETED: [(&str, &str); 6] = [
    ("service", "camera-1-simulator"),
    ("deployment", "onvif-connector"),
    ("statefulset", "broker-broker"),
    ("networkpolicy", "opcua-connector"),
    ("poddisruptionbudget", "broker-broker"),
    // Pods that are to come hold tokens of an account that is gone, unless they are replaced.
    ("serviceaccount", "onvif-connector"),
];

/// The ConfigMap of roots to trust, which the operator may not watch.
const TRUST: [&str; 4] = ["configmap", "foreshore-trust", "-n", PLANT];

/// Changes an object of each kind, then deletes one of each: all is made again as it was.
pub(super) async fn does_not_last(cluster: &Cluster) -> Result<()> {
    install::well(cluster).await?;
    let before = made(cluster).await?;
    for (kind, name, patch) in CHANGED {
        let said = cluster.patch(kind, name, patch).await?;
        if said.contains("no change") {
            bail!("{kind} {name} is so already: {said}");
        }
    }
    made_again(cluster, &before).await.context("after changes")?;
    for (kind, name) in DELETED {
        cluster.kubectl(&["delete", kind, name, "-n", PLANT]).await?;
    }
    cluster.kubectl(&[&["delete"][..], &TRUST].concat()).await?;
    made_again(cluster, &before).await.context("after deletions")?;
    eventually("the roots are there again", DEADLINE, || async {
        cluster.json(&[&["get"][..], &TRUST].concat()).await.map(Some)
    })
    .await?;
    install::well(cluster).await?;
    install::flows(cluster).await
}

async fn made_again(cluster: &Cluster, before: &BTreeMap<String, Value>) -> Result<()> {
    eventually("the objects are as they were", DEADLINE, || async {
        let now = made(cluster).await?;
        for (name, object) in before {
            match now.get(name) {
                Some(now) if now == object => {}
                Some(now) => bail!("{name} was {object}\nand is {now}"),
                None => bail!("{name} is gone"),
            }
        }
        Ok(Some(()))
    })
    .await
}

/// The objects of the operator in the plant, without what Kubernetes adds to each anew.
async fn made(cluster: &Cluster) -> Result<BTreeMap<String, Value>> {
    let selector = "app.kubernetes.io/managed-by=foreshore-operator";
    let mut made = BTreeMap::new();
    for mut object in cluster.items(&[KINDS, "-n", PLANT, "-l", selector]).await? {
        if !object["metadata"]["deletionTimestamp"].is_null() {
            continue;
        }
        let name = format!("{} {}", object["kind"], object["metadata"]["name"]);
        let owned = ["labels", "ownerReferences"].map(|member| object["metadata"][member].take());
        if let Some(members) = object.as_object_mut() {
            members.remove("status");
            members.insert("metadata".to_owned(), owned.into_iter().collect());
        }
        if let Some(annotations) = object["spec"]["template"]["metadata"]["annotations"].as_object_mut() {
            annotations.remove("foreshore.dev/service-account-uid");
        }
        if let Some(spec) = object["spec"].as_object_mut() {
            spec.remove("clusterIP");
            spec.remove("clusterIPs");
        }
        made.insert(name, object);
    }
    let kinds = KINDS.split(',').count();
    let found: std::collections::BTreeSet<_> =
        made.keys().filter_map(|name| name.split(' ').next()).collect();
    if found.len() != kinds {
        bail!("found objects of {found:?}, not of {kinds} kinds");
    }
    Ok(made)
}
