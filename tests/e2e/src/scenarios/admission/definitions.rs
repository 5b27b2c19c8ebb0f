//! The rules of the definitions in `crds/manifests`.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// A kind.
pub(super) struct Definition {
    /// Group and version.
    pub(super) version: String,
    pub(super) plural: String,
    pub(super) rules: Vec<Rule>,
}

/// What an object has to keep beyond its structure.
pub(super) struct Rule {
    /// The field that it complains of, without indexes.
    pub(super) place: String,
    pub(super) rule: String,
    /// How every message of it ends.
    pub(super) said: String,
}

/// All definitions, by kind.
pub(super) fn read(folder: &Path) -> Result<BTreeMap<String, Definition>> {
    let mut definitions = BTreeMap::new();
    for entry in std::fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let file = entry?.path();
        let text = std::fs::read_to_string(&file).with_context(|| file.display().to_string())?;
        let crd: Value = serde_yaml::from_str(&text).with_context(|| file.display().to_string())?;
        let (kind, definition) = definition(&crd).with_context(|| file.display().to_string())?;
        definitions.insert(kind, definition);
    }
    if definitions.is_empty() {
        bail!("{}: no definitions", folder.display());
    }
    Ok(definitions)
}

fn definition(crd: &Value) -> Result<(String, Definition)> {
    let text = |pointer: &str| {
        let text = crd.pointer(pointer).and_then(Value::as_str);
        text.map(ToOwned::to_owned)
            .with_context(|| format!("no text at {pointer}"))
    };
    let schema = crd
        .pointer("/spec/versions/0/schema/openAPIV3Schema")
        .context("no schema")?;
    let mut rules = Vec::new();
    walk("", schema, &mut rules)?;
    // A message has to tell which rule it is of.
    let mut known = BTreeSet::new();
    for rule in &rules {
        if !known.insert((&rule.place, &rule.said)) {
            bail!("two rules at {} say the same: {}", rule.place, rule.said);
        }
    }
    let (group, version) = (text("/spec/group")?, text("/spec/versions/0/name")?);
    let definition = Definition {
        version: format!("{group}/{version}"),
        plural: text("/spec/names/plural")?,
        rules,
    };
    Ok((text("/spec/names/kind")?, definition))
}

/// Collects the rules of a node of a schema and of all below it.
fn walk(place: &str, node: &Value, rules: &mut Vec<Rule>) -> Result<()> {
    for rule in node["x-kubernetes-validations"].as_array().into_iter().flatten() {
        let field = rule["fieldPath"].as_str().unwrap_or_default();
        rules.push(Rule {
            place: format!("{place}{field}").trim_start_matches('.').to_owned(),
            rule: rule["rule"].as_str().context("a rule without a rule")?.to_owned(),
            said: said(rule).with_context(|| format!("message of {rule}"))?,
        });
    }
    for (name, child) in node["properties"].as_object().into_iter().flatten() {
        let dot = if place.is_empty() { "" } else { "." };
        walk(&format!("{place}{dot}{name}"), child, rules)?;
    }
    if let Some(child) = node.get("items") {
        walk(&format!("{place}[]"), child, rules)?;
    }
    if let Some(child) = node.get("additionalProperties").filter(|child| child.is_object()) {
        // In a path the key of a map looks like an index.
        walk(&format!("{place}[]"), child, rules)?;
    }
    Ok(())
}

/// What every message of a rule ends with: the whole message, or the text that follows the last expression in it.
fn said(rule: &Value) -> Result<String> {
    if let Some(message) = rule["message"].as_str() {
        return Ok(message.to_owned());
    }
    let expression = rule["messageExpression"].as_str().context("no message")?;
    let text = expression
        .strip_suffix('\'')
        .and_then(|text| text.rsplit_once('\''));
    let (_, said) = text.context("it does not end with a text")?;
    Ok(said.to_owned())
}
