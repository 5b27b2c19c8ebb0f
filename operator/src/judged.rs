//! Manifests judged by themselves: structure, rules, expressions. What they refer to is looked at later.

use std::{collections::BTreeMap, sync::Arc};

use base64::{Engine, engine::general_purpose::STANDARD};
use foreshore_control::plan::SecretValue;
use foreshore_crds::{
    conditions::reasons,
    judge::{self, ProblemKind, Resource},
    v1alpha1::{
        AssetSpec, BrokerPolicySpec, BrokerSpec, CloudSpec, ConnectorSpec, DataflowEndpointSpec,
        DataflowSpec, DeviceSpec, SimulatorSpec,
    },
};
use serde_json::Value;

use crate::{
    object::{Kind, ObjectKey},
    problem::{Problem, quote},
};

/// Most bytes of a Secret or ConfigMap, as in Kubernetes.
const MAX_DATA: usize = 1 << 20;

/// An object that is right by itself, in the type of its kind.
#[derive(Clone, Debug)]
pub enum Object {
    /// A ConfigMap; nothing of ours refers to one yet.
    ConfigMap,
    /// A Secret.
    Secret(Arc<Secret>),
    /// A Broker.
    Broker(Arc<BrokerSpec>),
    /// A BrokerPolicy.
    BrokerPolicy(Arc<BrokerPolicySpec>),
    /// A Connector.
    Connector(Arc<ConnectorSpec>),
    /// A Simulator.
    Simulator(Arc<SimulatorSpec>),
    /// A Cloud.
    Cloud(Arc<CloudSpec>),
    /// A DataflowEndpoint.
    DataflowEndpoint(Arc<DataflowEndpointSpec>),
    /// A Device.
    Device(Arc<DeviceSpec>),
    /// An Asset.
    Asset(Arc<AssetSpec>),
    /// A Dataflow.
    Dataflow(Arc<DataflowSpec>),
}

/// Content of a Secret. Its `Debug` output does not show the values.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Secret {
    /// Values by key.
    pub data: BTreeMap<String, SecretValue>,
}

/// Judges a manifest. `earlier` is the accepted one that it replaces, for rules about changes.
///
/// # Errors
/// Everything that is wrong, without places in files.
pub fn judge(key: &ObjectKey, manifest: &Value, earlier: Option<&Value>) -> Result<Object, Vec<Problem>> {
    match key.kind {
        Kind::Secret => secret(manifest).map(|secret| Object::Secret(Arc::new(secret))),
        Kind::ConfigMap => config_map(manifest).map(|()| Object::ConfigMap),
        Kind::Broker
        | Kind::BrokerPolicy
        | Kind::Connector
        | Kind::Simulator
        | Kind::Cloud
        | Kind::DataflowEndpoint
        | Kind::Device
        | Kind::Asset
        | Kind::Dataflow => match judge::judge_update(manifest, earlier) {
            Ok(accepted) => Ok(typed(accepted.resource)),
            Err(problems) => Err(problems.into_iter().map(problem).collect()),
        },
    }
    .map_err(|problems| {
        problems
            .into_iter()
            .map(|problem| problem.of(key.clone()))
            .collect()
    })
}

fn typed(resource: Resource) -> Object {
    match resource {
        Resource::Device(device) => Object::Device(Arc::new(device.spec)),
        Resource::Asset(asset) => Object::Asset(Arc::new(asset.spec)),
        Resource::Connector(connector) => Object::Connector(Arc::new(connector.spec)),
        Resource::Broker(broker) => Object::Broker(Arc::new(broker.spec)),
        Resource::BrokerPolicy(policy) => Object::BrokerPolicy(Arc::new(policy.spec)),
        Resource::Dataflow(dataflow) => Object::Dataflow(Arc::new(dataflow.spec)),
        Resource::DataflowEndpoint(endpoint) => Object::DataflowEndpoint(Arc::new(endpoint.spec)),
        Resource::Simulator(simulator) => Object::Simulator(Arc::new(simulator.spec)),
        Resource::Cloud(cloud) => Object::Cloud(Arc::new(cloud.spec)),
    }
}

