//! What every rendered object keeps, whatever the values.

use std::{collections::BTreeSet, path::Path};

use anyhow::{Context, Result, bail};
use serde_json::{Map, Value};

use super::render::{self, CASES};
use crate::shell;

/// Kinds of the cluster and not of a namespace.
const OF_THE_CLUSTER: &[&str] = &[
    "ClusterRole",
    "ClusterRoleBinding",
    "CustomResourceDefinition",
    "Namespace",
];

/// Resources that the operator reaches in every namespace, even when it watches a few.
const CLUSTER_WIDE: &[&str] = &[
    "tokenreviews",
    "nodes",
    "persistentvolumes",
    "customresourcedefinitions",
];

/// Fails when a case renders an object that breaks a rule.
pub(super) fn check(helm: &Path) -> Result<()> {
    for case in CASES {
        let objects = render::documents(&case.render(helm)?)?;
        keep(case.name, &objects)?;
        match case.name {
            "watch-namespaces" => few_rights(&objects).context("watch-namespaces")?,
            "alerts-and-dashboards" => same_files(&objects).context("alerts-and-dashboards")?,
            _ => {}
        }
    }
    Ok(())
}

/// Fails with every fault of these objects.
pub(super) fn keep(name: &str, objects: &[Value]) -> Result<()> {
    let mut faults = Vec::new();
    let mut seen = BTreeSet::new();
    for object in objects {
        let subject = subject(object);
        if text(object, "/apiVersion").is_empty()
            || text(object, "/kind").is_empty()
            || text(object, "/metadata/name").is_empty()
        {
            faults.push(format!("{subject} lacks apiVersion, kind or name"));
        }
        let of_cluster = OF_THE_CLUSTER.contains(&text(object, "/kind"));
        if of_cluster != text(object, "/metadata/namespace").is_empty() {
            faults.push(format!("{subject} has no namespace, or should have none"));
        }
        if !seen.insert(subject.clone()) {
            faults.push(format!("{subject} is there twice"));
        }
        for fault in faults_of(object, objects) {
            faults.push(format!("{subject}: {fault}"));
        }
    }
    if faults.is_empty() {
        return Ok(());
    }
    bail!("{name}: {}", faults.join("; "))
}

fn faults_of(object: &Value, objects: &[Value]) -> Vec<String> {
    match text(object, "/kind") {
        "Deployment" => pod(object.pointer("/spec/template").unwrap_or(&Value::Null)),
        "ServiceAccount" => match object.get("automountServiceAccountToken") {
            Some(Value::Bool(false)) => Vec::new(),
            _ => vec!["gives its token to whoever uses it".to_owned()],
        },
        "Service" => selects(object, "/spec/selector", objects),
        "PodDisruptionBudget" => selects(object, "/spec/selector/matchLabels", objects),
        "NetworkPolicy" => [
            selects(object, "/spec/podSelector/matchLabels", objects),
            network_policy(object, objects),
        ]
        .concat(),
        "Role" | "ClusterRole" => rights(object),
        "RoleBinding" | "ClusterRoleBinding" => binding(object, objects),
        _ => Vec::new(),
    }
}

// === Pods

