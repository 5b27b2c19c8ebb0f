//! The Secrets and ConfigMaps that manifests name.
//!
//! The operator may `get` Secrets and neither list nor watch them, so it has to know which. Every reference of the API
//! is a member whose name ends with `SecretRef` or `ConfigMapRef` and whose value has a `name`; a test holds the
//! definitions to that.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::object::{Kind, ObjectKey};

/// Adds what a manifest of a namespace refers to.
pub(super) fn collect(namespace: &str, manifest: &Value, found: &mut BTreeSet<ObjectKey>) {
    match manifest {
        Value::Object(members) => {
            for (member, value) in members {
                if let Some(kind) = kind_of(member)
                    && let Some(name) = value.get("name").and_then(Value::as_str)
                {
                    found.insert(ObjectKey::new(kind, namespace, name));
                }
                collect(namespace, value, found);
            }
        }
        Value::Array(items) => items.iter().for_each(|item| collect(namespace, item, found)),
        _ => {}
    }
}

fn kind_of(member: &str) -> Option<Kind> {
    let ends_with = |suffix: &str| {
        member.ends_with(suffix) || member.strip_suffix('s').is_some_and(|one| one.ends_with(suffix))
    };
    if ends_with("SecretRef") || ends_with("secretRef") {
        Some(Kind::Secret)
    } else if ends_with("ConfigMapRef") || ends_with("configMapRef") {
        Some(Kind::ConfigMap)
    } else {
        None
    }
}

/// Whether a Broker takes tokens of the cluster's service accounts.
pub(super) fn takes_service_accounts(broker: &Value) -> bool {
    let items = |value: &Value, member: &str| value[member].as_array().cloned().unwrap_or_default();
    items(&broker["spec"], "listeners").iter().any(|listener| {
        let ways = items(listener, "authentication");
        ways.iter().any(|way| !way["serviceAccount"].is_null())
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn references_are_found_at_any_depth() {
        let manifest = json!({"spec": {
            "joinTokensSecretRef": {"name": "tokens"},
            "listeners": [{"tls": {"secretRef": {"name": "tls"}}}],
            "deviceRef": {"name": "plc"},
            "schemaConfigMapRef": {"name": "schema"},
        }});
        let mut found = BTreeSet::new();
        collect("plant", &manifest, &mut found);
        let names: Vec<_> = found.iter().map(ToString::to_string).collect();
        assert_eq!(
            names,
            [
                "ConfigMap plant/schema",
                "Secret plant/tls",
                "Secret plant/tokens"
            ]
        );
    }

    #[test]
    fn a_broker_tells_whether_it_takes_tokens_of_service_accounts() {
        let broker = |ways: Value| json!({"spec": {"listeners": [{}, {"authentication": ways}]}});
        assert!(takes_service_accounts(&broker(
            json!([{"anonymous": {}}, {"serviceAccount": {"audiences": ["a"]}}])
        )));
        for other in [
            broker(json!([{"jwt": {"audiences": ["a"]}}])),
            broker(json!({"serviceAccount": {}})),
            json!({"spec": {}}),
            json!({}),
        ] {
            assert!(!takes_service_accounts(&other), "{other}");
        }
    }

    /// A reference with another name would never be read.
    #[test]
    fn every_reference_of_the_definitions_is_found() {
        fn references(path: &str, schema: &Value, wrong: &mut Vec<String>, seen: &mut usize) {
            let Some(members) = schema.get("properties").and_then(Value::as_object) else {
                if let Some(items) = schema.get("items") {
                    references(&format!("{path}[]"), items, wrong, seen);
                }
                return;
            };
            for (member, below) in members {
                let path = format!("{path}.{member}");
                let about = below
                    .get("description")
                    .and_then(Value::as_str)
                    .unwrap_or_default();
                let names = below
                    .get("properties")
                    .is_some_and(|members| members.get("name").is_some());
                if names && about.starts_with("Secret") {
                    *seen += 1;
                    if kind_of(member) != Some(Kind::Secret) {
                        wrong.push(path.clone());
                    }
                }
                references(&path, below, wrong, seen);
            }
        }
        let (mut wrong, mut seen) = (Vec::new(), 0);
        for definition in foreshore_crds::generate::all_crds().unwrap() {
            let definition = serde_json::to_value(definition).unwrap();
            for version in definition["spec"]["versions"].as_array().unwrap() {
                references("", &version["schema"]["openAPIV3Schema"], &mut wrong, &mut seen);
            }
        }
        assert!(seen >= 10, "only {seen} references of Secrets were seen");
        assert_eq!(wrong, Vec::<String>::new());
    }
}
