//! Prometheus' own judgement: whether rules and dashboards are PromQL, and what raises each alert.

use std::{collections::BTreeSet, env, fs, path::Path};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::{render, texts};
use crate::shell;

const ALERTS: &str = "deploy/alerts/foreshore.yaml";
/// Series over time and the alerts that they raise, in promtool's form.
const TESTS: &str = "tests/alerts/foreshore.test.yaml";

/// What Grafana puts into expressions.
const VARIABLES: &[(&str, &str)] = &[
    ("$__rate_interval", "5m"),
    ("$namespace", ".*"),
    ("$broker", ".*"),
];

/// Fails when an expression is none, or an alert is not raised by what should raise it.
pub(super) fn check(promtool: &Path) -> Result<()> {
    run(promtool, &["check", "rules", ALERTS])?;
    run(promtool, &["test", "rules", TESTS])?;
    every_alert_is_tested()?;
    dashboards(promtool)
}

fn every_alert_is_tested() -> Result<()> {
    let tests = fs::read_to_string(shell::root().join(TESTS)).context(TESTS)?;
    let rules: Value = serde_yaml::from_str(&fs::read_to_string(shell::root().join(ALERTS))?)?;
    let untested: Vec<&str> = rules
        .pointer("/groups")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(|group| group.get("rules").and_then(Value::as_array))
        .flatten()
        .filter_map(|rule| rule.get("alert").and_then(Value::as_str))
        .filter(|alert| !tests.contains(alert))
        .collect();
    if untested.is_empty() {
        return Ok(());
    }
    bail!("{TESTS} raises no {}", untested.join(", "))
}

/// Judges the expressions of dashboards as if they were rules.
fn dashboards(promtool: &Path) -> Result<()> {
    let mut expressions = BTreeSet::new();
    for (name, text) in texts(&shell::root().join("deploy/dashboards"))? {
        let dashboard: Value = serde_json::from_str(&text).with_context(|| name.clone())?;
        let panels = dashboard.get("panels").and_then(Value::as_array);
        let targets = panels
            .into_iter()
            .flatten()
            .filter_map(|panel| panel.get("targets").and_then(Value::as_array))
            .flatten();
        for target in targets {
            let expression = target.get("expr").and_then(Value::as_str);
            let mut expression = expression
                .with_context(|| format!("{name}: a target without expr"))?
                .to_owned();
            for (variable, value) in VARIABLES {
                expression = expression.replace(variable, value);
            }
            if expression.contains('$') {
                bail!("{name}: {expression} has a variable that this check does not know");
            }
            expressions.insert(expression);
        }
    }
    let rules: Vec<Value> = expressions
        .iter()
        .enumerate()
        .map(|(number, expression)| json!({ "record": format!("panel:{number}"), "expr": expression }))
        .collect();
    // JSON is YAML.
    let groups = json!({ "groups": [{ "name": "panels", "rules": rules }] });
    let file = env::temp_dir().join(format!("foreshore-panels-{}.yaml", std::process::id()));
    fs::write(&file, groups.to_string())?;
    let judged = run(promtool, &["check", "rules", &file.display().to_string()]);
    fs::remove_file(&file)?;
    judged.context("deploy/dashboards")
}

fn run(promtool: &Path, arguments: &[&str]) -> Result<()> {
    render::succeed(shell::command(&promtool.to_string_lossy(), arguments)).map(drop)
}
