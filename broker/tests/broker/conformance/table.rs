//! The table of statements can't lie: no statement is left out, and every test that it names is there.

use std::{collections::BTreeMap, path::Path};

/// Sections of version 5.0 (Appendix B) with their first and last number; [MQTT-2.2.1-1] does not exist.
const V5: &[(&str, u32, u32)] = &[
    ("1.5.4", 1, 3),
    ("1.5.5", 1, 1),
    ("1.5.7", 1, 1),
    ("2.1.3", 1, 1),
    ("2.2.1", 2, 6),
    ("2.2.2", 1, 1),
    ("3.1.0", 1, 2),
    ("3.1.2", 1, 30),
    ("3.1.3", 1, 12),
    ("3.1.4", 1, 6),
    ("3.2.0", 1, 2),
    ("3.2.2", 1, 22),
    ("3.3.1", 1, 13),
    ("3.3.2", 1, 20),
    ("3.3.4", 1, 10),
    ("3.4.2", 1, 3),
    ("3.5.2", 1, 3),
    ("3.6.1", 1, 1),
    ("3.6.2", 1, 3),
    ("3.7.2", 1, 3),
    ("3.8.1", 1, 1),
    ("3.8.3", 1, 5),
    ("3.8.4", 1, 8),
    ("3.9.2", 1, 2),
    ("3.9.3", 1, 2),
    ("3.10.1", 1, 1),
    ("3.10.3", 1, 2),
    ("3.10.4", 1, 6),
    ("3.11.2", 1, 2),
    ("3.11.3", 1, 2),
    ("3.12.4", 1, 1),
    ("3.14.0", 1, 1),
    ("3.14.1", 1, 1),
    ("3.14.2", 1, 4),
    ("3.14.4", 1, 3),
    ("3.15.1", 1, 1),
    ("3.15.2", 1, 3),
    ("4.1.0", 1, 2),
    ("4.2.0", 1, 1),
    ("4.3.1", 1, 1),
    ("4.3.2", 1, 5),
    ("4.3.3", 1, 13),
    ("4.4.0", 1, 2),
    ("4.5.0", 1, 2),
    ("4.6.0", 1, 6),
    ("4.7.0", 1, 1),
    ("4.7.1", 1, 2),
    ("4.7.2", 1, 1),
    ("4.7.3", 1, 4),
    ("4.8.2", 1, 6),
    ("4.9.0", 1, 3),
    ("4.12.0", 1, 7),
    ("4.12.1", 1, 2),
    ("4.13.1", 1, 1),
    ("4.13.2", 1, 1),
    ("6.0.0", 1, 4),
];

/// Sections of version 3.1.1 (Appendix B).
const V311: &[(&str, u32, u32)] = &[
    ("1.5.3", 1, 3),
    ("2.2.2", 1, 2),
    ("2.3.1", 1, 7),
    ("3.1.0", 1, 2),
    ("3.1.2", 1, 24),
    ("3.1.3", 1, 11),
    ("3.1.4", 1, 5),
    ("3.2.0", 1, 1),
    ("3.2.2", 1, 6),
    ("3.3.1", 1, 12),
    ("3.3.2", 1, 3),
    ("3.3.4", 1, 1),
    ("3.3.5", 1, 2),
    ("3.6.1", 1, 1),
    ("3.8.1", 1, 1),
    ("3.8.3", 1, 4),
    ("3.8.4", 1, 6),
    ("3.9.3", 1, 2),
    ("3.10.1", 1, 1),
    ("3.10.3", 1, 2),
    ("3.10.4", 1, 6),
    ("3.12.4", 1, 1),
    ("3.14.1", 1, 1),
    ("3.14.4", 1, 3),
    ("4.1.0", 1, 2),
    ("4.3.1", 1, 1),
    ("4.3.2", 1, 2),
    ("4.3.3", 1, 2),
    ("4.4.0", 1, 1),
    ("4.5.0", 1, 2),
    ("4.6.0", 1, 6),
    ("4.7.1", 1, 3),
    ("4.7.2", 1, 1),
    ("4.7.3", 1, 4),
    ("4.8.0", 1, 2),
    ("6.0.0", 1, 4),
    ("7.0.0", 1, 2),
    ("7.1.1", 1, 1),
    ("7.1.2", 1, 1),
];

/// What may stand in a row instead of a test, each followed by the reason.
const MARKERS: [&str; 3] = ["client only: ", "not applicable: ", "missing: "];

fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// Whether a file holds a test of that name; `reference` is `path/of/the/file.rs::name`.
fn is_test(reference: &str) -> bool {
    let Some((file, name)) = reference.split_once("::") else {
        return false;
    };
    let Ok(source) = std::fs::read_to_string(root().join(file)) else {
        return false;
    };
    let lines: Vec<_> = source.lines().map(str::trim).collect();
    let is_it = |line: &str| {
        let declared = line.strip_prefix("async ").unwrap_or(line).strip_prefix("fn ");
        declared.is_some_and(|rest| rest.split('(').next() == Some(name))
    };
    lines.iter().position(|line| is_it(line)).is_some_and(|at| {
        let attributes = lines[..at].iter().rev().take_while(|line| line.starts_with("#["));
        let runs = |line: &str| line.starts_with("#[test") || line.starts_with("#[tokio::test");
        attributes.clone().any(|line| runs(line))
            && !attributes.clone().any(|line| line.starts_with("#[ignore"))
    })
}

/// Checks the rows of one version and counts them by what shows them.
fn check(version: &str, sections: &[(&str, u32, u32)], rows: &[Vec<&str>]) -> BTreeMap<String, usize> {
    let known: Vec<_> = sections
        .iter()
        .flat_map(|(section, first, last)| (*first..=*last).map(move |number| format!("{section}-{number}")))
        .collect();
    let found: Vec<_> = rows.iter().map(|row| row[0]).collect();
    assert_eq!(found, known, "statements of {version}, in order and each once");
    let mut counts = BTreeMap::new();
    for row in rows {
        let [number, statement, shown] = row[..] else {
            panic!("{version} {number}: a row has three columns", number = row[0])
        };
        assert!(!statement.is_empty(), "{version} {number}: no statement");
        let tests: Vec<_> = shown.split('`').skip(1).step_by(2).collect();
        for test in &tests {
            assert!(is_test(test), "{version} {number}: there is no test {test}");
        }
        let marker = MARKERS.into_iter().find(|marker| shown.starts_with(marker));
        assert!(
            marker.is_some() || !tests.is_empty(),
            "{version} {number}: nothing shows it: {shown:?}"
        );
        *counts
            .entry(
                marker
                    .unwrap_or("shown by tests")
                    .trim_end_matches(": ")
                    .to_owned(),
            )
            .or_default() += 1;
    }
    counts
}

#[test]
fn every_statement_has_a_row_and_every_test_that_a_row_names_exists() {
    let table = std::fs::read_to_string(root().join("tests/conformance/mqtt.md")).unwrap();
    for (version, sections) in [("MQTT 5.0", V5), ("MQTT 3.1.1", V311)] {
        let heading = format!("\n## {version}\n");
        let (_, part) = table.split_once(&heading).expect(version);
        let part = part.split("\n## ").next().unwrap();
        let rows: Vec<Vec<_>> = part
            .lines()
            .filter(|line| line.starts_with("| ") && !line.starts_with("| Number"))
            .map(|line| line.trim_matches('|').split('|').map(str::trim).collect())
            .collect();
        println!(
            "{version}: {} statements: {:?}",
            rows.len(),
            check(version, sections, &rows)
        );
    }
}

#[test]
fn the_check_finds_what_is_missing() {
    let sections = [("1.0.0", 1, 2)];
    let good = "`broker/tests/broker/conformance/table.rs::the_check_finds_what_is_missing`";
    let fails = |rows: &[[&str; 3]]| {
        let rows: Vec<_> = rows.iter().map(|row| row.to_vec()).collect();
        std::panic::catch_unwind(|| check("test", &sections, &rows)).is_err()
    };
    let first = ["1.0.0-1", "text", good];
    assert!(!fails(&[first, ["1.0.0-2", "text", "missing: a reason"]]));
    assert!(fails(&[first]));
    assert!(fails(&[first, first]));
    for second in [
        ["1.0.0-2", "", good],
        ["1.0.0-2", "text", ""],
        ["1.0.0-2", "text", "some words"],
        [
            "1.0.0-2",
            "text",
            "`broker/tests/broker/conformance/table.rs::check`",
        ],
        [
            "1.0.0-2",
            "text",
            "`broker/tests/broker/conformance/table.rs::no_such_test`",
        ],
        [
            "1.0.0-2",
            "text",
            "client only: `broker/tests/broker/no_such_file.rs::test`",
        ],
    ] {
        assert!(fails(&[first, second]), "{second:?}");
    }
}
