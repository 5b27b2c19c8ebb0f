//! Pruning: members that the schema does not know, and explicit nulls.

use serde_json::Value;

use super::{
    path::FieldPath,
    problem::{Problem, ProblemKind, enumerate},
};

/// Takes away what the schema does not know, reporting each, and nulls, which mean the same as leaving out.
pub(super) fn prune(value: &mut Value, schema: &Value, path: &FieldPath, problems: &mut Vec<Problem>) {
    if schema
        .get("x-kubernetes-preserve-unknown-fields")
        .and_then(Value::as_bool)
        == Some(true)
    {
        return;
    }
    match value {
        Value::Object(members) => {
            let properties = schema.get("properties").and_then(Value::as_object);
            let every = schema.get("additionalProperties");
            members.retain(|name, member| {
                let known = properties.and_then(|properties| properties.get(name)).or(every);
                match known {
                    Some(_) if member.is_null() => false,
                    Some(schema) => {
                        prune(member, schema, &path.field(name), problems);
                        true
                    }
                    None => {
                        let names = || properties.into_iter().flat_map(|properties| properties.keys());
                        problems.push(
                            Problem::new(
                                path.field(name),
                                ProblemKind::UnknownField,
                                format!("the unknown field {name}"),
                                enumerate(names().map(String::as_str)),
                            )
                            .with_nearest(foreshore_record::nearest(name, names().map(String::as_str))),
                        );
                        false
                    }
                }
            });
        }
        Value::Array(elements) => {
            let Some(schema) = schema.get("items") else { return };
            for (index, element) in elements.iter_mut().enumerate() {
                prune(element, schema, &path.index(index), problems);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}
