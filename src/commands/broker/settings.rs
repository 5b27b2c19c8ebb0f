//! What `foreshore broker` is told without an operator: fields of a Broker's spec, and BrokerPolicies, in the words of
//! the manifests and judged as these are.

use std::path::PathBuf;

use anyhow::{Context, Result, anyhow, bail};
use foreshore_crds::{
    API_VERSION,
    judge::{Problem, Resource, judge},
    v1alpha1::{BrokerPolicySpec, BrokerSpec},
};
use serde::Deserialize;
use serde_json::{Map, Value, json};

/// Members of the spec that the command line gives in another way, or that mean nothing without an operator.
const ELSEWHERE: [&str; 4] = ["listeners", "replicas", "storage", "pod"];

/// Settings of a broker.
#[derive(clap::Args)]
#[group(skip)]
pub(super) struct Options {
    /// Set a field of the Broker's spec, named and written as in a manifest: limits.maxKeepAlive=60s,
    /// limits.receiveMaximum=20, sysInterval=10s, refusals=Concealed.
    #[arg(long, value_name = "FIELD=VALUE")]
    set: Vec<String>,
    /// File of BrokerPolicies; without any, whoever is let in may do everything.
    #[arg(long, value_name = "FILE")]
    policy: Vec<PathBuf>,
}

/// What they come to.
pub(super) struct Settings {
    /// The Broker's spec.
    pub(super) spec: BrokerSpec,
    /// Its policies, by name.
    pub(super) policies: Vec<(String, BrokerPolicySpec)>,
}

impl Options {
    /// Reads and judges what was given.
    pub(super) fn read(&self) -> Result<Settings> {
        Ok(Settings {
            spec: spec(&self.set)?,
            policies: self.policies()?,
        })
    }

    fn policies(&self) -> Result<Vec<(String, BrokerPolicySpec)>> {
        let mut policies = Vec::new();
        for path in &self.policy {
            let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
            for document in serde_yaml::Deserializer::from_str(&text) {
                let document =
                    Value::deserialize(document).with_context(|| format!("read {}", path.display()))?;
                if !document.is_null() {
                    policies.push(policy(&document).with_context(|| path.display().to_string())?);
                }
            }
        }
        Ok(policies)
    }
}

fn spec(set: &[String]) -> Result<BrokerSpec> {
    if set.is_empty() {
        // The rules of all kinds are made ready only where there is something to judge.
        return Ok(BrokerSpec::default());
    }
    let mut spec = Value::Object(Map::new());
    for setting in set {
        put(&mut spec, setting).with_context(|| format!("--set {setting}"))?;
    }
    let document = json!({
        "apiVersion": API_VERSION, "kind": "Broker", "metadata": { "name": "broker" }, "spec": spec,
    });
    match judge(&document) {
        Ok(accepted) => match accepted.resource {
            Resource::Broker(broker) => Ok(broker.spec),
            other => bail!("--set makes a {}", other.kind()),
        },
        Err(problems) => Err(listed(&problems).context("--set")),
    }
}

/// Puts one setting in its place.
fn put(spec: &mut Value, setting: &str) -> Result<()> {
    let (field, value) = setting
        .split_once('=')
        .ok_or_else(|| anyhow!("found no '=', allowed FIELD=VALUE"))?;
    let first = field.split('.').next().unwrap_or_default();
    if ELSEWHERE.contains(&first) {
        bail!(
            "found {first}, allowed fields of a Broker's spec but {}",
            ELSEWHERE.join(", ")
        );
    }
    let mut place = spec;
    for name in field.split('.') {
        let members = place
            .as_object_mut()
            .ok_or_else(|| anyhow!("found {name:?} below a field that is set to a value"))?;
        place = members.entry(name).or_insert_with(|| Value::Object(Map::new()));
    }
    *place = serde_yaml::from_str(value).context("the value")?;
    Ok(())
}

fn policy(document: &Value) -> Result<(String, BrokerPolicySpec)> {
    match judge(document).map_err(|problems| listed(&problems))?.resource {
        Resource::BrokerPolicy(policy) => {
            let name = policy.metadata.name.clone().unwrap_or_default();
            Ok((name, policy.spec))
        }
        other => bail!("found a {}, allowed BrokerPolicy", other.kind()),
    }
}

fn listed(problems: &[Problem]) -> anyhow::Error {
    let lines: Vec<_> = problems.iter().map(ToString::to_string).collect();
    anyhow!(lines.join("; "))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn read(set: &[&str]) -> Result<BrokerSpec> {
        let set: Vec<_> = set.iter().map(|&setting| setting.to_owned()).collect();
        spec(&set)
    }

    #[test]
    fn fields_are_set_as_a_manifest_writes_them() {
        let spec = read(&[
            "limits.maxKeepAlive=60s",
            "limits.receiveMaximum=20",
            "refusals=Concealed",
        ])
        .unwrap();
        let limits = spec.limits.unwrap_or_default();
        assert_eq!(limits.effective_max_keep_alive().as_secs(), 60);
        assert_eq!(limits.effective_receive_maximum(), 20);
        assert_eq!(read(&[]).unwrap(), BrokerSpec::default());
    }

    #[test]
    fn wrong_settings_are_named() {
        for (setting, expected) in [
            ("limits.maxKeepAlive=1ms", "spec.limits.maxKeepAlive"),
            ("limits.receiveMaximun=20", "did you mean receiveMaximum?"),
            ("limits", "allowed FIELD=VALUE"),
            ("listeners=[]", "found listeners"),
            ("limits.receiveMaximum=[", "the value"),
        ] {
            let error = format!("{:#}", read(&[setting]).unwrap_err());
            assert!(error.contains(expected) && error.contains("--set"), "{error}");
        }
    }

    #[test]
    fn policies_are_read_from_files() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("policy.yaml");
        let manifest = "apiVersion: foreshore.dev/v1alpha1\nkind: BrokerPolicy\nmetadata: {name: plant}\nspec:\n  rules:\n  - {name: all, effect: Allow, actions: [Connect]}\n";
        std::fs::write(&path, manifest).unwrap();
        let options = |path: &Path| Options {
            set: Vec::new(),
            policy: vec![path.to_owned()],
        };
        let settings = options(&path).read().unwrap();
        assert_eq!(settings.policies[0].0, "plant");

        std::fs::write(&path, manifest.replace("Connect", "Conect")).unwrap();
        let error = format!("{:#}", options(&path).read().err().unwrap());
        assert!(
            error.contains("policy.yaml") && error.contains("actions"),
            "{error}"
        );
    }
}
