//! Examples and mutants for the tests of the judge.
#![allow(dead_code, reason = "each test uses a part")]

use std::path::{Path, PathBuf};

use foreshore_crds::{
    all_crds,
    judge::{Kind, Problem},
};
use serde::Deserialize as _;
use serde_json::Value;

pub(crate) mod mutants;

/// A file of `crds/examples`.
pub(crate) struct Example {
    pub(crate) file: PathBuf,
    /// Path and message of each problem, as the comments at its top tell them.
    pub(crate) expected: Vec<(String, String)>,
    /// What the document replaces, in a file that begins with `# transition`.
    pub(crate) old: Option<Value>,
    pub(crate) documents: Vec<Value>,
}

pub(crate) fn examples_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples")
}

/// All examples below a folder, in the order of their names.
pub(crate) fn examples(folder: &Path) -> Vec<Example> {
    let mut examples: Vec<_> = yaml_files(folder).iter().map(|file| read(file)).collect();
    examples.sort_by(|a, b| a.file.cmp(&b.file));
    assert!(!examples.is_empty(), "no examples in {}", folder.display());
    examples
}

fn yaml_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(yaml_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "yaml") {
            files.push(path);
        }
    }
    files
}

fn read(file: &Path) -> Example {
    let text = std::fs::read_to_string(file).unwrap();
    let comments: Vec<_> = text
        .lines()
        .map_while(|line| line.strip_prefix("# ").or_else(|| line.strip_prefix("#")))
        .collect();
    let tagged = |tag: &'static str| comments.iter().filter_map(move |line| line.strip_prefix(tag));
    let trimmed = |text: &str| text.trim().to_owned();
    let expected = tagged("path:")
        .map(trimmed)
        .zip(tagged("message:").map(trimmed))
        .collect();
    let mut documents = parse(&text);
    let old = comments.contains(&"transition").then(|| documents.remove(0));
    Example {
        file: file.to_owned(),
        expected,
        old,
        documents,
    }
}

/// The documents of a YAML text; those that hold nothing are left out.
pub(crate) fn parse(text: &str) -> Vec<Value> {
    serde_yaml::Deserializer::from_str(text)
        .map(|document| Value::deserialize(document).unwrap())
        .filter(|document| !document.is_null())
        .collect()
}

/// The comments that tell what is wrong with an example.
pub(crate) fn header(example: &Example, problems: &[Problem]) -> String {
    let mut header = String::new();
    if example.old.is_some() {
        header.push_str("# transition\n");
    }
    for problem in problems {
        header.push_str(&format!(
            "# path: {}\n# message: {}\n",
            problem.path,
            problem.message()
        ));
    }
    header
}

/// Kind and schema of every definition.
pub(crate) fn schemas() -> Vec<(Kind, Value)> {
    all_crds()
        .unwrap()
        .into_iter()
        .map(|crd| {
            let schema = crd.spec.versions[0]
                .schema
                .as_ref()
                .unwrap()
                .open_api_v3_schema
                .as_ref()
                .unwrap();
            (
                Kind::parse(&crd.spec.names.kind).unwrap(),
                serde_json::to_value(schema).unwrap(),
            )
        })
        .collect()
}

/// A path with every index taken out: `spec.items[].name`.
pub(crate) fn place(path: &str) -> String {
    let mut place = String::new();
    let mut inside = false;
    for character in path.chars() {
        inside &= character != ']';
        if !inside {
            place.push(character);
        }
        inside |= character == '[';
    }
    place
}

/// Calls `visit` with every node of a schema and its place.
pub(crate) fn walk<'a>(place: &str, node: &'a Value, visit: &mut impl FnMut(&str, &'a Value)) {
    visit(place, node);
    for (name, child) in node
        .get("properties")
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
    {
        let dot = if place.is_empty() { "" } else { "." };
        walk(&format!("{place}{dot}{name}"), child, visit);
    }
    if let Some(child) = node.get("items") {
        walk(&format!("{place}[]"), child, visit);
    }
    if let Some(child) = node.get("additionalProperties").filter(|child| child.is_object()) {
        walk(&format!("{place}.*"), child, visit);
    }
}