fn problem(judged: judge::Problem) -> Problem {
    let reason = match judged.kind {
        ProblemKind::Expression => reasons::INVALID_EXPRESSION,
        ProblemKind::TooLarge => reasons::TOO_LARGE,
        ProblemKind::UnknownKind
        | ProblemKind::UnknownField
        | ProblemKind::Required
        | ProblemKind::Type
        | ProblemKind::NotSupported
        | ProblemKind::TooMany
        | ProblemKind::Invalid
        | ProblemKind::Duplicate
        | ProblemKind::Metadata
        | ProblemKind::Rule => reasons::INVALID,
    };
    let mut problem = Problem::new(reason, "")
        .found(judged.found)
        .allowed(judged.allowed)
        .nearest(judged.nearest.as_deref());
    let field = judged.path.to_string();
    if !field.is_empty() {
        problem.field = Some(field);
    }
    problem
}

fn invalid(field: impl Into<String>, message: &str) -> Problem {
    Problem::new(reasons::INVALID, message).field(field)
}

const SECRET_MEMBERS: [&str; 7] = [
    "apiVersion",
    "kind",
    "metadata",
    "data",
    "stringData",
    "type",
    "immutable",
];
const CONFIG_MAP_MEMBERS: [&str; 6] = [
    "apiVersion",
    "kind",
    "metadata",
    "data",
    "binaryData",
    "immutable",
];

/// Reads `v1 Secret` as the API server does: `stringData` wins over `data`.
fn secret(manifest: &Value) -> Result<Secret, Vec<Problem>> {
    let mut problems = unknown_members(manifest, &SECRET_MEMBERS);
    let mut data = BTreeMap::new();
    for (key, text) in texts(manifest, "data", &mut problems) {
        match STANDARD.decode(text.split_ascii_whitespace().collect::<String>()) {
            Ok(value) => drop(data.insert(key.to_owned(), SecretValue(value))),
            // The value itself is a secret: not even a damaged one is quoted.
            Err(error) => problems.push(
                invalid(format!("data[{key}]"), "not base64")
                    .found(error.to_string())
                    .allowed("base64, or plain text under stringData"),
            ),
        }
    }
    for (key, text) in texts(manifest, "stringData", &mut problems) {
        data.insert(key.to_owned(), SecretValue(text.as_bytes().to_vec()));
    }
    check_size(data.values().map(|value| value.0.len()).sum(), &mut problems);
    if problems.is_empty() {
        Ok(Secret { data })
    } else {
        Err(problems)
    }
}

fn config_map(manifest: &Value) -> Result<(), Vec<Problem>> {
    let mut problems = unknown_members(manifest, &CONFIG_MAP_MEMBERS);
    let plain = texts(manifest, "data", &mut problems);
    let binary = texts(manifest, "binaryData", &mut problems);
    check_size(
        plain.iter().chain(&binary).map(|(_, text)| text.len()).sum(),
        &mut problems,
    );
    if problems.is_empty() {
        Ok(())
    } else {
        Err(problems)
    }
}

fn check_size(size: usize, problems: &mut Vec<Problem>) {
    if size > MAX_DATA {
        let problem = Problem::new(reasons::TOO_LARGE, "").field("data");
        problems.push(
            problem
                .found(format!("{size} bytes"))
                .allowed(format!("{MAX_DATA} bytes")),
        );
    }
}

fn unknown_members(manifest: &Value, known: &[&str]) -> Vec<Problem> {
    let members = manifest.as_object().into_iter().flatten();
    members
        .filter(|(member, _)| !known.contains(&member.as_str()))
        .map(|(member, _)| {
            invalid(quote(member), "")
                .found(format!("the unknown field {}", quote(member)))
                .allowed(known.join(", "))
                .nearest(foreshore_record::nearest(member, known.iter().copied()))
        })
        .collect()
}