/// The restricted Pod Security Standard, and what we ask for beyond it.
fn pod(template: &Value) -> Vec<String> {
    let mut faults = Vec::new();
    let spec = template.get("spec").unwrap_or(&Value::Null);
    let mut expect = |holds: bool, fault: &str| {
        if !holds {
            faults.push(fault.to_owned());
        }
    };
    expect(
        spec.pointer("/securityContext/runAsNonRoot") == Some(&Value::Bool(true)),
        "may run as root",
    );
    expect(
        text(spec, "/securityContext/seccompProfile/type") == "RuntimeDefault",
        "has no seccomp profile",
    );
    for field in ["hostNetwork", "hostPID", "hostIPC"] {
        expect(spec.get(field).is_none(), "shares something with the node");
    }
    let containers = [list(spec, "/containers"), list(spec, "/initContainers")].concat();
    expect(!containers.is_empty(), "has no container");
    for container in &containers {
        let security = container.get("securityContext").unwrap_or(&Value::Null);
        expect(
            security.get("allowPrivilegeEscalation") == Some(&Value::Bool(false)),
            "may gain privileges",
        );
        expect(
            security.get("readOnlyRootFilesystem") == Some(&Value::Bool(true)),
            "may write to its image",
        );
        expect(
            list(security, "/capabilities/drop") == [Value::from("ALL")],
            "keeps capabilities",
        );
        for bound in [
            "/resources/requests/cpu",
            "/resources/requests/memory",
            "/resources/limits/memory",
        ] {
            expect(container.pointer(bound).is_some(), &format!("lacks {bound}"));
        }
        for probe in ["livenessProbe", "readinessProbe"] {
            expect(container.get(probe).is_some(), &format!("lacks a {probe}"));
        }
        let operator = list(container, "/args").first() == Some(&Value::from("operator"));
        expect(
            spec.get("automountServiceAccountToken") == Some(&Value::Bool(operator)),
            "has a token and is not the operator, or is the operator and has none",
        );
    }
    for volume in list(spec, "/volumes") {
        expect(
            ["emptyDir", "configMap", "secret", "projected"]
                .iter()
                .any(|kind| volume.get(*kind).is_some()),
            "has a volume that restricted pods may not have",
        );
    }
    faults
}

// === Selectors and ports

/// Selectors that select no pod of the release are the quietest of all faults.
fn selects(object: &Value, selector: &str, objects: &[Value]) -> Vec<String> {
    let Some(wanted) = object.pointer(selector).and_then(Value::as_object) else {
        return vec![format!("has no {selector}")];
    };
    let selected: Vec<&Value> = objects.iter().filter(|other| carries(other, wanted)).collect();
    let [deployment] = selected.as_slice() else {
        return vec![format!(
            "{selector} selects {} Deployments instead of one",
            selected.len()
        )];
    };
    list(object, "/spec/ports")
        .iter()
        .filter(|port| !ports(deployment).contains(text(port, "/targetPort")))
        .map(|port| format!("port {port} leads to none of the pod's"))
        .collect()
}

fn carries(deployment: &Value, wanted: &Map<String, Value>) -> bool {
    let labels = deployment.pointer("/spec/template/metadata/labels");
    labels.is_some_and(|labels| wanted.iter().all(|(key, value)| labels.get(key) == Some(value)))
}

/// Names and numbers of a pod's ports.
fn ports(deployment: &Value) -> BTreeSet<String> {
    list(deployment, "/spec/template/spec/containers")
        .iter()
        .flat_map(|container| list(container, "/ports"))
        .flat_map(|port| [text(&port, "/name").to_owned(), port["containerPort"].to_string()])
        .collect()
}

fn network_policy(policy: &Value, objects: &[Value]) -> Vec<String> {
    let mut faults = Vec::new();
    if list(policy, "/spec/policyTypes") != ["Ingress", "Egress"].map(Value::from) {
        faults.push("does not speak of both directions".to_owned());
    }
    let known: BTreeSet<String> = objects.iter().flat_map(ports).collect();
    for rule in list(policy, "/spec/ingress") {
        for port in list(&rule, "/ports") {
            if !known.contains(&port["port"].to_string()) {
                faults.push(format!("lets in to {port}, where nothing listens"));
            }
        }
        if list(&rule, "/from").is_empty() {
            faults.push("lets in whoever comes".to_owned());
        }
    }
    for rule in [list(policy, "/spec/ingress"), list(policy, "/spec/egress")].concat() {
        if list(&rule, "/ports").is_empty() {
            faults.push("has a rule without ports".to_owned());
        }
    }
    faults
}

// === Rights

