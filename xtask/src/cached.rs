//! Programs in Go, built into the cache, and anew when their sources change.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use sha2::{Digest as _, Sha256};

/// Returns the folder below `parent` that `make` fills from these sources, and removes those of older sources.
///
/// Its name is `prefix` and what tells one build from another.
pub(crate) fn folder(
    parent: &Path,
    prefix: &str,
    sources: &[PathBuf],
    make: impl FnOnce(&Path) -> Result<()>,
) -> Result<PathBuf> {
    let name = format!("{prefix}{}", hash(sources)?);
    let folder = parent.join(&name);
    if !folder.is_dir() {
        let part = parent.join(format!("{name}.part"));
        if part.is_dir() {
            // Of a build that was interrupted.
            fs::remove_dir_all(&part).with_context(|| format!("remove {}", part.display()))?;
        }
        fs::create_dir_all(&part).with_context(|| format!("create {}", part.display()))?;
        make(&part)?;
        fs::rename(&part, &folder).with_context(|| format!("create {}", folder.display()))?;
    }
    for entry in fs::read_dir(parent)? {
        let entry = entry?;
        let found = entry.file_name();
        let found = found.to_string_lossy();
        if found.starts_with(prefix) && found != name {
            fs::remove_dir_all(entry.path()).with_context(|| format!("remove {}", entry.path().display()))?;
        }
    }
    Ok(folder)
}

/// The files of a module in Go.
pub(crate) fn go_files(module: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(module).with_context(|| format!("read {}", module.display()))? {
        let path = entry?.path();
        let name = path
            .file_name()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default();
        if name == "go.mod" || name == "go.sum" || name.ends_with(".go") {
            files.push(path);
        }
    }
    Ok(files)
}

fn hash(files: &[PathBuf]) -> Result<String> {
    let mut files: Vec<_> = files.iter().collect();
    files.sort();
    let mut hash = Sha256::new();
    for file in files {
        hash.update(fs::read(file).with_context(|| format!("read {}", file.display()))?);
    }
    let hash = hex::encode(hash.finalize());
    Ok(hash.chars().take(12).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_built_anew_only_when_a_source_changes() {
        let parent = tempfile::tempdir().unwrap();
        let source = parent.path().join("main.go");
        let build = |text: &str| {
            fs::write(&source, text).unwrap();
            let mut made = false;
            let sources = std::slice::from_ref(&source);
            let folder = folder(parent.path(), "program-", sources, |part| {
                made = true;
                fs::write(part.join("program"), text).context("write")
            });
            (folder.unwrap(), made)
        };
        let (first, made) = build("one");
        assert!(made);
        assert_eq!(build("one"), (first.clone(), false));
        let (second, made) = build("two");
        assert!(made);
        assert_eq!(fs::read_to_string(second.join("program")).unwrap(), "two");
        assert!(!first.exists());
    }
}
