//! What is missing, comes late, goes early or names nobody: it is told, disturbs nobody else, and heals by itself.

mod api_server;
mod disorder;
mod newer;
mod wrong_change;

use std::collections::BTreeSet;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::{change, install, kill, pods::Pods};
use crate::cluster::{Cluster, DEADLINE, OPERATOR, PLANT, condition, eventually};

pub(super) use self::{
    api_server::{away, throttles},
    disorder::worst_order,
    newer::field as field_of_newer,
    wrong_change::stops_nothing,
};

/// Namespace of objects that name nobody.
const DANGLING: &str = "dangling";

/// Objects that name nobody: kind, name, spec, the field of the reference, and whom it names.
const NAMING_NOBODY: [(&str, &str, &str, &str, &str); 5] = [
    (
        "Asset",
        "of-no-device",
        r#"{"deviceRef": {"name": "nobody-1"}}"#,
        "spec.deviceRef.name",
        "nobody-1",
    ),
    (
        "Device",
        "of-no-connector",
        r#"{"address": "opc.tcp://plc:4840", "opcua": {}, "connectorRef": {"name": "nobody-2"}}"#,
        "spec.connectorRef.name",
        "nobody-2",
    ),
    (
        "DataflowEndpoint",
        "of-no-cloud",
        r#"{"cloud": {"cloudRef": {"name": "nobody-3"}, "edgeId": "e", "joinTokenSecretRef": {"name": "token"}}}"#,
        "spec.cloud.cloudRef.name",
        "nobody-3",
    ),
    (
        "DataflowEndpoint",
        "of-no-broker",
        r#"{"mqtt": {"brokerRef": {"name": "nobody-4"}}}"#,
        "spec.mqtt.brokerRef.name",
        "nobody-4",
    ),
    (
        "Dataflow",
        "of-no-endpoint",
        r#"{"source": {"topics": ["a"]}, "sinks": [{"name": "s", "endpointRef": {"name": "nobody-5"}}]}"#,
        "spec.sinks[0].endpointRef.name",
        "nobody-5",
    ),
];

/// A Device names a Secret that comes later: the status says which and where, then the Device runs, and nothing was
/// restarted for it.
pub(super) async fn late_secret(cluster: &Cluster) -> Result<()> {
    let (device, secret) = ("late", "late-user");
    cluster
        .kubectl(&[
            "delete",
            "device,secret",
            "-n",
            PLANT,
            "--ignore-not-found",
            device,
            secret,
        ])
        .await?;
    install::well(cluster).await?;
    let pods = Pods::of_plant(cluster).await?;
    // As the example's own, but for the Secret.
    let mut late = cluster.json(&["get", "device", "line-1", "-n", PLANT]).await?;
    late["metadata"] = json!({"name": device, "namespace": PLANT});
    late["spec"]["authentication"]["usernamePassword"]["secretRef"]["name"] = secret.into();
    create(cluster, &late).await?;
    told(
        cluster,
        PLANT,
        ("Device", device),
        "SecretNotFound",
        &[
            "spec.authentication.usernamePassword.secretRef.name",
            secret,
            "create the Secret",
        ],
    )
    .await?;
    let user = cluster
        .json(&["get", "secret", "line-1-user", "-n", PLANT])
        .await?;
    create(
        cluster,
        &json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": {"name": secret, "namespace": PLANT},
            "data": user["data"],
        }),
    )
    .await?;
    eventually("the device is ready and healthy", DEADLINE, || async {
        let now = cluster.json(&["get", "device", device, "-n", PLANT]).await?;
        for type_ in ["Ready", "Healthy"] {
            let condition = condition(&now, type_);
            if condition["status"] != "True" {
                bail!("{type_}: {condition}");
            }
        }
        Ok(Some(()))
    })
    .await?;
    pods.stay(cluster).await?;
    for (kind, name) in [("device", device), ("secret", secret)] {
        cluster.kubectl(&["delete", kind, name, "-n", PLANT]).await?;
    }
    install::well(cluster).await
}

