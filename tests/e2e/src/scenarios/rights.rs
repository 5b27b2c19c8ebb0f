//! Who may do what.

use std::fmt::Write as _;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::cluster::{Cluster, OPERATOR, PLANT};

/// What the operator must be able to do, and must not, in the plant's namespace.
const OPERATOR_RIGHTS: [(&str, &str, bool); 16] = [
    ("get", "secrets", true),
    ("list", "secrets", false),
    ("watch", "secrets", false),
    ("create", "secrets", false),
    ("delete", "secrets", false),
    ("patch", "assets.foreshore.dev", false),
    ("patch", "assets.foreshore.dev/status", true),
    ("watch", "devices.foreshore.dev", true),
    ("create", "pods", false),
    ("delete", "pods", false),
    ("create", "pods/exec", false),
    ("patch", "deployments.apps", true),
    ("create", "clusterroles.rbac.authorization.k8s.io", false),
    ("impersonate", "serviceaccounts", false),
    ("watch", "customresourcedefinitions.apiextensions.k8s.io", true),
    ("patch", "customresourcedefinitions.apiextensions.k8s.io", false),
];

/// What a role must never be able to do.
const FORBIDDEN: [(&str, &str); 8] = [
    ("get", "secrets"),
    ("list", "pods"),
    ("get", "configmaps"),
    ("get", "assets.foreshore.dev"),
    ("patch", "assets.foreshore.dev/status"),
    ("create", "tokenreviews.authentication.k8s.io"),
    ("create", "pods"),
    ("get", "leases.coordination.k8s.io"),
];

/// Asks the API server about every right of every ServiceAccount of ours.
pub(super) async fn roles(cluster: &Cluster) -> Result<()> {
    let mut wrong = String::new();
    let operator = format!("system:serviceaccount:{OPERATOR}:foreshore");
    let asked = OPERATOR_RIGHTS.map(|(verb, what, _)| (operator.as_str(), verb, what));
    let allowed = can(cluster, &asked).await?;
    for ((verb, what, must), can) in OPERATOR_RIGHTS.into_iter().zip(allowed) {
        if can != must {
            writeln!(
                wrong,
                "the operator {} {verb} {what}",
                if must { "can't" } else { "can" }
            )?;
        }
    }
    let selector = "app.kubernetes.io/managed-by=foreshore-operator";
    let accounts = cluster
        .items(&["serviceaccounts", "-n", PLANT, "-l", selector])
        .await?;
    if accounts.len() != 7 {
        bail!("found {} ServiceAccounts of roles, not 7", accounts.len());
    }
    let mut users = Vec::new();
    for account in &accounts {
        let name = account["metadata"]["name"]
            .as_str()
            .context("name of a ServiceAccount")?;
        users.push(format!("system:serviceaccount:{PLANT}:{name}"));
    }
    let asked: Vec<_> = users
        .iter()
        .flat_map(|user| FORBIDDEN.map(|(verb, what)| (user.as_str(), verb, what)))
        .collect();
    let allowed = can(cluster, &asked).await?;
    for ((user, verb, what), can) in asked.into_iter().zip(allowed) {
        if can {
            writeln!(wrong, "{user} can {verb} {what}")?;
        }
    }
    for namespace in [PLANT, OPERATOR] {
        let namespace = cluster.json(&["get", "namespace", namespace]).await?;
        let enforced = &namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"];
        if enforced != "restricted" {
            writeln!(
                wrong,
                "namespace {} enforces {enforced}",
                namespace["metadata"]["name"]
            )?;
        }
    }
    if !wrong.is_empty() {
        bail!("{wrong}");
    }
    Ok(())
}

/// Which of these somebody can do, in order: who, verb, what.
async fn can(cluster: &Cluster, asked: &[(&str, &str, &str)]) -> Result<Vec<bool>> {
    let reviews = asked.iter().map(|(user, verb, what)| {
        let review = serde_json::json!({
            "apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview",
            "spec": {
                "user": user, "groups": ["system:serviceaccounts", "system:authenticated"],
                "resourceAttributes": attributes(verb, what),
            },
        });
        format!("---\n{review}\n")
    });
    let reviews: String = reviews.collect();
    let answers = cluster
        .kubectl_with(&["create", "-f", "-", "-o", "json"], &reviews)
        .await?;
    let answers = serde_json::Deserializer::from_str(&answers).into_iter::<Value>();
    let mut allowed = Vec::new();
    for answer in answers {
        let answer = answer?["status"]["allowed"].as_bool();
        allowed.push(answer.context("answer of a SubjectAccessReview")?);
    }
    if allowed.len() != asked.len() {
        bail!("{} questions and {} answers", asked.len(), allowed.len());
    }
    Ok(allowed)
}

fn attributes(verb: &str, what: &str) -> Value {
    let (resource, subresource) = what.split_once('/').unwrap_or((what, ""));
    let (resource, group) = resource.split_once('.').unwrap_or((resource, ""));
    serde_json::json!({
        "namespace": PLANT, "verb": verb, "group": group, "resource": resource, "subresource": subresource,
    })
}
