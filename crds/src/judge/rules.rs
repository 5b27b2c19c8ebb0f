//! Rules: `x-kubernetes-validations` in CEL.

use kube_cel::{CompiledSchema, ErrorKind, ValidationError, Validator};
use serde_json::Value;

use super::{
    path::FieldPath,
    problem::{Problem, ProblemKind, show},
};

/// Judges a document; `old` is what it replaces, `problems` what is already known to be wrong. A rule that can't be
/// worked out beside those says nothing new: it met what the problem is about.
pub(super) fn judge(
    rules: &CompiledSchema,
    document: &Value,
    old: Option<&Value>,
    problems: &[Problem],
) -> Vec<Problem> {
    let Err(errors) = Validator::new().validate_compiled(rules, document, old) else {
        return Vec::new();
    };
    errors
        .into_iter()
        .filter(|error| problems.is_empty() || error.kind != ErrorKind::EvaluationError)
        .map(|error| problem(error, document))
        .filter(|found| problems.iter().all(|known| known.path != found.path))
        .collect()
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
        Some((found, allowed)) => Problem::new(path, ProblemKind::Rule, found, allowed),
        None => {
            let found = path.value(document).map_or_else(|| "nothing".to_owned(), show);
            Problem::new(path, ProblemKind::Rule, found, error.message)
        }
    }
}
