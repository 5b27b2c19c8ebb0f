//! What GitOps tools make of our objects: one table of cases, judged by Argo CD's Lua in an interpreter and by Flux's
//! expressions in CEL.

#![cfg(test)]

use std::{
    fmt::Write as _,
    fs,
    io::Write as _,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use serde_json::Value;

use crate::shell;

/// A line of `tests/gitops/health.yaml`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    about: String,
    object: Value,
    health: String,
    /// A part of what is said.
    message: Option<String>,
    #[serde(default)]
    argocd_only: bool,
}

fn cases() -> Vec<Case> {
    serde_yaml::from_str(&read("tests/gitops/health.yaml")).unwrap()
}

fn read(path: &str) -> String {
    fs::read_to_string(shell::root().join(path)).unwrap()
}

// === Argo CD

#[test]
fn argo_cd_judges_every_case() {
    let check = read("deploy/argocd/health.lua");
    for case in cases() {
        let program = format!(
            "obj = {}\nlocal function check()\n{check}\nend\nlocal found = check()\n\
             io.write(found.status, '\\n', found.message or '')\n",
            lua(&case.object)
        );
        let said = interpret(&program).unwrap();
        let (health, message) = said.split_once('\n').unwrap();
        assert_eq!(health, case.health, "{}: {message}", case.about);
        let expected = case.message.unwrap_or_default();
        assert!(message.contains(&expected), "{}: {message}", case.about);
    }
}

