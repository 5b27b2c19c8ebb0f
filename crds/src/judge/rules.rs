//! Rules: `x-kubernetes-validations` in CEL.

use kube_cel::{CompiledSchema, ErrorKind, ValidationError, Validator};
use serde_json::Value;

use super::{
    path::FieldPath,
    problem::{Problem, ProblemKind, show},
};

/// Judges a document whose structure is right; `old` is what it replaces.
pub(super) fn judge(rules: &CompiledSchema, document: &Value, old: Option<&Value>) -> Vec<Problem> {
    match Validator::new().validate_compiled(rules, document, old) {
        Ok(()) => Vec::new(),
        Err(errors) => errors.into_iter().map(|error| problem(error, document)).collect(),
    }
}

fn problem(error: ValidationError, document: &Value) -> Problem {
    let path = FieldPath::parse(&error.field_path);
    // Rules and messages can't fail on a document whose structure is right, unless they are wrong themselves;
    // then nothing is let through.
    if error.kind != ErrorKind::ValidationFailure {
        return Problem::new(
            path,
            ProblemKind::Rule,
            error.message,
            format!("what fulfils {}", error.rule),
        );
    }
    match error
        .message
        .strip_prefix("found ")
        .and_then(|message| message.rsplit_once(", allowed "))
    {
        Some((found, allowed)) => Problem::new(path, ProblemKind::Rule, found.trim(), allowed),
        None => {
            let found = path.value(document).map_or_else(|| "nothing".to_owned(), show);
            Problem::new(path, ProblemKind::Rule, found, error.message)
        }
    }
}
