//! Documents to objects: which kind, which namespace, which name.

use foreshore_crds::conditions::reasons;
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::{
    object::{CORE_API_VERSION, Kind, ObjectKey},
    packed::Packed,
    problem::{Position, Problem, quote},
};

use super::yaml::{self, Document};

/// An object as a file declares it.
#[derive(Clone)]
pub(super) struct Declared {
    pub(super) key: ObjectKey,
    /// The manifest, its namespace filled in.
    pub(super) manifest: Packed,
    /// Of everything but `metadata` and `status`, whatever the order of keys.
    pub(super) digest: [u8; 32],
    /// Which document of the file.
    pub(super) document: usize,
    /// What stands before the manifest's own field paths: empty, or `items[2].` inside of a `List`.
    pub(super) prefix: String,
    /// Where it begins.
    pub(super) position: Position,
}

/// What a file declares.
#[derive(Clone, Default)]
pub(super) struct Content {
    pub(super) declared: Vec<Declared>,
    pub(super) problems: Vec<Problem>,
    /// Whether every document could be told: if not, an object that the file declared before may still be meant.
    pub(super) complete: bool,
}

impl Content {
    /// What a file declares that can't be read.
    pub(super) fn broken(problem: Problem) -> Self {
        Self {
            declared: Vec::new(),
            problems: vec![problem],
            complete: false,
        }
    }

    /// Reads the text of a file.
    pub(super) fn read(file: &str, text: &str, default_namespace: &str) -> Self {
        let documents = match documents(file, text) {
            Ok(documents) => documents,
            Err(problem) => return Self::broken(problem),
        };
        let mut reader = Reader {
            file,
            text,
            default_namespace,
            content: Self::default(),
        };
        reader.content.complete = true;
        for document in documents {
            reader.document(document);
        }
        reader.content
    }
}

fn documents(file: &str, text: &str) -> Result<Vec<Document>, Problem> {
    if is_json(file) {
        // YAML takes no surrogate pairs and JSON no tabs for granted, so each is read by its own rules.
        let value = serde_json::from_str(text).map_err(|error| {
            let number = |value: usize| u32::try_from(value).unwrap_or(u32::MAX);
            Problem::new(reasons::INVALID, format!("not valid JSON: {error}"))
                .in_file(file)
                .at(Position {
                    line: number(error.line()),
                    column: number(error.column()),
                })
        })?;
        return Ok(vec![Document {
            index: 0,
            position: Position { line: 1, column: 1 },
            value,
        }]);
    }
    yaml::parse(text).map_err(|fault| {
        let mut problem = Problem::new(reasons::INVALID, fault.message)
            .in_file(file)
            .at(fault.position);
        problem.found = fault.found;
        problem.allowed = fault.allowed;
        problem
    })
}

/// Whether a file is named as one with JSON in it.
fn is_json(file: &str) -> bool {
    std::path::Path::new(file)
        .extension()
        .is_some_and(|extension| extension.eq_ignore_ascii_case("json"))
}

struct Reader<'a> {
    file: &'a str,
    text: &'a str,
    default_namespace: &'a str,
    content: Content,
}

/// A manifest inside of a file.
struct Found {
    document: usize,
    prefix: String,
    position: Position,
    value: Value,
}

