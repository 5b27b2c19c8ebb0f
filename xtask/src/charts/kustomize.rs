//! What is applied with `kubectl apply -k`.

use std::{path::Path, process::Command};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::{definitions, render, rules};
use crate::shell;

/// Definitions and operator.
pub(super) const BASE: &str = "deploy/kustomize/base";

/// Fails when something can't be built, or lacks what belongs into it.
pub(super) fn check(kubectl: &Path) -> Result<()> {
    let base = build(kubectl, BASE)?;
    rules::keep(BASE, &base)?;
    let definitions = build(kubectl, "crds")?;
    let expected = super::texts(&shell::root().join(definitions::FOLDER))?.len();
    if definitions.len() != expected {
        bail!(
            "crds builds {} definitions, there are {expected}",
            definitions.len()
        );
    }
    for kind in ["Deployment", "Namespace", "CustomResourceDefinition"] {
        if !base.iter().any(|object| kind_of(object) == kind) {
            bail!("{BASE} has no {kind}");
        }
    }
    let example = build(kubectl, "deploy/examples/bottling-line")?;
    for (folder, objects) in [(BASE, &base), ("deploy/examples/bottling-line", &example)] {
        restricted_namespace(folder, objects)?;
    }
    argocd(kubectl)
}

/// All objects lie in the one namespace that is made, and whose pods are restricted.
fn restricted_namespace(folder: &str, objects: &[Value]) -> Result<()> {
    let namespaces: Vec<&Value> = objects
        .iter()
        .filter(|object| kind_of(object) == "Namespace")
        .collect();
    let [namespace] = namespaces.as_slice() else {
        bail!("{folder} makes {} namespaces instead of one", namespaces.len());
    };
    let enforced = namespace.pointer("/metadata/labels/pod-security.kubernetes.io~1enforce");
    if enforced.and_then(Value::as_str) != Some("restricted") {
        bail!("the namespace of {folder} does not enforce restricted pods");
    }
    let name = namespace.pointer("/metadata/name");
    let elsewhere = objects.iter().find(|object| {
        let found = object.pointer("/metadata/namespace");
        found.is_some() && found != name
    });
    if let Some(object) = elsewhere {
        bail!(
            "{folder} makes {} in another namespace than its own",
            kind_of(object)
        );
    }
    Ok(())
}

/// Argo CD's settings get the health check for every kind that there is.
fn argocd(kubectl: &Path) -> Result<()> {
    let health = std::fs::read_to_string(shell::root().join("deploy/argocd/health.lua"))?;
    let objects = build(kubectl, "tests/gitops/argocd")?;
    let settings = objects
        .iter()
        .find(|object| object.pointer("/metadata/name").and_then(Value::as_str) == Some("argocd-cm"))
        .and_then(|object| object.get("data"))
        .and_then(Value::as_object)
        .context("deploy/argocd builds no argocd-cm")?;
    if !settings.contains_key("url") {
        bail!("deploy/argocd replaces the settings of Argo CD instead of adding to them");
    }
    for (path, text) in super::committed_manifests()? {
        let definition: Value = serde_yaml::from_str(&text)?;
        let kind = definition
            .pointer("/spec/names/kind")
            .and_then(Value::as_str)
            .with_context(|| format!("{path} names no kind"))?;
        let key = format!("resource.customizations.health.foreshore.dev_{kind}");
        if settings.get(&key).and_then(Value::as_str) != Some(health.as_str()) {
            bail!("deploy/argocd/kustomization.yaml has no {key}=health.lua");
        }
    }
    Ok(())
}

fn build(kubectl: &Path, folder: &str) -> Result<Vec<Value>> {
    render::documents(&text(kubectl, folder)?).with_context(|| folder.to_owned())
}

/// What a folder builds to.
pub(super) fn text(kubectl: &Path, folder: &str) -> Result<String> {
    let mut command = Command::new(kubectl);
    command.args(["kustomize", folder]).current_dir(shell::root());
    render::succeed(command)
}

fn kind_of(object: &Value) -> &str {
    object.get("kind").and_then(Value::as_str).unwrap_or_default()
}