/// Objects that name others which do not exist: the status of each says where, whom, and what to do.
pub(super) async fn dangling(cluster: &Cluster) -> Result<()> {
    cluster.fresh_namespace(DANGLING).await?;
    // A Secret that is missing too would be told first.
    let token = json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "token", "namespace": DANGLING},
        "stringData": {"token": "0123456789abcdef0123456789abcdef"},
    });
    create(cluster, &token).await?;
    for (kind, name, spec, _, _) in NAMING_NOBODY {
        let spec: Value = serde_json::from_str(spec).with_context(|| name.to_owned())?;
        create(
            cluster,
            &json!({
                "apiVersion": "foreshore.dev/v1alpha1", "kind": kind,
                "metadata": {"name": name, "namespace": DANGLING}, "spec": spec,
            }),
        )
        .await?;
    }
    for (kind, name, _, field, nobody) in NAMING_NOBODY {
        told(
            cluster,
            DANGLING,
            (kind, name),
            "NotFound",
            &[field, nobody, "create that object"],
        )
        .await?;
    }
    cluster
        .kubectl(&["delete", "namespace", DANGLING, "--wait=false"])
        .await?;
    cluster.namespace_goes(DANGLING, DEADLINE).await
}

/// A definition is deleted while the operator runs, and its objects with it: the operator tells of it, does all other
/// work, and takes the kind up again when it is back.
pub(super) async fn lost_definition(cluster: &Cluster) -> Result<()> {
    install::well(cluster).await?;
    let pods = [Pods::of_plant(cluster).await?, Pods::of(cluster, OPERATOR).await?];
    let leader = kill::leader(cluster).await?.context("nobody leads")?;
    cluster
        .kubectl(&["delete", "crd", "brokerpolicies.foreshore.dev"])
        .await?;
    eventually("the operator tells of it", DEADLINE, || async {
        let log = cluster.kubectl(&["logs", &leader, "-n", OPERATOR]).await?;
        let told = log
            .lines()
            .any(|line| line.contains("BrokerPolicy can't be read: the definition is not installed"));
        Ok(told.then_some(()))
    })
    .await?;
    change::reaches(cluster).await?;
    install::flows(cluster).await?;
    install::definitions(cluster).await?;
    eventually("the objects are applied again", DEADLINE, || async {
        let apply = [
            "apply",
            "--server-side",
            "--force-conflicts",
            "-k",
            install::EXAMPLE,
        ];
        cluster.kubectl(&apply).await.map(Some)
    })
    .await?;
    install::well(cluster).await?;
    install::flows(cluster).await?;
    for pods in pods {
        pods.stay(cluster).await?;
    }
    Ok(())
}

/// Whether an object's status and `kubectl describe` say why it is not ready, with these words between them.
async fn told(
    cluster: &Cluster,
    namespace: &str,
    (kind, name): (&str, &str),
    reason: &str,
    words: &[&str],
) -> Result<()> {
    let kind = format!("{kind}.foreshore.dev");
    eventually("the status says why", DEADLINE, || async {
        let object = cluster.json(&["get", &kind, name, "-n", namespace]).await?;
        let ready = condition(&object, "Ready");
        if ready["status"] != "False" || ready["reason"] != reason {
            bail!("{kind} {name}: {ready}, not {reason}");
        }
        let described = cluster
            .kubectl(&["describe", &kind, name, "-n", namespace])
            .await?;
        let missing: BTreeSet<_> = words.iter().filter(|word| !described.contains(**word)).collect();
        if !missing.is_empty() {
            bail!("kubectl describe {kind} {name} says nothing of {missing:?}:\n{described}");
        }
        // The next step is an event's; what is wrong has to last.
        let message = ready["message"].as_str().unwrap_or_default();
        if let Some(word) = words.iter().take(2).find(|word| !message.contains(**word)) {
            bail!("{kind} {name} says nothing of {word}: {message}");
        }
        Ok(Some(()))
    })
    .await
}

async fn create(cluster: &Cluster, object: &Value) -> Result<()> {
    cluster
        .kubectl_with(&["create", "-f", "-"], &object.to_string())
        .await
        .map(drop)
}