/// Runs a program as Argo CD would, without the libraries that it withholds.
fn interpret(program: &str) -> Result<String> {
    let mut lua = Command::new("lua5.4")
        .args(["-e", "os, debug, package, require, dofile, loadfile = nil", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("lua5.4 did not start; `cargo xtask test` installs it")?;
    lua.stdin
        .take()
        .context("lua5.4 has no input")?
        .write_all(program.as_bytes())?;
    let output = lua.wait_with_output()?;
    if !output.status.success() {
        bail!("{}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(String::from_utf8(output.stdout)?)
}

/// A value as Lua writes it.
fn lua(value: &Value) -> String {
    match value {
        Value::Null => "nil".to_owned(),
        Value::Array(items) => format!("{{{}}}", items.iter().map(lua).collect::<Vec<_>>().join(",")),
        Value::Object(members) => {
            let mut table = "{".to_owned();
            for (name, member) in members {
                write!(table, "[{name:?}]={},", lua(member)).unwrap();
            }
            table + "}"
        }
        // Numbers, truths and texts are written as in JSON.
        plain => plain.to_string(),
    }
}

// === Flux

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Expressions {
    api_version: String,
    kind: String,
    in_progress: String,
    failed: String,
    current: String,
}

impl Expressions {
    /// As kustomize-controller does: the first that holds, in this order. An expression that fails is no verdict, and
    /// without one Flux waits on.
    fn judge(&self, object: &Value) -> &'static str {
        for (expression, health) in [
            (&self.in_progress, "Progressing"),
            (&self.failed, "Degraded"),
            (&self.current, "Healthy"),
        ] {
            match evaluate(expression, object) {
                Ok(true) => return health,
                Ok(false) => {}
                Err(_) => return "Progressing",
            }
        }
        "Progressing"
    }
}

fn evaluate(expression: &str, object: &Value) -> Result<bool> {
    let program =
        cel::Program::compile(expression).map_err(|error| anyhow::anyhow!("{expression}: {error}"))?;
    let mut context = cel::Context::default();
    for (name, member) in object.as_object().context("an object")? {
        context
            .add_variable(name.as_str(), member)
            .map_err(|error| anyhow::anyhow!("{name}: {error}"))?;
    }
    match program.execute(&context)? {
        cel::Value::Bool(truth) => Ok(truth),
        other => bail!("{expression} gives {other:?}"),
    }
}

/// The expressions of the one Kustomization.
fn expressions() -> Vec<Expressions> {
    let text = read("deploy/flux/plant.yaml");
    serde_yaml::Deserializer::from_str(&text)
        .map(|document| Value::deserialize(document).unwrap())
        .find_map(|document| document.pointer("/spec/healthCheckExprs").cloned())
        .map(|expressions| serde_json::from_value(expressions).unwrap())
        .unwrap()
}

#[test]
fn flux_judges_every_case() {
    for expressions in expressions() {
        assert!(cel::Program::compile(&expressions.in_progress).is_ok());
        for case in cases().into_iter().filter(|case| !case.argocd_only) {
            let found = expressions.judge(&case.object);
            assert_eq!(found, case.health, "{}: {}", expressions.kind, case.about);
        }
    }
}

#[test]
fn flux_knows_every_kind() {
    let mut known: Vec<String> = expressions().into_iter().map(|known| known.kind).collect();
    known.sort();
    let mut kinds: Vec<String> = fs::read_dir(shell::root().join("crds/manifests"))
        .unwrap()
        .map(|entry| {
            let text = fs::read_to_string(entry.unwrap().path()).unwrap();
            let definition: Value = serde_yaml::from_str(&text).unwrap();
            definition
                .pointer("/spec/names/kind")
                .unwrap()
                .as_str()
                .unwrap()
                .to_owned()
        })
        .collect();
    kinds.sort();
    assert_eq!(known, kinds);
    for expressions in expressions() {
        assert_eq!(expressions.api_version, "foreshore.dev/v1alpha1");
    }
}

// === Both

/// Whole objects of files that are applied as they are.
fn objects() -> Vec<(String, Value)> {
    let mut objects = Vec::new();
    for path in [
        "deploy/argocd/application.yaml",
        "deploy/flux/helmrelease.yaml",
        "deploy/flux/ocirepository.yaml",
        "deploy/flux/plant.yaml",
    ] {
        for document in serde_yaml::Deserializer::from_str(&read(path)) {
            objects.push((path.to_owned(), Value::deserialize(document).unwrap()));
        }
    }
    objects
}

#[test]
fn objects_name_the_version_and_each_other() {
    let version = env!("CARGO_PKG_VERSION");
    for chart in ["charts/foreshore", "charts/foreshore-crds"] {
        let chart: Value = serde_yaml::from_str(&read(&format!("{chart}/Chart.yaml"))).unwrap();
        assert_eq!(
            (&chart["version"], &chart["appVersion"]),
            (&version.into(), &version.into())
        );
    }
    let objects = objects();
    let exists = |kind: &str, name: &Value| {
        objects
            .iter()
            .any(|(_, object)| object["kind"] == kind && object["metadata"]["name"] == *name)
    };
    let mut pinned = 0;
    for (path, object) in &objects {
        for field in ["apiVersion", "kind"] {
            assert!(object[field].is_string(), "{path}: {field}");
        }
        assert!(object["metadata"]["name"].is_string(), "{path}");
        let spec = &object["spec"];
        for reference in ["chartRef", "sourceRef"] {
            if let Some(reference) = spec.get(reference) {
                let kind = reference["kind"].as_str().unwrap();
                assert!(exists(kind, &reference["name"]), "{path}: {reference}");
            }
        }
        for dependency in spec["dependsOn"].as_array().into_iter().flatten() {
            assert!(
                exists(object["kind"].as_str().unwrap(), &dependency["name"]),
                "{path}: {dependency}"
            );
        }
        if let Some(folder) = spec.get("path").or_else(|| spec.pointer("/source/path")) {
            let folder = shell::root().join(folder.as_str().unwrap());
            assert!(
                folder.join("kustomization.yaml").is_file(),
                "{path}: {}",
                folder.display()
            );
        }
        let sources = spec["sources"]
            .as_array()
            .into_iter()
            .flatten()
            .chain(spec.get("source"));
        let named = sources
            .filter_map(|source| source.get("targetRevision"))
            .chain(spec.pointer("/ref/tag"));
        for named in named {
            let named = named.as_str().unwrap();
            assert_eq!(named.trim_start_matches('v'), version, "{path}");
            pinned += 1;
        }
    }
    assert_eq!(pinned, 6, "two charts and a plant, for each tool");
}
