//! A running `foreshore up`, asked from outside.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::{
    Plan,
    program::{Program, get},
};

/// Token of the cloud endpoint's API, in the example's manifests and in ours.
pub(crate) const API_TOKEN: &str = "example-api-token-0123456789abcdef";

/// A running `foreshore up`.
pub(crate) struct Plant {
    pub(crate) program: Program,
    foreshore: PathBuf,
    data: PathBuf,
    /// Where the cloud endpoint answers over HTTP.
    http: String,
}

/// As much of a path of the ledger as is needed.
#[derive(Clone, Debug, serde::Deserialize)]
pub(crate) struct Waiting {
    pub(crate) waiting: u64,
}

impl Plant {
    /// Starts manifests whose Cloud answers at that port.
    pub(crate) fn start(plan: &Plan, manifests: &Path, folder: &Path, http: u16) -> Result<Self> {
        let data = folder.join("data");
        let mut command = Command::new(&plan.foreshore);
        command
            .arg("up")
            .arg(manifests)
            .args([
                "--json",
                "--log",
                "warn,opcua_server=off,opcua_client=off,opcua_core=off,opcua_crypto=off,opcua_types=off",
                "--data",
            ])
            .arg(&data)
            .stdout(Stdio::null());
        Ok(Self {
            program: Program::start(&mut command, &folder.join("up"))?,
            foreshore: plan.foreshore.clone(),
            data,
            http: format!("127.0.0.1:{http}"),
        })
    }

    /// Everything that `foreshore status -o json` tells; null before it answers.
    pub(crate) fn status(&self) -> Value {
        status(&self.foreshore, &self.data)
    }

    /// Waits until every object is ready and healthy.
    pub(crate) fn wait_until_healthy(&mut self) -> Result<()> {
        let mut last = Value::Null;
        let (foreshore, data) = (self.foreshore.clone(), self.data.clone());
        let waited = self.program.wait_until("healthy", || {
            last = status(&foreshore, &data);
            let summary = &last["summary"];
            summary["objects"].as_u64().is_some_and(|objects| objects > 0)
                && summary["ready"] == summary["objects"]
                && summary["unhealthy"] == 0
        });
        waited.with_context(|| last["objects"].to_string())
    }

    /// What a role tells under `/metrics`; roles whose name begins so.
    pub(crate) fn metrics(&self, role: &str) -> Result<String> {
        let status = self.status();
        let roles = status["observability"]
            .as_object()
            .context("no observability in the status")?;
        let address = roles.iter().find(|(name, _)| name.starts_with(role));
        let address = address.and_then(|(_, address)| address.as_str());
        get(
            address.with_context(|| format!("no role {role} in {roles:?}"))?,
            "/metrics",
            "",
        )
    }

    /// Records that wait on all paths.
    pub(crate) fn waiting(&self) -> Result<u64> {
        let paths: Vec<Waiting> = serde_json::from_value(self.status()["ledger"].clone())?;
        if paths.is_empty() {
            bail!("the ledger is empty");
        }
        Ok(paths.iter().map(|path| path.waiting).sum())
    }

    /// An answer of the cloud endpoint.
    pub(crate) fn api(&self, path: &str) -> Result<Value> {
        Ok(serde_json::from_str(&get(&self.http, path, API_TOKEN)?)?)
    }
}

fn status(foreshore: &Path, data: &Path) -> Value {
    let output = Command::new(foreshore)
        .args(["status", "-o", "json", "--data"])
        .arg(data)
        .output();
    output.map_or(Value::Null, |output| {
        serde_json::from_slice(&output.stdout).unwrap_or_default()
    })
}

/// Copies the example's manifests, with other texts in some places.
pub(crate) fn example(
    checkout: &Path,
    to: &Path,
    replace: &[(String, String)],
    without: &[&str],
) -> Result<()> {
    fs::create_dir_all(to)?;
    let mut unused: Vec<&str> = replace.iter().map(|(from, _)| from.as_str()).collect();
    for entry in fs::read_dir(checkout.join("deploy/examples/bottling-line"))? {
        let entry = entry?;
        if without.iter().any(|name| entry.file_name() == *name) {
            continue;
        }
        let mut text = fs::read_to_string(entry.path())?;
        for (from, by) in replace {
            if text.contains(from.as_str()) {
                unused.retain(|unused| unused != from);
                text = text.replace(from.as_str(), by);
            }
        }
        fs::write(to.join(entry.file_name()), text)?;
    }
    if !unused.is_empty() {
        bail!("the example has no {unused:?} any more");
    }
    Ok(())
}
