//! The judge: what the API server would say of a manifest, and what it can't say.
//!
//! In order: kind and version; size; metadata; pruning of unknown fields and nulls; structure by the definition's own
//! schema; the rules in CEL, unless the structure is wrong in a way that makes them meaningless; and expressions of
//! dataflows, which the API server does not know. `tests/oracle` holds all but the last against the API server's own
//! code.

mod expressions;
mod lines;
mod metadata;
mod path;
mod problem;
mod prune;
mod resource;
mod rules;
mod structure;

use std::{collections::BTreeMap, sync::LazyLock};

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use serde_json::Value;

pub use lines::{AmbiguousScalar, ambiguous_scalars, field_line};
pub use path::{FieldPath, Segment};
pub use problem::{Problem, ProblemKind};
pub use resource::{KINDS, Kind, Resource};

use crate::{API_VERSION, GenerateError, all_crds};

/// Largest object in bytes of JSON: etcd takes 1.5 MiB, and status and managed fields want room.
pub const MAX_OBJECT: usize = 1 << 20;

/// A document that was found right.
#[derive(Clone, Debug, PartialEq)]
pub struct Accepted {
    /// The object in the type of its kind.
    pub resource: Resource,
}

/// Why the definitions could not be made ready for judging.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// They can't be generated.
    #[error(transparent)]
    Generate(#[from] GenerateError),
    /// A definition has no schema, or one that can't be compiled.
    #[error("schema of {kind} can't be compiled: {cause}")]
    Schema {
        /// Kind of the definition.
        kind: String,
        /// What the library says.
        cause: String,
    },
}

/// What one kind's objects are judged by.
struct Definition {
    schema: Value,
    structure: jsonschema::Validator,
    rules: kube_cel::CompiledSchema,
}

/// Judges documents by the definitions of all kinds. Made once: compiling schemas and rules takes a while.
pub struct Judge {
    definitions: BTreeMap<Kind, Definition>,
}

impl std::fmt::Debug for Judge {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Judge").finish_non_exhaustive()
    }
}

impl Judge {
    /// Makes the definitions of all kinds ready.
    ///
    /// # Errors
    /// [`BuildError`], never seen with the types of this crate (a test builds it).
    pub fn new() -> Result<Self, BuildError> {
        let mut definitions = BTreeMap::new();
        for crd in all_crds()? {
            let name = crd.spec.names.kind.clone();
            let cause = |cause: String| BuildError::Schema {
                kind: name.clone(),
                cause,
            };
            let kind = Kind::parse(&name).ok_or_else(|| cause("unknown kind".to_owned()))?;
            let schema = schema_of(&crd).ok_or_else(|| cause("no schema".to_owned()))?;
            let structure = jsonschema::options()
                .with_draft(jsonschema::Draft::Draft202012)
                .with_pattern_options(jsonschema::PatternOptions::regex())
                .should_validate_formats(false)
                .build(&schema)
                .map_err(|error| cause(error.to_string()))?;
            let rules = kube_cel::compile_schema(&schema);
            definitions.insert(
                kind,
                Definition {
                    schema,
                    structure,
                    rules,
                },
            );
        }
        Ok(Self { definitions })
    }

    /// Judges a document; `old` is the accepted one that it replaces, for rules about changes.
    ///
    /// # Errors
    /// Everything that is wrong, in the order of its place.
    pub fn judge(&self, document: &Value, old: Option<&Value>) -> Result<Accepted, Vec<Problem>> {
        let (kind, definition) = self.definition_of(document)?;
        let mut problems = Vec::new();
        let document = admit(document, definition, &mut problems);
        metadata::judge(&document, &mut problems);
        problems.extend(structure::judge(
            &definition.structure,
            &definition.schema,
            &document,
        ));
        if !problems.iter().any(|problem| problem.kind.hides_rules()) {
            let old = old.map(|old| admit(old, definition, &mut Vec::new()));
            problems.extend(rules::judge(
                &definition.rules,
                &document,
                old.as_ref(),
                &problems,
            ));
        }
        if problems.is_empty() {
            let resource = kind.read(document)?;
            problems = expressions::judge(&resource);
            if problems.is_empty() {
                return Ok(Accepted { resource });
            }
        }
        problems.sort();
        problems.dedup();
        Err(problems)
    }

    fn definition_of(&self, document: &Value) -> Result<(Kind, &Definition), Vec<Problem>> {
        let text = |field: &str| document.get(field).and_then(Value::as_str).unwrap_or_default();
        let refuse = |field: &str, allowed: String, nearest: Option<&str>| {
            let path = FieldPath::root().field(field);
            let found = document
                .get(field)
                .map_or_else(|| "nothing".to_owned(), problem::show);
            vec![Problem::new(path, ProblemKind::UnknownKind, found, allowed).with_nearest(nearest)]
        };
        if text("apiVersion") != API_VERSION {
            return Err(refuse("apiVersion", API_VERSION.to_owned(), None));
        }
        let names = || KINDS.iter().map(|kind| kind.as_str());
        let found = Kind::parse(text("kind")).and_then(|kind| Some((kind, self.definitions.get(&kind)?)));
        let (kind, definition) = found.ok_or_else(|| {
            refuse(
                "kind",
                problem::enumerate(names()),
                foreshore_record::nearest(text("kind"), names()),
            )
        })?;
        let size = document.to_string().len();
        if size > MAX_OBJECT {
            return Err(vec![Problem::new(
                FieldPath::root(),
                ProblemKind::TooLarge,
                format!("{size} bytes"),
                format!("at most {MAX_OBJECT} bytes: spread it over several objects"),
            )]);
        }
        Ok((kind, definition))
    }
}

/// Judges a document by itself: see [`Judge::judge`].
///
/// # Errors
/// Everything that is wrong, in the order of its place.
pub fn judge(document: &Value) -> Result<Accepted, Vec<Problem>> {
    judge_update(document, None)
}

/// Judges a document that replaces an accepted one: see [`Judge::judge`].
///
/// # Errors
/// Everything that is wrong, in the order of its place.
pub fn judge_update(document: &Value, old: Option<&Value>) -> Result<Accepted, Vec<Problem>> {
    static JUDGE: LazyLock<Result<Judge, BuildError>> = LazyLock::new(Judge::new);
    match &*JUDGE {
        Ok(judge) => judge.judge(document, old),
        Err(error) => Err(vec![Problem::new(
            FieldPath::root(),
            ProblemKind::UnknownKind,
            error.to_string(),
            "definitions that compile; this build of foreshore is broken",
        )]),
    }
}

/// The document as it would be stored: without its status, which users do not set, unknown fields and nulls.
fn admit(document: &Value, definition: &Definition, problems: &mut Vec<Problem>) -> Value {
    let mut document = document.clone();
    let Some(members) = document.as_object_mut() else {
        return document;
    };
    members.remove("status");
    let envelope = ["apiVersion", "kind", "metadata"].map(|name| (name, members.remove(name)));
    prune::prune(&mut document, &definition.schema, &FieldPath::root(), problems);
    if let Some(members) = document.as_object_mut() {
        members.extend(
            envelope
                .into_iter()
                .filter_map(|(name, value)| Some((name.to_owned(), value?))),
        );
    }
    document
}

fn schema_of(crd: &CustomResourceDefinition) -> Option<Value> {
    let schema = crd
        .spec
        .versions
        .first()?
        .schema
        .as_ref()?
        .open_api_v3_schema
        .as_ref()?;
    serde_json::to_value(schema).ok()
}

#[cfg(test)]
mod tests;
