//! Metadata, by Kubernetes' own rules (k8s.io/apimachinery, pkg/api/validation and pkg/util/validation).

use serde_json::{Map, Value};

use super::{
    FieldPath, Problem, ProblemKind,
    problem::{enumerate, show},
};

/// Members of `metadata` that Kubernetes knows, and whether their content is the server's business.
const MEMBERS: [&str; 15] = [
    "annotations",
    "creationTimestamp",
    "deletionGracePeriodSeconds",
    "deletionTimestamp",
    "finalizers",
    "generateName",
    "generation",
    "labels",
    "managedFields",
    "name",
    "namespace",
    "ownerReferences",
    "resourceVersion",
    "selfLink",
    "uid",
];

/// Bytes of all annotations together.
const MAX_ANNOTATIONS: usize = 256 * 1024;

pub(super) fn judge(document: &Value, problems: &mut Vec<Problem>) {
    let path = FieldPath::root().field("metadata");
    let Some(metadata) = document.get("metadata").and_then(Value::as_object) else {
        let found = document
            .get("metadata")
            .map_or_else(|| "nothing".to_owned(), show);
        problems.push(Problem::new(
            path,
            ProblemKind::Required,
            found,
            "an object with a name",
        ));
        return;
    };
    for name in metadata.keys().filter(|name| !MEMBERS.contains(&name.as_str())) {
        problems.push(
            Problem::new(
                path.field(name),
                ProblemKind::UnknownField,
                format!("the unknown field {name}"),
                enumerate(MEMBERS),
            )
            .with_nearest(foreshore_record::nearest(name, MEMBERS)),
        );
    }
    name(metadata, &path, problems);
    namespace(metadata, &path, problems);
    labels(metadata, &path.field("labels"), problems);
    annotations(metadata, &path.field("annotations"), problems);
}

fn name(metadata: &Map<String, Value>, path: &FieldPath, problems: &mut Vec<Problem>) {
    let path = path.field("name");
    const ALLOWED: &str = "a DNS label: lower-case letters, digits and -, at most 63 characters";
    match metadata.get("name") {
        None | Some(Value::Null) => {
            problems.push(Problem::new(path, ProblemKind::Required, "nothing", ALLOWED))
        }
        Some(Value::String(name)) if name.is_empty() => {
            problems.push(Problem::new(
                path,
                ProblemKind::Required,
                "an empty text",
                ALLOWED,
            ));
        }
        // What is a subdomain and no label is refused by a rule of each kind, here as by the API server.
        Some(Value::String(name)) if is_dns_subdomain(name) => {}
        Some(other) => problems.push(Problem::new(path, ProblemKind::Metadata, show(other), ALLOWED)),
    }
}

fn namespace(metadata: &Map<String, Value>, path: &FieldPath, problems: &mut Vec<Problem>) {
    match metadata.get("namespace") {
        None | Some(Value::Null) => {}
        // An empty one is filled in, as one that is left out.
        Some(Value::String(namespace)) if namespace.is_empty() || is_dns_label(namespace) => {}
        Some(other) => problems.push(Problem::new(
            path.field("namespace"),
            ProblemKind::Metadata,
            show(other),
            "a DNS label: lower-case letters, digits and -, at most 63 characters",
        )),
    }
}

fn labels(metadata: &Map<String, Value>, path: &FieldPath, problems: &mut Vec<Problem>) {
    for (key, value) in texts(metadata.get("labels"), path, problems) {
        if !is_qualified_name(key) {
            problems.push(qualified_name(path, key));
        }
        if !is_label_value(value) {
            problems.push(Problem::new(
                path.clone(),
                ProblemKind::Metadata,
                format!("{value:?} as the value of {key}"),
                "at most 63 letters, digits, -, _ and ., beginning and ending with a letter or digit",
            ));
        }
    }
}

fn annotations(metadata: &Map<String, Value>, path: &FieldPath, problems: &mut Vec<Problem>) {
    let mut bytes = 0;
    for (key, value) in texts(metadata.get("annotations"), path, problems) {
        bytes += key.len() + value.len();
        if !is_qualified_name(&key.to_lowercase()) {
            problems.push(qualified_name(path, key));
        }
    }
    if bytes > MAX_ANNOTATIONS {
        problems.push(Problem::new(
            path.clone(),
            ProblemKind::TooMany,
            format!("{bytes} bytes of annotations"),
            format!("at most {MAX_ANNOTATIONS}"),
        ));
    }
}

fn qualified_name(path: &FieldPath, key: &str) -> Problem {
    Problem::new(
        path.clone(),
        ProblemKind::Metadata,
        format!("the key {key:?}"),
        "[PREFIX/]NAME: a DNS subdomain, and at most 63 letters, digits, -, _ and .",
    )
}

/// The members of a map of texts; what is no text is reported.
fn texts<'a>(
    value: Option<&'a Value>,
    path: &FieldPath,
    problems: &mut Vec<Problem>,
) -> Vec<(&'a str, &'a str)> {
    let members = match value {
        None | Some(Value::Null) => return Vec::new(),
        Some(Value::Object(members)) => members,
        Some(other) => {
            problems.push(Problem::new(
                path.clone(),
                ProblemKind::Type,
                show(other),
                "an object of texts",
            ));
            return Vec::new();
        }
    };
    let mut texts = Vec::new();
    for (key, value) in members {
        match value {
            Value::String(text) => texts.push((key.as_str(), text.as_str())),
            Value::Null => texts.push((key.as_str(), "")),
            other => problems.push(Problem::new(
                path.field(key),
                ProblemKind::Type,
                show(other),
                "text, in quotes where it looks like something else",
            )),
        }
    }
    texts
}

fn is_dns_label(text: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = text.as_bytes();
    (1..=63).contains(&bytes.len())
        && bytes.iter().all(|byte| inner(*byte) || *byte == b'-')
        && bytes.first().copied().is_some_and(inner)
        && bytes.last().copied().is_some_and(inner)
}

fn is_dns_subdomain(text: &str) -> bool {
    let label = |label: &str| {
        let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let bytes = label.as_bytes();
        bytes.iter().all(|byte| inner(*byte) || *byte == b'-')
            && bytes.first().copied().is_some_and(inner)
            && bytes.last().copied().is_some_and(inner)
    };
    text.len() <= 253 && text.split('.').all(label)
}

fn is_name_part(text: &str) -> bool {
    let bytes = text.as_bytes();
    (1..=63).contains(&bytes.len())
        && bytes
            .iter()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
        && bytes.first().is_some_and(u8::is_ascii_alphanumeric)
        && bytes.last().is_some_and(u8::is_ascii_alphanumeric)
}

fn is_qualified_name(key: &str) -> bool {
    match key.split_once('/') {
        Some((prefix, name)) => is_dns_subdomain(prefix) && is_name_part(name),
        None => is_name_part(key),
    }
}

fn is_label_value(value: &str) -> bool {
    value.is_empty() || is_name_part(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_kubernetes_grammar() {
        for name in ["a", "a-b.c1", "0"] {
            assert!(is_dns_subdomain(name), "{name}");
        }
        for name in ["", "A", "a..b", "-a", "a-", "a_b", ".a"] {
            assert!(!is_dns_subdomain(name), "{name}");
        }
        for key in ["app", "app.kubernetes.io/name", "A_b.C"] {
            assert!(is_qualified_name(key), "{key}");
        }
        for key in ["", "/name", "a/", "a/b/c", "Prefix.UPPER/name", "-a"] {
            assert!(!is_qualified_name(key), "{key}");
        }
    }
}
