//! The table of cases: `crds/examples`, of which the judge's tests and the oracle's make use too.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::Deserialize as _;
use serde_json::Value;

/// A document, and what is wrong with it.
pub(super) struct Case {
    /// Below the folder of the table.
    pub(super) file: PathBuf,
    /// What it replaces, in a file that begins with `# transition`.
    pub(super) old: Option<Value>,
    pub(super) document: Value,
    /// Empty where it is right.
    pub(super) problems: Vec<Problem>,
}

/// Something wrong, as the comments at the top of a file tell it.
pub(super) struct Problem {
    pub(super) path: String,
    pub(super) message: String,
}

/// All cases, in the order of their files.
pub(super) fn read(folder: &Path) -> Result<Vec<Case>> {
    let mut cases = Vec::new();
    for file in files(folder)? {
        let below = file.strip_prefix(folder)?.to_owned();
        let text = std::fs::read_to_string(&file)?;
        let case = case(below, &text).with_context(|| file.display().to_string())?;
        if case.problems.is_empty() != case.file.starts_with("accepted") {
            bail!("{}: right or wrong?", file.display());
        }
        cases.push(case);
    }
    cases.sort_by(|one, other| one.file.cmp(&other.file));
    Ok(cases)
}

fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        if path.is_dir() {
            files.extend(self::files(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "yaml") {
            files.push(path);
        }
    }
    Ok(files)
}

fn case(file: PathBuf, text: &str) -> Result<Case> {
    let comments: Vec<_> = text
        .lines()
        .map_while(|line| line.strip_prefix('#'))
        .map(str::trim_start)
        .collect();
    let tagged = |tag: &'static str| {
        let told = comments.iter().filter_map(move |line| line.strip_prefix(tag));
        told.map(|told| told.trim().to_owned())
    };
    let problems = tagged("path:").zip(tagged("message:"));
    let problems = problems
        .map(|(path, message)| Problem { path, message })
        .collect();
    let documents: Result<Vec<_>, _> = serde_yaml::Deserializer::from_str(text)
        .map(Value::deserialize)
        .collect();
    let mut documents: Vec<_> = documents?
        .into_iter()
        .filter(|document| !document.is_null())
        .collect();
    let document = documents.pop().context("no document")?;
    let old = if comments.contains(&"transition") {
        documents.pop()
    } else {
        None
    };
    if !documents.is_empty() {
        bail!("{} documents too many", documents.len());
    }
    Ok(Case {
        file,
        old,
        document,
        problems,
    })
}
