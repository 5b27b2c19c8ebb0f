//! `--secrets DIR`: files `NAME/KEY`, or `NAMESPACE/NAME/KEY`, as Secrets.

use std::{
    collections::BTreeMap,
    path::{Component, Path, PathBuf},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use foreshore_crds::conditions::reasons;
use serde_json::{Map, Value, json};

use crate::{
    object::{CORE_API_VERSION, Kind, ObjectKey},
    packed::Packed,
    problem::{Position, Problem, quote},
};

use super::{
    UNREADABLE,
    document::{Content, Declared, check_subdomain, digest, is_label},
    walk::Signature,
};

/// Largest value, as in Kubernetes a whole Secret.
const MAX_BYTES: u64 = 1 << 20;

/// What the files below a folder declare, by the folder of each Secret.
pub(super) fn read(
    root: &Path,
    files: &BTreeMap<PathBuf, Signature>,
    default_namespace: &str,
) -> BTreeMap<PathBuf, Content> {
    let mut contents: BTreeMap<PathBuf, Content> = BTreeMap::new();
    let mut values: BTreeMap<(PathBuf, ObjectKey), Map<String, Value>> = BTreeMap::new();
    for (path, signature) in files {
        let folder = path.parent().unwrap_or(root).to_owned();
        let value = place(root, path, default_namespace)
            .and_then(|(object, key)| Ok((object, key, value(path, *signature)?)));
        match value {
            Ok((object, key, value)) => drop(values.entry((folder, object)).or_default().insert(key, value)),
            Err(problem) => {
                let content = contents.entry(folder).or_default();
                content.problems.push(problem.in_file(path.display().to_string()));
            }
        }
    }
    for ((folder, key), data) in values {
        let content = contents.entry(folder).or_default();
        // A Secret of which a part is wrong is wrong as a whole.
        if content.problems.is_empty() {
            content.complete = true;
            content.declared.push(declared(key, data));
        }
    }
    contents
}

fn declared(key: ObjectKey, data: Map<String, Value>) -> Declared {
    let manifest = json!({
        "apiVersion": CORE_API_VERSION,
        "kind": Kind::Secret.as_str(),
        "metadata": { "namespace": key.namespace, "name": key.name },
        "data": data,
    });
    Declared {
        key,
        digest: digest(&manifest),
        manifest: Packed::of(&manifest),
        document: 0,
        prefix: String::new(),
        position: Position { line: 1, column: 1 },
    }
}

/// Which key of which Secret a file holds.
fn place(root: &Path, path: &Path, default_namespace: &str) -> Result<(ObjectKey, String), Problem> {
    let below = path.strip_prefix(root).unwrap_or(path);
    let parts: Option<Vec<&str>> = below
        .components()
        .map(|part| match part {
            Component::Normal(part) => part.to_str(),
            _ => None,
        })
        .collect();
    let (namespace, name, key) = match parts.as_deref() {
        Some([name, key]) => (default_namespace, *name, *key),
        Some([namespace, name, key]) => (*namespace, *name, *key),
        _ => {
            return Err(Problem::new(reasons::INVALID, "not the place of a secret")
                .found(below.display().to_string())
                .allowed("NAME/KEY or NAMESPACE/NAME/KEY"));
        }
    };
    if !is_label(namespace) {
        return Err(Problem::new(reasons::INVALID, "not the name of a namespace").found(quote(namespace)));
    }
    check_subdomain(name)?;
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    if key.len() > 253 || !key.bytes().all(allowed) {
        return Err(Problem::new(reasons::INVALID, "not a key of a Secret")
            .found(quote(key))
            .allowed("letters, digits, '-', '_' and '.', at most 253"));
    }
    Ok((ObjectKey::new(Kind::Secret, namespace, name), key.to_owned()))
}

fn value(path: &Path, signature: Signature) -> Result<Value, Problem> {
    let permissions = signature.permissions();
    if permissions & 0o077 != 0 {
        return Err(
            Problem::new(reasons::INVALID, "others may read a secret; run chmod 600 on it")
                .field("mode")
                .found(format!("{permissions:04o}"))
                .allowed("0600 and stricter"),
        );
    }
    if signature.size() > MAX_BYTES {
        return Err(Problem::new(reasons::TOO_LARGE, "a secret too long")
            .found(format!("{} bytes", signature.size()))
            .allowed(format!("{MAX_BYTES} bytes")));
    }
    // The mode is asked once more of the open file, and the length bounded while it is read.
    let content = foreshore_tls::read_private(path, MAX_BYTES)
        .map_err(|error| Problem::new(UNREADABLE, format!("can't be read: {error}")))?;
    Ok(Value::String(STANDARD.encode(content)))
}
