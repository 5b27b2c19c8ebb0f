//! Alerts, runbooks and dashboards: each alert has its runbook, and none names a metric that nothing registers.

#![cfg(test)]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use serde_json::Value;

use crate::shell;

/// A metric that Prometheus makes itself.
const NOT_OURS: &str = "up";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Counter,
    Gauge,
    Histogram,
}

// === What is registered

/// Every metric that the sources register, by its whole name, without the suffix of its kind.
fn registered() -> BTreeMap<String, Kind> {
    let mut metrics = BTreeMap::new();
    for file in sources() {
        let text = fs::read_to_string(&file).unwrap();
        // Tests register metrics of their own.
        let code = text.split("\n#[cfg(test)]").next().unwrap_or_default();
        metrics.extend(registrations(code));
    }
    metrics
}

/// Calls that register, in the order of the text.
fn registrations(code: &str) -> Vec<(String, Kind)> {
    let mut found = Vec::new();
    for call in [
        "register(",
        "register_with_unit(",
        "encode_descriptor(",
        "counter(",
        "family(",
    ] {
        for (at, _) in code.match_indices(call) {
            let (before, rest) = code.split_at(at);
            if before.ends_with(|last: char| last.is_alphanumeric() || last == '_') {
                continue;
            }
            let arguments = rest.strip_prefix(call).unwrap();
            let Some(name) = arguments
                .trim_start()
                .strip_prefix('"')
                .and_then(|rest| rest.split('"').next())
            else {
                continue;
            };
            let mut whole = format!("foreshore_{name}");
            if call == "register_with_unit(" {
                let unit = arguments.split("Unit::").nth(1).unwrap();
                let unit = unit.split(|end: char| !end.is_alphanumeric()).next().unwrap();
                whole = format!("{whole}_{}", unit.to_lowercase());
            }
            let kind = match call {
                "counter(" | "encode_descriptor(" => Kind::Counter,
                _ => kind_of_field(code, before).unwrap_or_else(|| panic!("{whole}: of which kind?")),
            };
            found.push((whole, kind));
        }
    }
    found
}

/// The kind of the field that a registration fills, `connections: metrics.register(`, from the field's declaration.
fn kind_of_field(code: &str, before: &str) -> Option<Kind> {
    let line = before.rsplit('\n').next()?;
    let (field, _) = line.trim_start().split_once(": ")?;
    let declaration = code
        .lines()
        .map(|line| {
            line.trim()
                .trim_start_matches("pub(crate) ")
                .trim_start_matches("pub ")
        })
        .find(|line| line.starts_with(&format!("{field}: ")) && line.ends_with(',') && !line.contains('('))
        .or_else(|| {
            code.lines()
                .find(|line| line.contains(&format!("{field}: Family<")))
        })?;
    [
        ("Histogram", Kind::Histogram),
        ("Gauge", Kind::Gauge),
        ("Counter", Kind::Counter),
    ]
    .into_iter()
    .find(|(name, _)| declaration.contains(name))
    .map(|(_, kind)| kind)
}

/// Rust sources of the product.
fn sources() -> Vec<PathBuf> {
    let mut files = Vec::new();
    for folder in ["broker", "cloud", "connectors", "libs", "operator", "sim", "src"] {
        walk(&shell::root().join(folder), &mut files);
    }
    files
}

fn walk(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy();
        if path.is_dir() && name != "tests" && name != "target" {
            walk(&path, files);
        } else if name.ends_with(".rs") && name != "tests.rs" {
            files.push(path);
        }
    }
}

// === What is asked for

/// Names of ours in an expression.
fn names(expression: &str) -> BTreeSet<String> {
    expression
        .split(|end: char| !end.is_ascii_alphanumeric() && end != '_')
        .filter(|word| word.starts_with("foreshore_"))
        .map(str::to_owned)
        .collect()
}

