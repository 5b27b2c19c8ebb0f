//! The judge and the API server's own code say the same of every example and every mutant: verdict and place, and for
//! rules the message.
//!
//! `FORESHORE_ORACLE` names the program built from `tests/oracle`; `cargo xtask test` builds it and sets the variable.
//! Without it nothing is compared.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking; helpers are no test functions"
)]

mod support;

use std::{
    collections::BTreeMap,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use foreshore_crds::judge::{Judge, Kind, Problem, ProblemKind};
use serde_json::{Value, json};
use support::{examples, examples_folder, mutants::mutants, schemas};

fn oracle() -> Option<PathBuf> {
    let oracle = std::env::var_os("FORESHORE_ORACLE").map(PathBuf::from);
    if oracle.is_none() {
        eprintln!("not compared: FORESHORE_ORACLE is not set");
    }
    oracle
}

fn ask(oracle: &Path, arguments: &[&str], input: &str) -> Value {
    let manifests = Path::new(env!("CARGO_MANIFEST_DIR")).join("manifests");
    let mut process = Command::new(oracle)
        .arg("-crds")
        .arg(manifests)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{}: {error}", oracle.display()));
    let mut stdin = process.stdin.take().unwrap();
    let input = input.to_owned();
    let writer = std::thread::spawn(move || stdin.write_all(input.as_bytes()));
    let output = process.wait_with_output().unwrap();
    writer.join().unwrap().unwrap();
    assert!(output.status.success(), "the oracle failed: {}", output.status);
    serde_json::from_slice(&output.stdout).unwrap()
}

/// One problem as the API server tells it.
struct Theirs {
    path: String,
    type_: String,
    detail: String,
}

fn verdicts(answer: &Value) -> BTreeMap<String, Vec<Theirs>> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let theirs = |problem: &Value| Theirs {
        path: text(&problem["path"]),
        type_: text(&problem["type"]),
        detail: text(&problem["detail"]),
    };
    let verdict = |verdict: &Value| {
        let problems: Vec<_> = verdict["problems"]
            .as_array()
            .unwrap()
            .iter()
            .map(theirs)
            .collect();
        assert_eq!(verdict["accepted"], problems.is_empty());
        (text(&verdict["id"]), problems)
    };
    answer["verdicts"]
        .as_array()
        .unwrap()
        .iter()
        .map(verdict)
        .collect()
}

/// Where they differ, in words; nothing where they agree.
fn disagreements(ours: &[Problem], theirs: &[Theirs]) -> Vec<String> {
    let mut found = Vec::new();
    // What the API server does not know, or does not limit.
    let ours: Vec<_> = ours
        .iter()
        .filter(|problem| !matches!(problem.kind, ProblemKind::Expression | ProblemKind::TooLarge))
        .collect();
    for problem in &ours {
        let path = problem.path.to_string();
        let same = |their: &&Theirs| {
            // Metadata that can't be decoded is told as a whole, and kind and version as one.
            their.path == path
                || (their.type_ == "Undecodable" && path.starts_with("metadata"))
                || (their.type_ == "UnknownKind" && problem.kind == ProblemKind::UnknownKind)
        };
        match theirs.iter().find(same) {
            None => found.push(format!("only we find: {problem}")),
            Some(_) if problem.kind == ProblemKind::Rule => {
                let message = problem.message();
                let told = |their: &Theirs| their.path == path && their.detail.ends_with(&message);
                if !theirs.iter().any(told) {
                    found.push(format!("only we say at {path}: {message}"));
                }
            }
            Some(_) => {}
        }
    }
    let structural = ours.iter().any(|problem| problem.kind != ProblemKind::Rule);
    for their in theirs {
        // The API server goes on to rules that then can't be worked out.
        let consequence = structural && their.detail.contains("evaluating rule");
        let known = ours.iter().any(|problem| {
            problem.path.to_string() == their.path
                || (their.type_ == "Undecodable" && problem.path.to_string().starts_with("metadata"))
                || (their.type_ == "UnknownKind" && problem.kind == ProblemKind::UnknownKind)
        });
        if !known && !consequence {
            found.push(format!(
                "only they find: {}: {} {}",
                their.path, their.type_, their.detail
            ));
        }
    }
    found
}

#[test]
fn the_api_server_takes_every_definition_and_its_cost() {
    let Some(oracle) = oracle() else { return };
    let answer = ask(&oracle, &[], "");
    let definitions = answer["definitions"].as_array().unwrap();
    assert_eq!(definitions.len(), schemas().len());
    for definition in definitions {
        assert_eq!(definition["problems"], json!([]), "{}", definition["kind"]);
        // Half of what is allowed: versions of Kubernetes reckon differently.
        let [cost, limit] = ["cost", "costLimit"].map(|key| definition[key].as_u64().unwrap());
        assert!(
            cost <= limit / 2,
            "{}: rules cost {cost} of {limit}",
            definition["kind"]
        );
        for rule in definition["rules"].as_array().unwrap() {
            let [cost, limit] = ["cost", "costLimit"].map(|key| rule[key].as_u64().unwrap());
            assert!(
                cost <= limit / 2,
                "{} {}: costs {cost} of {limit}",
                definition["kind"],
                rule["path"]
            );
        }
    }
}

#[test]
fn every_example_gets_the_same_verdict() {
    let Some(oracle) = oracle() else { return };
    let judge = Judge::new().unwrap();
    let folder = examples_folder();
    let plant = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/examples");
    let mut count = 0;
    for folder in [folder, plant] {
        let theirs = verdicts(&ask(&oracle, &["-examples", folder.to_str().unwrap()], ""));
        for example in examples(&folder) {
            let file = example.file.strip_prefix(&folder).unwrap().to_str().unwrap();
            for (index, document) in example.documents.iter().enumerate() {
                // A transition's document is the second of its file.
                let index = if example.old.is_some() { 1 } else { index };
                let theirs = &theirs[&format!("{file}#{index}")];
                let ours = judge
                    .judge(document, example.old.as_ref())
                    .err()
                    .unwrap_or_default();
                assert_eq!(disagreements(&ours, theirs), [""; 0], "{file}#{index}");
                count += 1;
            }
        }
    }
    assert!(count > 250, "only {count} examples");
}

#[test]
fn every_mutant_gets_the_same_verdict() {
    let Some(oracle) = oracle() else { return };
    let judge = Judge::new().unwrap();
    let schemas: BTreeMap<_, _> = schemas().into_iter().collect();
    let mut all = BTreeMap::new();
    let mut input = String::new();
    for example in examples(&examples_folder().join("accepted")) {
        let document = &example.documents[0];
        let kind = Kind::parse(document["kind"].as_str().unwrap()).unwrap();
        for mutant in mutants(document, &schemas[&kind]) {
            let id = format!("{} {}", example.file.display(), mutant.name);
            input.push_str(&json!({"id": id, "document": mutant.document}).to_string());
            input.push('\n');
            all.insert(id, mutant.document);
        }
    }
    let theirs = verdicts(&ask(&oracle, &["-stdin"], &input));
    let mut differing = Vec::new();
    for (id, document) in &all {
        let ours = judge.judge(document, None).err().unwrap_or_default();
        let found = disagreements(&ours, &theirs[id]);
        if !found.is_empty() {
            differing.push(format!("{id}: {found:#?}"));
        }
    }
    let shown: Vec<_> = differing.iter().take(20).collect();
    assert!(
        differing.is_empty(),
        "{} of {} differ: {shown:#?}",
        differing.len(),
        all.len()
    );
}