fn rights(role: &Value) -> Vec<String> {
    let mut faults = Vec::new();
    for rule in list(role, "/rules") {
        let verbs = list(&rule, "/verbs");
        for verb in ["*", "escalate", "bind", "impersonate"] {
            if verbs.contains(&verb.into()) {
                faults.push(format!("has the right to {verb}"));
            }
        }
        if list(&rule, "/apiGroups").contains(&"*".into()) {
            faults.push("has rights on every API".to_owned());
        }
        let secrets = list(&rule, "/resources").contains(&"secrets".into());
        if secrets
            && ["list", "watch", "delete"]
                .iter()
                .any(|verb| verbs.contains(&(*verb).into()))
        {
            faults.push("may do more with Secrets than to get them by name".to_owned());
        }
    }
    faults
}

fn binding(binding: &Value, objects: &[Value]) -> Vec<String> {
    let mut faults = Vec::new();
    let exists = |kind: &str, name: &str, namespace: &str| {
        objects.iter().any(|object| {
            text(object, "/kind") == kind
                && text(object, "/metadata/name") == name
                && text(object, "/metadata/namespace") == namespace
        })
    };
    let (kind, name) = (text(binding, "/roleRef/kind"), text(binding, "/roleRef/name"));
    if !exists(kind, name, text(binding, "/metadata/namespace")) {
        faults.push(format!("binds {kind} {name}, which is not there"));
    }
    for subject in list(binding, "/subjects") {
        if !exists(
            "ServiceAccount",
            text(&subject, "/name"),
            text(&subject, "/namespace"),
        ) {
            faults.push(format!("binds to {subject}, which is not there"));
        }
    }
    faults
}

/// An operator that watches a few namespaces has nothing in the others but what no namespace can give.
fn few_rights(objects: &[Value]) -> Result<()> {
    let bound: BTreeSet<&str> = objects
        .iter()
        .filter(|object| text(object, "/kind") == "ClusterRoleBinding")
        .map(|binding| text(binding, "/roleRef/name"))
        .collect();
    for role in objects.iter().filter(|object| {
        text(object, "/kind") == "ClusterRole" && bound.contains(text(object, "/metadata/name"))
    }) {
        for rule in list(role, "/rules") {
            for resource in list(&rule, "/resources") {
                if !CLUSTER_WIDE.iter().any(|allowed| resource == *allowed) {
                    bail!("{} has rights on {resource} in every namespace", subject(role));
                }
            }
        }
    }
    Ok(())
}

// === Files

/// The chart's alerts and dashboards are those of `deploy`, and survived the rendering.
fn same_files(objects: &[Value]) -> Result<()> {
    let find = |kind: &str| {
        objects
            .iter()
            .find(|object| text(object, "/kind") == kind)
            .with_context(|| format!("no {kind}"))
    };
    for (_, rules) in super::texts(&shell::root().join("deploy/alerts"))? {
        let expected: Value = serde_yaml::from_str(&rules)?;
        if find("PrometheusRule")?.get("spec") != Some(&moved(expected)) {
            bail!("the PrometheusRule differs from deploy/alerts");
        }
    }
    let data = find("ConfigMap")?.get("data").context("no data")?;
    for (name, dashboard) in super::texts(&shell::root().join("deploy/dashboards"))? {
        let expected: Value = serde_json::from_str(&dashboard).with_context(|| name.clone())?;
        let rendered = data.get(&name).and_then(Value::as_str).unwrap_or_default();
        if serde_json::from_str::<Value>(rendered).ok() != Some(expected) {
            bail!("the ConfigMap has another {name} than deploy/dashboards");
        }
    }
    Ok(())
}

/// The rules with their runbooks where the values of the case say.
fn moved(mut rules: Value) -> Value {
    if let Some(groups) = rules.get_mut("groups").and_then(Value::as_array_mut) {
        for rule in groups
            .iter_mut()
            .filter_map(|group| group.get_mut("rules").and_then(Value::as_array_mut))
            .flatten()
        {
            let alert = text(rule, "/alert").to_owned();
            if let Some(annotations) = rule.get_mut("annotations") {
                annotations["runbook_url"] = format!("https://wiki.example/runbooks/{alert}.md").into();
            }
        }
    }
    rules
}

