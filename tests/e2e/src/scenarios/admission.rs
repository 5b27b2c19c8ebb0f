//! What nobody may declare: every case of `crds/examples` is declared to the API server.

mod definitions;
mod table;

use std::{collections::BTreeSet, fmt::Write as _};

use anyhow::{Context, Result, bail};
use reqwest::Method;
use serde_json::Value;

use self::{
    definitions::{Definition, Rule},
    table::{Case, Problem},
};
use crate::{
    api::{Answer, Api},
    cluster::Cluster,
};

/// Namespace of this scenario.
const NAMESPACE: &str = "admission";

/// How often an object is read again that somebody wrote between reading and replacing it.
const CONFLICTS: usize = 20;

/// Declares all cases: what is right is taken, what is wrong is refused where and as the table says, and every rule of
/// every definition refused something.
pub(super) async fn every_rule(cluster: &Cluster) -> Result<()> {
    let definitions = definitions::read(&cluster.root.join("crds/manifests"))?;
    let cases = table::read(&cluster.root.join("crds/examples"))?;
    cluster.fresh_namespace(NAMESPACE).await?;
    let api = Api::reach().await?;
    let mut wrong = String::new();
    let mut told = BTreeSet::new();
    let (mut taken, mut refused) = (BTreeSet::new(), BTreeSet::new());
    for case in &cases {
        let file = case.file.display();
        let kind = case.document["kind"].as_str().unwrap_or_default();
        let definition = definitions
            .get(kind)
            .with_context(|| format!("{file}: no definition of {kind}"))?;
        let answer = declare(&api, definition, case)
            .await
            .with_context(|| file.to_string())?;
        let problems = complaints(definition, case, &answer);
        for problem in &problems {
            writeln!(wrong, "{file}: {problem}; the answer: {}", answer.message())?;
        }
        for (index, rule) in definition.rules.iter().enumerate() {
            if causes(&answer).any(|cause| is_of(rule, cause)) {
                told.insert((kind, index));
            }
        }
        if case.problems.is_empty() {
            taken.insert(kind);
        } else {
            refused.insert(kind);
        }
    }
    for (kind, definition) in &definitions {
        if !taken.contains(kind.as_str()) || !refused.contains(kind.as_str()) {
            writeln!(
                wrong,
                "{kind}: no case that is right, or none that is wrong, in crds/examples"
            )?;
        }
        for (index, rule) in definition.rules.iter().enumerate() {
            if !told.contains(&(kind.as_str(), index)) {
                writeln!(
                    wrong,
                    "{kind} {}: no case in crds/examples breaks {}",
                    rule.place, rule.rule
                )?;
            }
        }
    }
    cluster
        .kubectl(&["delete", "namespace", NAMESPACE, "--wait=false"])
        .await?;
    if !wrong.is_empty() {
        bail!("{wrong}");
    }
    Ok(())
}

/// Declares a case without its being kept; where it replaces another, that one is kept first.
async fn declare(api: &Api, definition: &Definition, case: &Case) -> Result<Answer> {
    let mut document = case.document.clone();
    let metadata = &mut document["metadata"];
    // Right ones may be meant for a namespace that is not here; wrong ones go where they say, as kubectl would send them.
    if case.problems.is_empty() || metadata["namespace"].is_null() {
        metadata["namespace"] = NAMESPACE.into();
    }
    let namespace = metadata["namespace"].as_str().context("namespace")?;
    let folder = format!(
        "/apis/{}/namespaces/{namespace}/{}",
        definition.version, definition.plural
    );
    let asked = "dryRun=All&fieldValidation=Strict";
    let Some(old) = &case.old else {
        return api
            .send(Method::POST, &format!("{folder}?{asked}"), Some(&document))
            .await;
    };
    let kept = api.send(Method::POST, &folder, Some(old)).await?;
    if !kept.is_taken() {
        bail!("what is replaced is refused: {}", kept.message());
    }
    let name = old["metadata"]["name"].as_str().context("name")?;
    for _ in 0..CONFLICTS {
        let kept = api.send(Method::GET, &format!("{folder}/{name}"), None).await?;
        document["metadata"]["resourceVersion"] = kept.body["metadata"]["resourceVersion"].clone();
        let answer = api
            .send(Method::PUT, &format!("{folder}/{name}?{asked}"), Some(&document))
            .await?;
        if answer.code != 409 {
            return Ok(answer);
        }
    }
    bail!("it is written again and again by others")
}

/// What is wrong with an answer.
fn complaints(definition: &Definition, case: &Case, answer: &Answer) -> Vec<String> {
    if case.problems.is_empty() && !answer.is_taken() {
        return vec!["it is right and was refused".to_owned()];
    }
    if !case.problems.is_empty() && answer.is_taken() {
        return vec!["it is wrong and was taken".to_owned()];
    }
    let untold = case
        .problems
        .iter()
        .filter(|problem| !is_told(definition, problem, answer));
    untold
        .map(|problem| format!("nobody says at {:?}: {}", problem.path, problem.message))
        .collect()
}

/// Whether an answer tells of a problem: where a rule was broken with its message, elsewhere, since the API server then
/// speaks in its own words, with the place.
fn is_told(definition: &Definition, problem: &Problem, answer: &Answer) -> bool {
    let at: Vec<_> = causes(answer)
        .filter(|cause| field(cause) == problem.path)
        .collect();
    if at.is_empty() {
        let no_namespace =
            problem.path == "metadata.namespace" && answer.body["details"]["kind"] == "namespaces";
        return no_namespace || (!problem.path.is_empty() && answer.message().contains(&problem.path));
    }
    let is_of_rule = |cause: &Value| definition.rules.iter().any(|rule| is_of(rule, cause));
    at.into_iter().any(|cause| {
        let message = cause["message"].as_str().unwrap_or_default();
        message.ends_with(&problem.message) || !is_of_rule(cause)
    })
}

/// Whether a cause is that a rule was broken.
fn is_of(rule: &Rule, cause: &Value) -> bool {
    let message = cause["message"].as_str().unwrap_or_default();
    place(field(cause)) == rule.place && message.ends_with(&rule.said)
}

/// Every single thing that an answer says is wrong.
fn causes(answer: &Answer) -> impl Iterator<Item = &Value> {
    answer.body["details"]["causes"].as_array().into_iter().flatten()
}

/// The field of a cause; empty for the object as a whole.
fn field(cause: &Value) -> &str {
    let field = cause["field"].as_str().unwrap_or_default();
    if field == "<nil>" { "" } else { field }
}

/// A path with every index taken out: `spec.items[].name`.
fn place(path: &str) -> String {
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
