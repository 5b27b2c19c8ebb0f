//! Structure: types, bounds and lists that are maps or sets, judged by the definition's own schema.

use std::collections::HashMap;

use jsonschema::{ValidationError, error::ValidationErrorKind, paths::LocationSegment};
use serde_json::Value;

use super::{
    path::FieldPath,
    problem::{Problem, ProblemKind, enumerate, show},
};
use crate::types::allowed_by_pattern;

/// Judges a pruned document. Every problem is reported.
pub(super) fn judge(validator: &jsonschema::Validator, schema: &Value, document: &Value) -> Vec<Problem> {
    let mut problems: Vec<_> = validator
        .iter_errors(document)
        .map(|error| problem(&error, schema, document))
        .collect();
    duplicates(document, schema, &FieldPath::root(), &mut problems);
    problems
}

fn problem(error: &ValidationError<'_>, schema: &Value, document: &Value) -> Problem {
    let path = path_of(error, document);
    let value = error.instance();
    let node = path.schema(schema).unwrap_or(&Value::Null);
    let new = |kind, allowed: String| Problem::new(path.clone(), kind, show(value), allowed);
    match error.kind() {
        ValidationErrorKind::Required { property } => {
            let path = path.field(property.as_str().unwrap_or_default());
            let allowed = path.schema(schema).map_or_else(|| "a value".to_owned(), wanted);
            Problem::new(path, ProblemKind::Required, "nothing", allowed)
        }
        ValidationErrorKind::Type { .. } => new(ProblemKind::Type, type_words(node)),
        ValidationErrorKind::Enum { options } => {
            let options: Vec<_> = options
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(Value::as_str)
                .collect();
            new(ProblemKind::NotSupported, enumerate(options.iter().copied())).with_nearest(
                value
                    .as_str()
                    .and_then(|value| foreshore_record::nearest(value, options.iter().copied())),
            )
        }
        ValidationErrorKind::MaxLength { limit } => Problem::new(
            path,
            ProblemKind::TooMany,
            format!(
                "{} characters",
                value.as_str().map_or(0, |text| text.chars().count())
            ),
            format!("at most {limit} characters"),
        ),
        ValidationErrorKind::MaxItems { limit } => {
            new(ProblemKind::TooMany, format!("at most {limit} elements"))
        }
        ValidationErrorKind::MaxProperties { limit } => Problem::new(
            path,
            ProblemKind::TooMany,
            format!("{} members", value.as_object().map_or(0, serde_json::Map::len)),
            format!("at most {limit} members"),
        ),
        ValidationErrorKind::MinLength { limit } => {
            new(ProblemKind::Invalid, format!("at least {limit} characters"))
        }
        ValidationErrorKind::MinItems { limit } => {
            new(ProblemKind::Invalid, format!("at least {limit} elements"))
        }
        ValidationErrorKind::Minimum { .. } | ValidationErrorKind::Maximum { .. } => {
            new(ProblemKind::Invalid, range_words(node))
        }
        ValidationErrorKind::Pattern { pattern } => new(
            ProblemKind::Invalid,
            allowed_by_pattern(pattern)
                .map_or_else(|| format!("text that matches {pattern}"), ToOwned::to_owned),
        ),
        // No definition of ours holds other keywords (a test says so); the library's words do for them.
        _ => new(ProblemKind::Invalid, error.to_string()),
    }
}

/// The library can't tell a member named `0` from an element; the document can.
fn path_of(error: &ValidationError<'_>, document: &Value) -> FieldPath {
    error
        .instance_path()
        .segments()
        .fold(FieldPath::root(), |path, segment| match segment {
            LocationSegment::Index(index) if path.value(document).is_some_and(Value::is_array) => {
                path.index(index)
            }
            other => path.field(other.to_string()),
        })
}

fn type_words(node: &Value) -> String {
    match node.get("type").and_then(Value::as_str) {
        Some("string") => match node.get("enum").and_then(Value::as_array) {
            Some(options) => enumerate(options.iter().filter_map(Value::as_str)),
            None => "text".to_owned(),
        },
        Some("integer") => format!("a whole number, {}", range_words(node)),
        Some("number") => "a number".to_owned(),
        Some("boolean") => "true or false".to_owned(),
        Some("array") => "a list".to_owned(),
        Some("object") => "an object".to_owned(),
        _ => "another type".to_owned(),
    }
}

fn range_words(node: &Value) -> String {
    match (
        node.get("minimum").map(plain_number),
        node.get("maximum").map(plain_number),
    ) {
        (Some(least), Some(most)) => format!("{least} to {most}"),
        (Some(least), None) => format!("at least {least}"),
        (None, Some(most)) => format!("at most {most}"),
        (None, None) => "any".to_owned(),
    }
}

/// `1`, where the schema's own type has made `1.0` of it.
fn plain_number(number: &Value) -> String {
    let text = number.to_string();
    text.strip_suffix(".0").unwrap_or(&text).to_owned()
}

/// What belongs into a member that is missing: its type and the first sentence of its description.
fn wanted(node: &Value) -> String {
    let type_ = type_words(node);
    let description = node
        .get("description")
        .and_then(Value::as_str)
        .unwrap_or_default();
    let sentence = description
        .split_once(". ")
        .map_or(description, |(first, _)| first)
        .trim_end_matches('.');
    if sentence.is_empty() {
        type_
    } else {
        format!("{type_} ({sentence})")
    }
}

/// Elements of lists that are maps have different keys, elements of sets different values.
fn duplicates(value: &Value, schema: &Value, path: &FieldPath, problems: &mut Vec<Problem>) {
    match value {
        Value::Object(members) => {
            for (name, member) in members {
                let path = path.field(name);
                let known = schema
                    .get("properties")
                    .and_then(|properties| properties.get(name))
                    .or_else(|| schema.get("additionalProperties"));
                if let Some(schema) = known {
                    duplicates(member, schema, &path, problems);
                }
            }
        }
        Value::Array(elements) => {
            duplicate_elements(elements, schema, path, problems);
            if let Some(schema) = schema.get("items") {
                for (index, element) in elements.iter().enumerate() {
                    duplicates(element, schema, &path.index(index), problems);
                }
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

fn duplicate_elements(elements: &[Value], schema: &Value, path: &FieldPath, problems: &mut Vec<Problem>) {
    let keys: Vec<_> = match schema.get("x-kubernetes-list-type").and_then(Value::as_str) {
        Some("set") => Vec::new(),
        Some("map") => schema
            .get("x-kubernetes-list-map-keys")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect(),
        _ => return,
    };
    let mut seen: HashMap<String, usize> = HashMap::new();
    for (index, element) in elements.iter().enumerate() {
        let key = if keys.is_empty() {
            element.to_string()
        } else {
            let parts: Vec<_> = keys
                .iter()
                .map(|key| element.get(key).map(show).unwrap_or_default())
                .collect();
            parts.join(", ")
        };
        let times = seen.entry(key.clone()).or_default();
        *times += 1;
        // Once for each key is enough, as the API server finds too.
        if *times == 2 {
            let allowed = match keys.as_slice() {
                [] => "each value once".to_owned(),
                keys => format!("each {} once", enumerate(keys.iter().copied())),
            };
            problems.push(Problem::new(
                path.index(index),
                ProblemKind::Duplicate,
                format!("{key} a second time"),
                allowed,
            ));
        }
    }
}
