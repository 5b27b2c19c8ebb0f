//! What every action takes: the schemas by which inputs are judged, and which are published.

use std::{collections::BTreeMap, sync::Arc};

use foreshore_crds::v1alpha1::asset::Action;
use jsonschema::Validator;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::Notify;
use tracing::error;

use crate::{contract::Connector, plan::AssetPlan, schema::DIALECT};

/// Faults of an input that are told; there may be more.
const TOLD_FAULTS: usize = 3;

/// Names an action.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ActionKey {
    pub(crate) namespace: String,
    pub(crate) asset: String,
    pub(crate) group: String,
    pub(crate) action: String,
}

/// What one action takes.
#[derive(Debug)]
pub(crate) struct ActionSchema {
    pub(crate) document: Value,
    validator: Option<Validator>,
    /// What the schema was made for: another definition needs another.
    action: Action,
}

/// What every action takes.
#[derive(Debug, Default)]
pub(crate) struct SchemaBook {
    schemas: Mutex<BTreeMap<ActionKey, Arc<ActionSchema>>>,
    changed: Notify,
}

impl ActionSchema {
    fn new(key: &ActionKey, action: &Action, schema: Value) -> Self {
        let mut document = match schema {
            Value::Object(members) => Value::Object(members),
            // `true` and `false` are schemas too (JSON Schema 2020-12, section 4.3.2).
            Value::Bool(false) => json!({ "not": {} }),
            _ => json!({}),
        };
        if let Value::Object(members) = &mut document {
            members.insert("$schema".to_owned(), DIALECT.into());
            members.insert("title".to_owned(), format!("{}/{}", key.group, key.action).into());
        }
        let validator = jsonschema::validator_for(&document);
        if let Err(error) = &validator {
            error!(asset = key.asset, action = key.action, %error, "request schema is none, inputs are not judged");
        }
        Self {
            document,
            validator: validator.ok(),
            action: action.clone(),
        }
    }

    /// Judges an input.
    ///
    /// # Errors
    /// What is wrong and where.
    pub(crate) fn check(&self, input: &Value) -> Result<(), String> {
        let Some(validator) = &self.validator else {
            return Ok(());
        };
        let faults: Vec<String> = validator
            .iter_errors(input)
            .take(TOLD_FAULTS)
            .map(|fault| match fault.instance_path().to_string().as_str() {
                "" => fault.to_string(),
                place => format!("at {place}: {fault}"),
            })
            .collect();
        if faults.is_empty() {
            Ok(())
        } else {
            Err(faults.join("; "))
        }
    }
}

impl SchemaBook {
    /// Follows a plan: what stays the same keeps what its link said of it.
    pub(crate) fn plan(&self, asset: &AssetPlan, connector: &dyn Connector) {
        let object = &asset.object;
        let mut schemas = self.schemas.lock();
        let is_of = |key: &ActionKey| key.namespace == object.namespace && key.asset == object.name;
        let mut old: BTreeMap<_, _> = schemas.extract_if(.., |key, _| is_of(key)).collect();
        for group in &asset.spec.action_groups {
            for action in &group.actions {
                let key = key_of(asset, &group.name, &action.name);
                let kept = old.remove(&key).filter(|schema| schema.action == *action);
                let schema = kept.unwrap_or_else(|| {
                    Arc::new(ActionSchema::new(&key, action, connector.request_schema(action)))
                });
                schemas.insert(key, schema);
            }
        }
        drop(schemas);
        self.changed.notify_one();
    }

    /// Forgets an asset.
    pub(crate) fn remove(&self, namespace: &str, asset: &str) {
        self.schemas
            .lock()
            .retain(|key, _| !(key.namespace == namespace && key.asset == asset));
        self.changed.notify_one();
    }

    /// A link knows more of an action.
    pub(crate) fn narrow(&self, asset: &AssetPlan, group: &str, action: &Action, schema: Value) {
        let key = key_of(asset, group, &action.name);
        let mut schemas = self.schemas.lock();
        // The plan may have changed while the device was asked.
        let Some(present) = schemas.get(&key).filter(|present| present.action == *action) else {
            return;
        };
        let narrowed = ActionSchema::new(&key, action, schema);
        if narrowed.document != present.document {
            schemas.insert(key, Arc::new(narrowed));
            drop(schemas);
            self.changed.notify_one();
        }
    }

    pub(crate) fn get(&self, key: &ActionKey) -> Option<Arc<ActionSchema>> {
        self.schemas.lock().get(key).cloned()
    }

    pub(crate) fn all(&self) -> BTreeMap<ActionKey, Arc<ActionSchema>> {
        self.schemas.lock().clone()
    }

    /// Resolves after a change since the last call; for one waiter.
    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }
}

fn key_of(asset: &AssetPlan, group: &str, action: &str) -> ActionKey {
    ActionKey {
        namespace: asset.object.namespace.clone(),
        asset: asset.object.name.clone(),
        group: group.to_owned(),
        action: action.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schema(document: Value) -> ActionSchema {
        let key = ActionKey {
            namespace: "plant".into(),
            asset: "filler".into(),
            group: "g".into(),
            action: "a".into(),
        };
        ActionSchema::new(&key, &Action::default(), document)
    }

    #[test]
    fn faults_of_an_input_are_told_with_their_place() {
        let schema = schema(json!({
            "type": "object",
            "properties": { "speed": { "type": "number", "maximum": 5 } },
            "required": ["speed"],
            "additionalProperties": false,
        }));
        assert_eq!(schema.check(&json!({ "speed": 3 })), Ok(()));
        let told = schema.check(&json!({ "speed": 7, "x": 1 })).unwrap_err();
        assert!(
            told.contains("at /speed: 7 is greater than the maximum of 5"),
            "{told}"
        );
        assert!(told.contains("'x' was unexpected"), "{told}");
        assert!(schema.check(&Value::Null).is_err());
        assert_eq!(schema.document["title"], "g/a");
    }

    #[test]
    fn schemas_without_members_are_schemas() {
        assert_eq!(schema(json!(true)).check(&json!(1)), Ok(()));
        assert!(schema(json!(false)).check(&json!(1)).is_err());
        let nothing = schema(crate::schema::nothing());
        assert_eq!(nothing.check(&Value::Null), Ok(()));
        assert_eq!(nothing.check(&json!({})), Ok(()));
        assert!(nothing.check(&json!({ "a": 1 })).is_err());
    }
}
