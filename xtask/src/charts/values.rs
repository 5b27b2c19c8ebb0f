//! The chart's values: declared, used, and refused when they are wrong.

use std::path::Path;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::{DEFINITIONS, OPERATOR, render, texts};
use crate::shell;

/// Arguments that are wrong, and what the message names.
const REFUSED: &[(&str, &[&str], &[&str])] = &[
    (OPERATOR, &["--set", "replica=2"], &["'replica' not allowed"]),
    (
        OPERATOR,
        &["--set", "operator.watchNamespace=a"],
        &["/operator", "'watchNamespace' not allowed"],
    ),
    (
        OPERATOR,
        &["--set", "replicas=two"],
        &["/replicas", "got string, want integer"],
    ),
    (OPERATOR, &["--set", "replicas=0"], &["/replicas", "minimum"]),
    (
        OPERATOR,
        &["--set", "operator.watchNamespaces=bottling"],
        &["/operator/watchNamespaces", "want array"],
    ),
    (
        OPERATOR,
        &["--set", "operator.certificateLifetime=1 day"],
        &["/operator/certificateLifetime", "does not match"],
    ),
    (
        OPERATOR,
        &["--set", "image.digest=latest"],
        &["/image/digest", "does not match"],
    ),
    (
        OPERATOR,
        &["--set", "image.pullPolicy=Sometimes"],
        &["/image/pullPolicy", "'Always', 'IfNotPresent', 'Never'"],
    ),
    (
        OPERATOR,
        &["--set", "observability.prometheusRule.runbookUrl=wiki"],
        &["/observability/prometheusRule/runbookUrl"],
    ),
    (
        OPERATOR,
        &["--set", "authority.certManager.enabled=true"],
        &["/authority/certManager/issuerRef", "'name'"],
    ),
    (
        OPERATOR,
        &["--set", "serviceAccount.create=false"],
        &["serviceAccount.name is needed"],
    ),
    (
        DEFINITIONS,
        &["--set", "crds.kepe=true"],
        &["/crds", "'kepe' not allowed"],
    ),
];

/// Fails when wrong values are taken, or values and their schema differ.
pub(super) fn check(helm: &Path) -> Result<()> {
    for (chart, arguments, named) in REFUSED {
        let message = render::refusal(helm, chart, arguments)?;
        for fragment in *named {
            if !message.contains(fragment) {
                bail!("{chart} with {arguments:?} is refused without naming {fragment:?}: {message}");
            }
        }
    }
    for chart in [OPERATOR, DEFINITIONS] {
        let folder = shell::root().join(chart);
        let values: Value = serde_yaml::from_str(&read(&folder.join("values.yaml"))?)?;
        let schema: Value = serde_json::from_str(&read(&folder.join("values.schema.json"))?)?;
        let templates: String = texts(&folder.join("templates"))?
            .into_iter()
            .map(|(_, text)| text)
            .collect();
        let mut faults = Vec::new();
        compare("", &values, &schema, &mut faults);
        unused("", &values, &templates, &mut faults);
        if !faults.is_empty() {
            bail!("{chart}: {}", faults.join("; "));
        }
    }
    Ok(())
}

/// Everything that the schema allows by name has a default, which is where people look for it, and every object of the
/// schema whose members have names allows no others.
fn compare(path: &str, values: &Value, schema: &Value, faults: &mut Vec<String>) {
    let Some(properties) = schema.get("properties").and_then(Value::as_object) else {
        return;
    };
    if schema.get("additionalProperties") != Some(&Value::Bool(false)) {
        faults.push(format!("the schema allows unknown keys in {path:?}"));
    }
    for (name, part) in properties {
        // Helm hands it to every chart.
        if path.is_empty() && name == "global" {
            continue;
        }
        let at = format!("{path}.{name}");
        match values.get(name) {
            Some(value) if value.as_object().is_none_or(|value| !value.is_empty()) => {
                compare(&at, value, part, faults);
            }
            Some(_) => {}
            None if is_pod_part(path) => {}
            None => faults.push(format!("values.yaml has no {at}")),
        }
    }
}

/// Parts of a pod's own API, whose members need no default.
fn is_pod_part(path: &str) -> bool {
    path == ".resources"
}

/// Every value is read by a template, by its own path or as part of its parent.
fn unused(path: &str, value: &Value, templates: &str, faults: &mut Vec<String>) {
    let members = value.as_object().filter(|members| !members.is_empty());
    if reads(templates, &format!(".Values{path}")) {
        // The whole is read: by a variable, of which members are read as .name, or written as it is.
        for name in members.into_iter().flat_map(|members| members.keys()) {
            let written = reads(templates, &format!("toYaml .Values{path}"));
            if !written && !reads(templates, &format!(".{name}")) {
                faults.push(format!("no template reads {path}.{name}"));
            }
        }
        return;
    }
    match members {
        Some(members) => {
            for (name, member) in members {
                unused(&format!("{path}.{name}"), member, templates, faults);
            }
        }
        None => faults.push(format!("no template reads {path}")),
    }
}

/// Whether the templates hold an expression, and not only a longer one that begins with it.
fn reads(templates: &str, expression: &str) -> bool {
    templates.match_indices(expression).any(|(at, found)| {
        templates
            .get(at + found.len()..)
            .and_then(|rest| rest.chars().next())
            .is_none_or(|next| !next.is_ascii_alphanumeric() && next != '.')
    })
}

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_value_that_nothing_reads_is_found() {
        let values = json!({ "image": { "tag": "", "digest": "" }, "labels": {} });
        let mut faults = Vec::new();
        unused(
            "",
            &values,
            "{{ .Values.image.tag }} {{ .Values.labelsOfPods }}",
            &mut faults,
        );
        assert_eq!(
            faults,
            ["no template reads .image.digest", "no template reads .labels"]
        );
    }

    #[test]
    fn a_schema_that_lets_unknown_keys_through_is_found() {
        let values = json!({ "image": { "tag": "" } });
        let schema = json!({
            "additionalProperties": false,
            "properties": {
                "image": { "properties": { "tag": {}, "digest": {} } },
            },
        });
        let mut faults = Vec::new();
        compare("", &values, &schema, &mut faults);
        assert_eq!(
            faults,
            [
                "the schema allows unknown keys in \".image\"",
                "values.yaml has no .image.digest"
            ]
        );
    }
}
