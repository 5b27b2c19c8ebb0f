//! JSON Schemas of action inputs.

use foreshore_crds::v1alpha1::asset::{Action, ActionType};
use serde_json::{Value, json};

/// The dialect of all request schemas.
pub const DIALECT: &str = "https://json-schema.org/draft/2020-12/schema";

/// The schema of an action whose protocol knows nothing more: an object or nothing for a `Call`, nothing for a `Read`,
/// any value for a `Write`.
#[must_use]
pub fn default_request(action: &Action) -> Value {
    match action.type_ {
        ActionType::Call => json!({ "type": ["object", "null"] }),
        ActionType::Read => nothing(),
        ActionType::Write => json!({}),
    }
}

/// The schema of an action without input: `null`, or an empty object.
#[must_use]
pub fn nothing() -> Value {
    json!({ "type": ["object", "null"], "maxProperties": 0 })
}