/// Why a name gives no data; nothing when it does.
fn fault(name: &str, registered: &BTreeMap<String, Kind>) -> Option<String> {
    let series = |kind: Kind| match kind {
        Kind::Counter => &["_total"][..],
        Kind::Gauge => &[""],
        Kind::Histogram => &["_bucket", "_sum", "_count"],
    };
    let exists = registered.iter().any(|(metric, kind)| {
        series(*kind)
            .iter()
            .any(|suffix| name == format!("{metric}{suffix}"))
    });
    if exists {
        return None;
    }
    let near = registered
        .iter()
        .find(|(metric, _)| name.starts_with(metric.as_str()));
    Some(match near {
        Some((metric, kind)) => format!("{name}: {metric} is a {kind:?}"),
        None => format!("{name}: nothing registers it"),
    })
}

struct Alert {
    name: String,
    rule: Value,
}

fn alerts() -> Vec<Alert> {
    let text = fs::read_to_string(shell::root().join("deploy/alerts/foreshore.yaml")).unwrap();
    let rules: Value = serde_yaml::from_str(&text).unwrap();
    let groups = rules["groups"].as_array().unwrap();
    groups
        .iter()
        .flat_map(|group| group["rules"].as_array().unwrap())
        .map(|rule| Alert {
            name: rule["alert"].as_str().unwrap().to_owned(),
            rule: rule.clone(),
        })
        .collect()
}

/// Expressions of a dashboard's panels and variables, with where they are.
fn expressions(dashboard: &Value) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().into_iter().flatten() {
            found.push((
                panel["title"].to_string(),
                target["expr"].as_str().unwrap().to_owned(),
            ));
        }
    }
    for variable in dashboard["templating"]["list"].as_array().unwrap() {
        if let Some(query) = variable["query"]["query"].as_str() {
            found.push((variable["name"].to_string(), query.to_owned()));
        }
    }
    found
}

fn dashboards() -> Vec<(PathBuf, Value)> {
    let folder = shell::root().join("deploy/dashboards");
    fs::read_dir(folder)
        .unwrap()
        .map(|entry| {
            let path = entry.unwrap().path();
            let dashboard = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
            (path, dashboard)
        })
        .collect()
}

/// Short names of our kinds.
fn short_names() -> BTreeSet<String> {
    fs::read_dir(shell::root().join("crds/manifests"))
        .unwrap()
        .flat_map(|entry| {
            let text = fs::read_to_string(entry.unwrap().path()).unwrap();
            let definition: Value = serde_yaml::from_str(&text).unwrap();
            definition["spec"]["names"]["shortNames"]
                .as_array()
                .unwrap()
                .clone()
        })
        .map(|name| name.as_str().unwrap().to_owned())
        .collect()
}

// === Tests

#[test]
fn registrations_are_read_with_their_kind_and_unit() {
    let code = r#"
        struct M {
            connections: Gauge,
            values: Family<Labels, Counter>,
            age: Family<Labels, Histogram>,
            bytes: Family<Labels, Counter>,
        }
        let counter = |name: &str| metrics.register(name, "", Counter::default());
        Self {
            connections: metrics.register(
                "broker_connections", "Clients", Gauge::default()),
            values: family("connector_values", "Values"),
            age: metrics.register_with_unit("cloud_age", "Age", Unit::Seconds, Family::default()),
            bytes: metrics.register_with_unit("payload", "Payload", Unit::Bytes, Family::default()),
            sent: counter("broker_sent", "Sent"),
        }
        self.waker.register(waker);
        encoder.encode_descriptor("task_panics", "Tasks", None, kind)
    "#;
    let found: BTreeMap<String, Kind> = registrations(code).into_iter().collect();
    let expected = [
        ("foreshore_broker_connections", Kind::Gauge),
        ("foreshore_broker_sent", Kind::Counter),
        ("foreshore_cloud_age_seconds", Kind::Histogram),
        ("foreshore_connector_values", Kind::Counter),
        ("foreshore_payload_bytes", Kind::Counter),
        ("foreshore_task_panics", Kind::Counter),
    ];
    assert_eq!(found, expected.map(|(name, kind)| (name.to_owned(), kind)).into());
    assert_eq!(fault("foreshore_broker_sent_total", &found), None);
    assert_eq!(fault("foreshore_cloud_age_seconds_bucket", &found), None);
    assert!(
        fault("foreshore_broker_sent", &found)
            .unwrap()
            .contains("is a Counter")
    );
    assert!(
        fault("foreshore_sent_total", &found)
            .unwrap()
            .contains("nothing registers")
    );
}

