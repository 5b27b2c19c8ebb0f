//! Helm: renders the charts with chosen values.

use std::{path::Path, process::Command};

use anyhow::{Context, Result, bail};
use serde::Deserialize as _;
use serde_json::Value;

use super::{DEFINITIONS, OPERATOR};
use crate::{generate::Generated, shell};

/// The oldest Kubernetes that the charts allow. Given to Helm, since one that was built without its release's settings
/// believes that it renders for 1.20.
const KUBERNETES: &str = "1.30.0";
const RELEASE: &str = "foreshore";
const NAMESPACE: &str = "foreshore-system";

/// Values that the chart of the operator is rendered with.
#[derive(Clone, Copy, Debug)]
pub(super) struct Case {
    pub(super) name: &'static str,
    /// A file below the chart's folder.
    values: Option<&'static str>,
    set: &'static [&'static str],
    /// Whether what is rendered is committed.
    snapshot: bool,
}

/// Every case that is rendered and held against the rules.
pub(super) const CASES: &[Case] = &[
    Case {
        name: "default",
        values: None,
        set: &[],
        snapshot: true,
    },
    Case {
        name: "everything",
        values: Some("tests/everything.yaml"),
        set: &[],
        snapshot: true,
    },
    Case {
        name: "watch-namespaces",
        values: None,
        set: &["operator.watchNamespaces={bottling,packing}"],
        snapshot: true,
    },
    // Alerts and dashboards are files of their own, which a snapshot would repeat.
    Case {
        name: "alerts-and-dashboards",
        values: Some("tests/everything.yaml"),
        set: &[
            "observability.prometheusRule.enabled=true",
            "observability.dashboards.enabled=true",
        ],
        snapshot: false,
    },
];

impl Case {
    /// What the chart of the operator renders to.
    pub(super) fn render(self, helm: &Path) -> Result<String> {
        let values = self
            .values
            .map(|file| shell::root().join(OPERATOR).join(file).display().to_string());
        let mut arguments = Vec::new();
        if let Some(values) = &values {
            arguments.extend(["--values", values]);
        }
        for set in self.set {
            arguments.extend(["--set", set]);
        }
        template(helm, OPERATOR, &arguments).with_context(|| format!("case {}", self.name))
    }
}

/// Snapshots and the Kustomize base.
pub(super) fn generated(helm: &Path) -> Result<Vec<Generated>> {
    let mut files = Vec::new();
    for case in CASES {
        let text = case.render(helm)?;
        if case.snapshot {
            files.push(Generated {
                path: shell::root()
                    .join(OPERATOR)
                    .join(format!("tests/snapshots/{}.yaml", case.name)),
                text: text.clone(),
            });
        }
        if case.name == "default" {
            files.push(Generated {
                path: shell::root().join("deploy/kustomize/base/operator.yaml"),
                text: without_helm(&text),
            });
        }
    }
    Ok(files)
}

/// Leaves out what would say that Helm manages these objects.
fn without_helm(text: &str) -> String {
    let mut own = "# Rendered from charts/foreshore by `cargo xtask generate`. Do not edit.\n".to_owned();
    for line in text.lines() {
        let trimmed = line.trim_start();
        if !trimmed.starts_with("helm.sh/chart:")
            && !trimmed.starts_with("# Source:")
            && trimmed != "app.kubernetes.io/managed-by: Helm"
        {
            own.push_str(line);
            own.push('\n');
        }
    }
    own
}

/// Helm's own judgement of both charts.
pub(super) fn lint(helm: &Path) -> Result<()> {
    for chart in [DEFINITIONS, OPERATOR] {
        succeed(command(
            helm,
            &["lint", "--strict", "--quiet", "--kube-version", KUBERNETES, chart],
        ))?;
    }
    Ok(())
}

/// What a chart renders to.
pub(super) fn template(helm: &Path, chart: &str, arguments: &[&str]) -> Result<String> {
    succeed(templating(helm, chart, arguments))
}

/// What Helm says when it refuses to render.
pub(super) fn refusal(helm: &Path, chart: &str, arguments: &[&str]) -> Result<String> {
    let mut command = templating(helm, chart, arguments);
    let output = command
        .output()
        .with_context(|| format!("{command:?} did not start"))?;
    if output.status.success() {
        bail!("{command:?} was not refused");
    }
    Ok(String::from_utf8_lossy(&output.stderr).into_owned())
}

fn templating(helm: &Path, chart: &str, arguments: &[&str]) -> Command {
    let mut command = command(
        helm,
        &[
            "template",
            RELEASE,
            chart,
            "--namespace",
            NAMESPACE,
            "--kube-version",
            KUBERNETES,
        ],
    );
    command.args(arguments);
    command
}

fn command(helm: &Path, arguments: &[&str]) -> Command {
    shell::command(&helm.to_string_lossy(), arguments)
}

/// Runs a command; what it says is shown only when it fails.
pub(crate) fn succeed(mut command: Command) -> Result<String> {
    let output = command
        .output()
        .with_context(|| format!("{command:?} did not start"))?;
    if !output.status.success() {
        bail!(
            "{command:?} ended with {}\n{}{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    String::from_utf8(output.stdout).with_context(|| format!("{command:?} printed no UTF-8"))
}

/// The documents of a YAML text, empty ones left out.
pub(super) fn documents(text: &str) -> Result<Vec<Value>> {
    let mut documents = Vec::new();
    for document in serde_yaml::Deserializer::from_str(text) {
        let document = Value::deserialize(document).context("rendered text is no YAML")?;
        if !document.is_null() {
            documents.push(document);
        }
    }
    Ok(documents)
}
