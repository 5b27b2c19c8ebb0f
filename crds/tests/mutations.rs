//! Whatever bound of a schema is broken, the judge finds it, at its place; and what it lets through, the types hold.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking; helpers are no test functions"
)]

mod support;

use std::collections::BTreeMap;

use foreshore_crds::judge::{Judge, Kind};
use serde_json::Value;
use support::{examples, examples_folder, mutants::mutants, schemas};

#[test]
fn every_broken_bound_is_found_at_its_place() {
    let judge = Judge::new().unwrap();
    let schemas: BTreeMap<_, _> = schemas().into_iter().collect();
    let mut count = 0;
    for example in examples(&examples_folder().join("accepted")) {
        let document = &example.documents[0];
        let kind = Kind::parse(document["kind"].as_str().unwrap()).unwrap();
        for mutant in mutants(document, &schemas[&kind]) {
            let at = format!("{}: {}", example.file.display(), mutant.name);
            let problems = judge.judge(&mutant.document, None).expect_err(&at);
            assert!(
                problems.iter().any(|problem| problem.path == mutant.path),
                "{at}: {problems:#?}"
            );
            count += 1;
        }
    }
    assert!(count > 1000, "only {count} mutants");
}

#[test]
fn what_is_accepted_survives_its_type() {
    for example in examples(&examples_folder().join("accepted")) {
        let document = &example.documents[0];
        let accepted = foreshore_crds::judge::judge(document).unwrap();
        let back = match accepted.resource {
            foreshore_crds::judge::Resource::Device(object) => serde_json::to_value(object),
            foreshore_crds::judge::Resource::Asset(object) => serde_json::to_value(object),
            foreshore_crds::judge::Resource::Connector(object) => serde_json::to_value(object),
            foreshore_crds::judge::Resource::Broker(object) => serde_json::to_value(object),
            foreshore_crds::judge::Resource::BrokerPolicy(object) => serde_json::to_value(object),
            foreshore_crds::judge::Resource::Dataflow(object) => serde_json::to_value(object),
            foreshore_crds::judge::Resource::DataflowEndpoint(object) => serde_json::to_value(object),
            foreshore_crds::judge::Resource::Simulator(object) => serde_json::to_value(object),
            foreshore_crds::judge::Resource::Cloud(object) => serde_json::to_value(object),
        };
        let expected: &Value = &document["spec"];
        assert_eq!(&back.unwrap()["spec"], expected, "{}", example.file.display());
    }
}