#[test]
fn alerts_and_dashboards_name_metrics_that_exist() {
    let registered = registered();
    assert!(registered.len() > 30, "{registered:?}");
    let mut asked: Vec<(String, String)> = alerts()
        .into_iter()
        .map(|alert| (alert.name, alert.rule["expr"].as_str().unwrap().to_owned()))
        .collect();
    for (_, dashboard) in dashboards() {
        asked.extend(expressions(&dashboard));
    }
    let faults: Vec<String> = asked
        .iter()
        .flat_map(|(place, expression)| {
            assert!(
                expression.contains("foreshore_") || expression.starts_with(NOT_OURS),
                "{place}: {expression}"
            );
            names(expression)
                .into_iter()
                .filter_map(|name| fault(&name, &registered))
                .map(move |fault| format!("{place}: {fault}"))
        })
        .collect();
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn every_alert_says_what_it_means_and_has_a_runbook() {
    let mut expected = BTreeSet::new();
    for alert in alerts() {
        let Alert { name, rule } = alert;
        assert!(expected.insert(name.clone()), "{name} is there twice");
        let severity = rule["labels"]["severity"].as_str().unwrap();
        assert!(["critical", "warning"].contains(&severity), "{name}: {severity}");
        for annotation in ["summary", "description"] {
            assert!(
                rule["annotations"][annotation]
                    .as_str()
                    .is_some_and(|text| !text.is_empty()),
                "{name}"
            );
        }
        let url = rule["annotations"]["runbook_url"].as_str().unwrap();
        assert!(
            url.ends_with(&format!("/docs/runbooks/{name}.md")),
            "{name}: {url}"
        );
    }
    let runbooks: BTreeSet<String> = fs::read_dir(shell::root().join("docs/runbooks"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.file_name().is_none_or(|name| name != "README.md"))
        .map(|path| path.file_stem().unwrap().to_string_lossy().into_owned())
        .collect();
    assert_eq!(runbooks, expected);
}

#[test]
fn every_runbook_leads_from_meaning_to_remedy() {
    let kinds = short_names();
    for alert in alerts() {
        let path = shell::root().join(format!("docs/runbooks/{}.md", alert.name));
        let text = fs::read_to_string(&path).unwrap();
        let headings: Vec<&str> = text.lines().filter(|line| line.starts_with('#')).collect();
        let title = format!("# {}", alert.name);
        assert_eq!(
            headings,
            [&title, "## Meaning", "## Impact", "## Look at", "## Remedy"],
            "{}",
            path.display()
        );
        assert!(text.contains("```"), "{} has no command", path.display());
        for command in text.lines().filter(|line| line.starts_with("kubectl ")) {
            // With a selector kubectl shows the last ten lines, unless it is told otherwise.
            let selected = command.contains(" logs ") && command.contains(" -l ");
            assert!(
                !selected || command.contains(" --tail="),
                "{}: {command}",
                path.display()
            );
            for kind in command.split(' ').filter(|word| word.starts_with("fs")) {
                assert!(kinds.contains(kind), "{}: {command}", path.display());
            }
        }
    }
}

#[test]
fn dashboards_can_be_told_apart_and_laid_out() {
    let mut seen = BTreeSet::new();
    for (path, dashboard) in dashboards() {
        let uid = dashboard["uid"].as_str().unwrap();
        assert_eq!(path.file_stem().unwrap().to_string_lossy(), uid);
        assert!(seen.insert(dashboard["title"].to_string()));
        let panels = dashboard["panels"].as_array().unwrap();
        let ids: BTreeSet<u64> = panels.iter().map(|panel| panel["id"].as_u64().unwrap()).collect();
        assert_eq!(ids.len(), panels.len(), "{uid}: an id is there twice");
        let mut squares = BTreeSet::new();
        for panel in panels {
            let at = |field: &str| panel["gridPos"][field].as_u64().unwrap();
            for (x, y) in
                (at("x")..at("x") + at("w")).flat_map(|x| (at("y")..at("y") + at("h")).map(move |y| (x, y)))
            {
                assert!(
                    x < 24 && squares.insert((x, y)),
                    "{uid}: {} lies over another",
                    panel["title"]
                );
            }
        }
    }
}