impl Reader<'_> {
    fn document(&mut self, document: Document) {
        let Document {
            index,
            position,
            value,
        } = document;
        let is_list = value.get("kind").and_then(Value::as_str) == Some("List")
            && value.get("apiVersion").and_then(Value::as_str) == Some(CORE_API_VERSION);
        if !is_list {
            return self.manifest(Found {
                document: index,
                prefix: String::new(),
                position,
                value,
            });
        }
        let Value::Object(mut list) = value else { return };
        match list.remove("items") {
            Some(Value::Array(items)) => {
                for (item, value) in items.into_iter().enumerate() {
                    let prefix = format!("items[{item}].");
                    let position = yaml::locate(self.text, index, &prefix).unwrap_or(position);
                    self.manifest(Found {
                        document: index,
                        prefix,
                        position,
                        value,
                    });
                }
            }
            _ => self.refuse(
                Problem::new(reasons::INVALID, "a List without items")
                    .field("items")
                    .at(position),
            ),
        }
    }

    fn manifest(&mut self, manifest: Found) {
        match self.interpret(&manifest) {
            Ok(None) => {}
            Ok(Some(key)) => self.declare(key, manifest),
            Err(problem) => {
                let path = format!(
                    "{}{}",
                    manifest.prefix,
                    problem.field.as_deref().unwrap_or_default()
                );
                let position = yaml::locate(self.text, manifest.document, &path).unwrap_or(manifest.position);
                self.refuse(problem.at(position));
            }
        }
    }

    fn refuse(&mut self, problem: Problem) {
        self.content.complete = false;
        self.content.problems.push(problem.in_file(self.file));
    }

    fn declare(&mut self, key: ObjectKey, manifest: Found) {
        let Found {
            document,
            prefix,
            position,
            mut value,
        } = manifest;
        if let Some(metadata) = value.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata.insert("namespace".to_owned(), Value::String(key.namespace.clone()));
        }
        let digest = digest(&value);
        let manifest = Packed::of(&value);
        self.content.declared.push(Declared {
            key,
            manifest,
            digest,
            document,
            prefix,
            position,
        });
    }

    /// Tells which object a manifest declares; `None` for a kind that says nothing here.
    fn interpret(&self, manifest: &Found) -> Result<Option<ObjectKey>, Problem> {
        let Value::Object(value) = &manifest.value else {
            return Err(invalid("a document that is no object").found(manifest.value.to_string()));
        };
        let api_version = text_at(value, "apiVersion")?;
        let name = text_at(value, "kind")?;
        if is_ignored(api_version, name) {
            return Ok(None);
        }
        let kind = kind_of(api_version, name)?;
        let Some(metadata) = value.get("metadata").and_then(Value::as_object) else {
            return Err(invalid("no metadata")
                .field("metadata")
                .allowed("an object with a name"));
        };
        let name = text_at(metadata, "name").map_err(below_metadata)?;
        check_object_name(kind, name)?;
        let namespace = match metadata.get("namespace") {
            None | Some(Value::Null) => self.default_namespace,
            Some(_) => text_at(metadata, "namespace").map_err(below_metadata)?,
        };
        check_label(namespace).map_err(|problem| problem.field("metadata.namespace"))?;
        Ok(Some(ObjectKey::new(kind, namespace, name)))
    }
}

fn invalid(message: &str) -> Problem {
    Problem::new(reasons::INVALID, message)
}

fn below_metadata(mut problem: Problem) -> Problem {
    problem.field = problem.field.take().map(|field| format!("metadata.{field}"));
    problem
}

fn text_at<'a>(value: &'a serde_json::Map<String, Value>, field: &str) -> Result<&'a str, Problem> {
    match value.get(field) {
        Some(Value::String(text)) => Ok(text),
        None => Err(invalid("a field that is needed is missing")
            .field(field)
            .allowed("text")),
        Some(other) => Err(invalid("a value of the wrong type")
            .field(field)
            .found(other.to_string())
            .allowed("text")),
    }
}

/// Kinds that belong to the tools around us and declare nothing that could run.
fn is_ignored(api_version: &str, kind: &str) -> bool {
    (api_version == CORE_API_VERSION && kind == "Namespace")
        || api_version.starts_with("kustomize.config.k8s.io/")
}

fn kind_of(api_version: &str, name: &str) -> Result<Kind, Problem> {
    let Some(kind) = Kind::from_name(name) else {
        let names = Kind::ALL.map(Kind::as_str);
        let problem = invalid("unknown kind")
            .field("kind")
            .found(name)
            .allowed(names.join(", "));
        return Err(problem.nearest(foreshore_record::nearest(name, names)));
    };
    if api_version != kind.api_version() {
        let message = format!("unknown version of {kind}");
        return Err(invalid(&message)
            .field("apiVersion")
            .found(api_version)
            .allowed(kind.api_version()));
    }
    Ok(kind)
}

