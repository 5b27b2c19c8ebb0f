//! Every example is judged as its comments say, every rule has one that it rejects, and every field one that uses it.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking; helpers are no test functions"
)]

mod support;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use foreshore_crds::judge::{Judge, Kind};
use serde_json::Value;
use support::{Example, examples, examples_folder, header, place, schemas, walk};

fn updating() -> bool {
    std::env::var_os("FORESHORE_UPDATE").is_some()
}

#[test]
fn accepted_examples_are_accepted() {
    let judge = Judge::new().unwrap();
    let plant = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/examples");
    for example in examples(&examples_folder().join("accepted"))
        .into_iter()
        .chain(examples(&plant))
    {
        for document in example.documents {
            let ours = document["apiVersion"] == foreshore_crds::API_VERSION;
            if ours && let Err(problems) = judge.judge(&document, None) {
                panic!("{}: {problems:#?}", example.file.display());
            }
        }
    }
}

#[test]
fn rejected_examples_are_rejected_as_they_say() {
    let judge = Judge::new().unwrap();
    for example in examples(&examples_folder().join("rejected")) {
        let Example {
            file,
            expected,
            old,
            documents,
        } = &example;
        assert_eq!(documents.len(), 1, "{}", file.display());
        if let Some(old) = old {
            assert!(
                judge.judge(old, None).is_ok(),
                "{}: what is replaced is wrong itself",
                file.display()
            );
        }
        let problems = judge
            .judge(&documents[0], old.as_ref())
            .expect_err(&file.display().to_string());
        if updating() {
            let text = std::fs::read_to_string(file).unwrap();
            let body: Vec<_> = text.lines().skip_while(|line| line.starts_with('#')).collect();
            std::fs::write(
                file,
                format!("{}{}\n", header(&example, &problems), body.join("\n")),
            )
            .unwrap();
            continue;
        }
        let found: Vec<_> = problems
            .iter()
            .map(|problem| (problem.path.to_string(), problem.message()))
            .collect();
        assert_eq!(&found, expected, "{}", file.display());
        let folder = file
            .parent()
            .and_then(Path::file_name)
            .and_then(|name| name.to_str());
        assert_eq!(
            folder,
            documents[0]["kind"].as_str(),
            "{} lies in the wrong folder",
            file.display()
        );
    }
}

/// A rule at its place: kind, place of the node with the rule's own field path, and the rule.
type RuleAtPlace = (Kind, String, String);

fn rules_of_schemas() -> BTreeSet<RuleAtPlace> {
    let mut rules = BTreeSet::new();
    for (kind, schema) in schemas() {
        walk("", &schema, &mut |place, node| {
            for rule in node
                .get("x-kubernetes-validations")
                .and_then(Value::as_array)
                .into_iter()
                .flatten()
            {
                let field = rule.get("fieldPath").and_then(Value::as_str).unwrap_or_default();
                let place = format!("{place}{field}").trim_start_matches('.').to_owned();
                rules.insert((kind, place, rule["rule"].as_str().unwrap().to_owned()));
            }
        });
    }
    rules
}

fn rules_that_rejected() -> BTreeSet<RuleAtPlace> {
    let schemas: BTreeMap<_, _> = schemas().into_iter().collect();
    let mut fired = BTreeSet::new();
    for example in examples(&examples_folder().join("rejected")) {
        let document = &example.documents[0];
        let kind = Kind::parse(document["kind"].as_str().unwrap()).unwrap();
        let errors = kube_cel::validate(&schemas[&kind], document, example.old.as_ref());
        for error in errors.err().into_iter().flatten() {
            if error.kind == kube_cel::ErrorKind::ValidationFailure {
                fired.insert((kind, place(&error.field_path), error.rule));
            }
        }
    }
    fired
}

#[test]
fn every_rule_has_an_example_that_it_rejects() {
    let fired = rules_that_rejected();
    let without: Vec<_> = rules_of_schemas()
        .into_iter()
        .filter(|rule| !fired.contains(rule))
        .collect();
    assert!(
        without.is_empty(),
        "no example in crds/examples/rejected for {without:#?}"
    );
}

#[test]
fn every_message_tells_what_was_found_and_what_is_allowed() {
    for (kind, schema) in schemas() {
        walk("", &schema, &mut |place, node| {
            for rule in node
                .get("x-kubernetes-validations")
                .and_then(Value::as_array)
                .into_iter()
                .flatten()
            {
                let message = rule
                    .get("message")
                    .or_else(|| rule.get("messageExpression"))
                    .and_then(Value::as_str);
                let message = message.unwrap_or_default().trim_start_matches('\'');
                assert!(
                    message.starts_with("found") && message.contains(", allowed "),
                    "{kind} {place}: {message}"
                );
            }
        });
    }
}

#[test]
fn every_field_is_used_in_an_accepted_example() {
    let mut used = BTreeSet::new();
    let schemas: BTreeMap<_, _> = schemas().into_iter().collect();
    for example in examples(&examples_folder().join("accepted")) {
        for document in &example.documents {
            let kind = Kind::parse(document["kind"].as_str().unwrap()).unwrap();
            collect(document, &schemas[&kind], String::new(), kind, &mut used);
        }
    }
    let mut unused = Vec::new();
    for (kind, schema) in &schemas {
        walk("spec", &schema["properties"]["spec"], &mut |place, _| {
            if !used.contains(&(*kind, place.to_owned())) {
                unused.push(format!("{kind} {place}"));
            }
        });
    }
    assert!(
        unused.is_empty(),
        "no example in crds/examples/accepted uses {unused:#?}"
    );
}

fn collect(value: &Value, schema: &Value, place: String, kind: Kind, used: &mut BTreeSet<(Kind, String)>) {
    let dot = if place.is_empty() { "" } else { "." };
    match value {
        Value::Object(members) => {
            for (name, member) in members {
                if let Some(schema) = schema
                    .get("properties")
                    .and_then(|properties| properties.get(name))
                {
                    collect(member, schema, format!("{place}{dot}{name}"), kind, used);
                } else if let Some(schema) = schema.get("additionalProperties") {
                    collect(member, schema, format!("{place}{dot}*"), kind, used);
                }
            }
        }
        Value::Array(elements) => {
            for element in elements {
                collect(element, &schema["items"], format!("{place}[]"), kind, used);
            }
        }
        _ => {}
    }
    used.insert((kind, place));
}