// === Helpers

fn subject(object: &Value) -> String {
    format!(
        "{} {}/{}",
        text(object, "/kind"),
        text(object, "/metadata/namespace"),
        text(object, "/metadata/name")
    )
}

fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

fn list(value: &Value, pointer: &str) -> Vec<Value> {
    value
        .pointer(pointer)
        .and_then(Value::as_array)
        .cloned()
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// What the chart renders by default, as it is committed.
    fn rendered() -> Vec<Value> {
        render::documents(include_str!(
            "../../../charts/foreshore/tests/snapshots/default.yaml"
        ))
        .unwrap()
    }

    /// What is said when one place of one object holds something else.
    fn fault_of(kind: &str, pointer: &str, value: Value) -> String {
        let mut objects = rendered();
        let object = objects
            .iter_mut()
            .find(|object| text(object, "/kind") == kind)
            .unwrap();
        *object.pointer_mut(pointer).unwrap() = value;
        keep("broken", &objects).unwrap_err().to_string()
    }

    #[test]
    fn what_is_rendered_keeps_the_rules() {
        keep("default", &rendered()).unwrap();
    }

    #[test]
    fn broken_objects_are_found() {
        let container = "/spec/template/spec/containers/0";
        for (kind, pointer, value, fault) in [
            (
                "Deployment",
                "/spec/template/spec/securityContext/runAsNonRoot",
                json!(false),
                "may run as root",
            ),
            (
                "Deployment",
                &format!("{container}/securityContext/capabilities/drop"),
                json!([]),
                "keeps capabilities",
            ),
            (
                "Deployment",
                &format!("{container}/args"),
                json!(["broker"]),
                "has a token and is not the operator",
            ),
            (
                "Deployment",
                &format!("{container}/resources"),
                json!({}),
                "lacks /resources/limits/memory",
            ),
            (
                "Deployment",
                "/spec/template/metadata/labels",
                json!({}),
                "selects 0 Deployments",
            ),
            (
                "ServiceAccount",
                "/automountServiceAccountToken",
                json!(true),
                "gives its token",
            ),
            (
                "Service",
                "/spec/ports/0/targetPort",
                json!("grpc"),
                "leads to none",
            ),
            (
                "NetworkPolicy",
                "/spec/ingress/0/ports/0/port",
                json!(7444),
                "where nothing listens",
            ),
            (
                "NetworkPolicy",
                "/spec/ingress/0/from",
                json!([]),
                "lets in whoever comes",
            ),
            (
                "NetworkPolicy",
                "/spec/egress/0/ports",
                json!([]),
                "without ports",
            ),
            (
                "NetworkPolicy",
                "/spec/policyTypes",
                json!(["Ingress"]),
                "both directions",
            ),
            ("Role", "/rules/0/verbs", json!(["*"]), "right to *"),
            ("Role", "/rules/1/verbs", json!(["list"]), "do more with Secrets"),
            (
                "RoleBinding",
                "/roleRef/name",
                json!("other"),
                "which is not there",
            ),
            (
                "ClusterRoleBinding",
                "/subjects/0/name",
                json!("default"),
                "which is not there",
            ),
            ("Service", "/metadata/namespace", json!(""), "has no namespace"),
            (
                "Service",
                "/metadata/name",
                json!(""),
                "lacks apiVersion, kind or name",
            ),
        ] {
            let said = fault_of(kind, pointer, value);
            assert!(said.contains(fault), "{kind} {pointer}: {said}");
        }
        let mut objects = rendered();
        objects.push(objects[0].clone());
        assert!(
            keep("broken", &objects)
                .unwrap_err()
                .to_string()
                .contains("is there twice")
        );
    }

    #[test]
    fn rights_in_every_namespace_are_found() {
        assert!(
            few_rights(&rendered())
                .unwrap_err()
                .to_string()
                .contains("in every namespace")
        );
    }
}