/// Names of ours are DNS labels, since they become labels, topic levels and host names; core kinds may have longer ones.
fn check_object_name(kind: Kind, name: &str) -> Result<(), Problem> {
    let check = if kind.is_ours() {
        check_label
    } else {
        check_subdomain
    };
    check(name).map_err(|problem| problem.field("metadata.name"))
}

fn check_label(text: &str) -> Result<(), Problem> {
    if is_label(text) {
        return Ok(());
    }
    let allowed =
        "lower-case letters, digits and '-', beginning and ending with a letter or digit, at most 63";
    Err(invalid("not a name").found(quote(text)).allowed(allowed))
}

/// Checks the name of a Secret or ConfigMap.
pub(super) fn check_subdomain(text: &str) -> Result<(), Problem> {
    if text.len() <= 253
        && text
            .split('.')
            .all(|part| part.len() <= 253 && is_label_of(part, 253))
    {
        return Ok(());
    }
    let allowed = "lower-case letters, digits, '-' and '.', each part beginning and ending with a letter or digit, \
                   at most 253";
    Err(invalid("not a name").found(quote(text)).allowed(allowed))
}

/// Whether a text is a DNS label (RFC 1123).
pub(super) fn is_label(text: &str) -> bool {
    is_label_of(text, 63)
}

fn is_label_of(text: &str, most: usize) -> bool {
    let alphanumeric = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = text.as_bytes();
    bytes.len() <= most
        && bytes.first().is_some_and(alphanumeric)
        && bytes.last().is_some_and(alphanumeric)
        && bytes.iter().all(|byte| alphanumeric(byte) || *byte == b'-')
}

/// Digest of what an object asks for: everything but `metadata` and `status`.
pub(super) fn digest(manifest: &Value) -> [u8; 32] {
    let mut hash = Sha256::new();
    if let Value::Object(members) = manifest {
        let mut asked: Vec<_> = members
            .iter()
            .filter(|(key, _)| !matches!(key.as_str(), "metadata" | "status"))
            .collect();
        asked.sort_by_key(|(key, _)| *key);
        for (key, value) in asked {
            hash.update(key.as_bytes());
            hash.update([0]);
            feed(&mut hash, value);
        }
    }
    hash.finalize().into()
}