/// The members of a map of texts; what is none is a problem.
fn texts<'a>(manifest: &'a Value, field: &str, problems: &mut Vec<Problem>) -> Vec<(&'a str, &'a str)> {
    let members = match manifest.get(field) {
        None | Some(Value::Null) => return Vec::new(),
        Some(Value::Object(members)) => members,
        Some(_) => {
            problems.push(invalid(field, "a value of the wrong type").allowed("an object of texts"));
            return Vec::new();
        }
    };
    let mut texts = Vec::with_capacity(members.len());
    for (key, value) in members {
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
        if key.is_empty() || key.len() > 253 || !key.bytes().all(fits) {
            let allowed = "letters, digits, '-', '_' and '.', at most 253";
            problems.push(invalid(field, "not a key").found(key).allowed(allowed));
        }
        match value {
            Value::String(text) => texts.push((key.as_str(), text.as_str())),
            Value::Null => texts.push((key.as_str(), "")),
            _ => problems.push(
                invalid(format!("{field}[{key}]"), "a value of the wrong type")
                    .allowed("text, in quotes where it looks like a number or a boolean"),
            ),
        }
    }
    texts
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn judged(kind: Kind, manifest: &Value) -> Result<Object, Vec<String>> {
        judge(&ObjectKey::new(kind, "plant", "a"), manifest, None)
            .map_err(|problems| problems.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn plain_text_wins_over_base64() {
        let manifest = json!({"data": {"a": "eA==", "b": "eQ=="}, "stringData": {"b": "z"}});
        let Ok(Object::Secret(secret)) = judged(Kind::Secret, &manifest) else {
            panic!("refused")
        };
        let texts: Vec<_> = secret
            .data
            .iter()
            .map(|(key, value)| (key.as_str(), value.as_text().unwrap()))
            .collect();
        assert_eq!(texts, [("a", "x"), ("b", "z")]);
        assert!(!format!("{secret:?}").contains('z'));
    }

    #[test]
    fn faults_of_secrets_name_the_field_and_never_the_value() {
        let manifest = json!({"data": {"a": "hunter2!"}, "stringdata": {"b": "x"}, "stringData": {"c d": 7}});
        let problems = judged(Kind::Secret, &manifest).unwrap_err().join("\n");
        for part in [
            "Secret plant/a: data[a]: not base64",
            "did you mean stringData?",
            "stringData: not a key",
        ] {
            assert!(problems.contains(part), "{problems}");
        }
        assert!(!problems.contains("hunter2"), "{problems}");
        let large = json!({"stringData": {"a": "x".repeat(MAX_DATA + 1)}});
        assert!(judged(Kind::Secret, &large).unwrap_err()[0].contains("1048577 bytes"));
    }

    #[test]
    fn config_maps_are_judged_too() {
        assert!(judged(Kind::ConfigMap, &json!({"data": {"a": "x"}})).is_ok());
        assert!(judged(Kind::ConfigMap, &json!({"data": {"a": 7}})).is_err());
    }

    #[test]
    fn our_kinds_are_judged_by_their_definitions() {
        let head = |spec: Value| json!({"apiVersion": "foreshore.dev/v1alpha1", "kind": "Device", "metadata": {"name": "a"}, "spec": spec});
        let right = head(json!({"address": "opc.tcp://plc:4840", "opcua": {}}));
        assert!(matches!(judged(Kind::Device, &right), Ok(Object::Device(_))));
        let wrong = head(json!({"address": "opc.tcp://plc:4840", "opcua": {}, "simulatorref": {}}));
        let problems = judged(Kind::Device, &wrong).unwrap_err();
        assert!(
            problems[0].starts_with("Device plant/a: spec.simulatorref: found the unknown field"),
            "{problems:?}"
        );
        assert!(
            problems[0].ends_with("did you mean simulatorRef?"),
            "{problems:?}"
        );
    }
}