/// Feeds a value in one form, whatever the order of its keys. Nesting is bounded by the parser.
fn feed(hash: &mut Sha256, value: &Value) {
    match value {
        Value::Object(members) => {
            let mut members: Vec<_> = members.iter().collect();
            members.sort_by_key(|(key, _)| *key);
            hash.update(b"{");
            for (key, value) in members {
                hash.update((key.len() as u64).to_be_bytes());
                hash.update(key.as_bytes());
                feed(hash, value);
            }
            hash.update(b"}");
        }
        Value::Array(items) => {
            hash.update(b"[");
            for item in items {
                feed(hash, item);
            }
            hash.update(b"]");
        }
        Value::String(text) => {
            hash.update(b"\"");
            hash.update((text.len() as u64).to_be_bytes());
            hash.update(text.as_bytes());
        }
        scalar => hash.update(scalar.to_string().as_bytes()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(text: &str) -> Content {
        Content::read("line.yaml", text, "plant")
    }

    fn problems(text: &str) -> Vec<String> {
        read(text).problems.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn objects_have_their_key_and_place() {
        let content = read(
            "apiVersion: v1\nkind: Namespace\nmetadata: {name: x}\n---\n\
             apiVersion: foreshore.dev/v1alpha1\nkind: Device\nmetadata: {name: a}\nspec: {}\n---\n\
             apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Secret, metadata: {name: a.b, namespace: other}}\n",
        );
        assert!(content.complete, "{:?}", content.problems);
        let keys: Vec<_> = content
            .declared
            .iter()
            .map(|declared| declared.key.to_string())
            .collect();
        assert_eq!(keys, ["Device plant/a", "Secret other/a.b"]);
        let lines: Vec<_> = content
            .declared
            .iter()
            .map(|declared| declared.position.line)
            .collect();
        assert_eq!(lines, [5, 13]);
        assert_eq!(
            content.declared[0].manifest.value()["metadata"]["namespace"],
            "plant"
        );
        assert_eq!(content.declared[1].prefix, "items[0].");
    }

    #[test]
    fn what_is_no_object_of_ours_is_told_with_its_place() {
        let head = "apiVersion: foreshore.dev/v1alpha1\nkind: ";
        for (text, expected) in [
            (
                format!("{head}Devise\nmetadata: {{name: a}}"),
                "line.yaml:2:1: kind: unknown kind: found Devise, allowed ConfigMap, Secret",
            ),
            (
                "apiVersion: foreshore.dev/v1\nkind: Device\nmetadata: {name: a}".to_owned(),
                "line.yaml:1:1: apiVersion: unknown version of Device: found foreshore.dev/v1, \
                 allowed foreshore.dev/v1alpha1",
            ),
            (
                format!("{head}Device\nmetadata:\n  name: Line_1"),
                "line.yaml:4:3: metadata.name: not a name: found Line_1, allowed lower-case letters",
            ),
            (
                format!("{head}Device\nmetadata: {{labels: {{}}}}"),
                "line.yaml:3:1: metadata.name: a field that is needed is missing: allowed text",
            ),
            (
                "- a".to_owned(),
                "line.yaml:1:1: a document that is no object: found [\"a\"]",
            ),
            (
                "kind: 7".to_owned(),
                "line.yaml:1:1: apiVersion: a field that is needed is missing: allowed text",
            ),
            ("a: [".to_owned(), "line.yaml:"),
        ] {
            let found = problems(&text);
            assert!(
                found.len() == 1 && found[0].starts_with(expected),
                "{found:?}\n{expected}"
            );
            assert!(!read(&text).complete);
        }
    }

    #[test]
    fn one_bad_document_leaves_the_others() {
        let content = read(
            "apiVersion: v1\nkind: Secret\nmetadata: {name: a}\n---\nkind: x\n---\n\
             apiVersion: v1\nkind: ConfigMap\nmetadata: {name: b}\n",
        );
        assert_eq!(
            (content.declared.len(), content.problems.len(), content.complete),
            (2, 1, false)
        );
    }

    #[test]
    fn json_is_read_as_json() {
        let text =
            "{\"apiVersion\": \"v1\",\n\t\"kind\": \"Secret\", \"metadata\": {\"name\": \"\\ud83d\\ude00\"}}";
        let content = Content::read("a.json", text, "plant");
        assert!(
            content.problems[0].message.starts_with("not a name"),
            "{:?}",
            content.problems
        );
        let content = Content::read("a.json", "{\n\"a\": }", "plant");
        assert_eq!(
            (content.problems[0].line, content.problems[0].column),
            (Some(2), Some(6))
        );
    }

    #[test]
    fn the_digest_is_of_what_is_asked_for() {
        let base = json!({"kind": "Device", "metadata": {"name": "a"}, "spec": {"x": 1, "y": [1, 2]}});
        let reordered =
            json!({"spec": {"y": [1, 2], "x": 1}, "metadata": {"name": "a", "labels": {}}, "kind": "Device"});
        let changed = json!({"kind": "Device", "metadata": {"name": "a"}, "spec": {"x": 1, "y": [2, 1]}});
        assert_eq!(digest(&base), digest(&reordered));
        assert_ne!(digest(&base), digest(&changed));
        assert_ne!(
            digest(&json!({"data": ["a", "b"]})),
            digest(&json!({"data": ["ab"]}))
        );
    }
}
