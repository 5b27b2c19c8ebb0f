//! Dated results of the full tests, for `docs/results/`.

use std::{
    fmt::Write as _,
    fs,
    io::{BufRead, BufReader},
    path::PathBuf,
    process::Command,
    thread::available_parallelism,
};

use anyhow::{Context, Result, bail};
use jiff::Timestamp;

use crate::shell;

/// What one test binary said.
#[derive(Debug, PartialEq, Eq)]
struct Suite {
    name: String,
    passed: u64,
    ignored: u64,
    /// As the test harness printed it, such as `12.30s`.
    time: String,
}

/// Runs a command, shows what it prints, and returns that.
///
/// # Errors
/// When it fails.
pub(crate) fn watch(what: &str, command: &mut Command) -> Result<Vec<String>> {
    eprintln!("==> {what}");
    let (reader, writer) = std::io::pipe().context("a pipe")?;
    let mut child = command
        .stdout(writer.try_clone().context("a pipe")?)
        .stderr(writer)
        .spawn()
        .with_context(|| format!("{command:?} did not start"))?;
    // The command holds the writing end too; without this the reading end would never end.
    command
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null());
    let mut lines = Vec::new();
    for line in BufReader::new(reader).lines() {
        let line = line.with_context(|| format!("what {what} print"))?;
        eprintln!("{line}");
        lines.push(line);
    }
    let status = child.wait().with_context(|| format!("{command:?}"))?;
    if !status.success() {
        bail!("{what}: {command:?} ended with {status}");
    }
    Ok(lines)
}

/// A part of the full tests.
#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// All tests of all crates, at their full count.
    Tests,
    /// The broker under everything at once, for twenty minutes.
    Soak,
    /// The build for arm64.
    Arm64,
    /// The scenarios in a Kubernetes.
    Scenarios,
}

impl Part {
    const ALL: [Self; 4] = [Self::Tests, Self::Soak, Self::Arm64, Self::Scenarios];

    fn title(self) -> &'static str {
        match self {
            Self::Tests => "tests",
            Self::Soak => "a soak of the broker, twenty minutes (`cargo xtask soak --debug`)",
            Self::Arm64 => "a build for arm64, which judged the manifests of the example under emulation",
            Self::Scenarios => "scenarios in a Kubernetes of three nodes",
        }
    }
}

/// What a part that passed came to.
#[derive(Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
struct Passed {
    date: String,
    commit: String,
    /// What it printed.
    lines: Vec<String>,
}

/// Keeps what a part that passed has printed, and writes `docs/results/DATE.md` of all parts that passed today.
pub(crate) fn keep(part: Part, lines: &[String]) -> Result<PathBuf> {
    let date = Timestamp::now().strftime("%Y-%m-%d").to_string();
    let passed = Passed {
        date: date.clone(),
        commit: commit()?,
        lines: lines.to_owned(),
    };
    let folder = shell::built("full-tests")?;
    fs::create_dir_all(&folder)?;
    let file = |part: Part| folder.join(format!("{part:?}.json"));
    fs::write(file(part), serde_json::to_string(&passed)?)?;
    let today = Part::ALL.map(|part| {
        let kept: Passed = serde_json::from_str(&fs::read_to_string(file(part)).ok()?).ok()?;
        (kept.date == date).then_some(kept)
    });
    let results = shell::root().join("docs/results");
    fs::create_dir_all(&results)?;
    let results = results.join(format!("{date}.md"));
    fs::write(&results, page(&date, &machine(), today)?)?;
    Ok(results)
}

/// The commit that is checked out, and whether anything was changed since; the results of other parts are no such change.
fn commit() -> Result<String> {
    let git = |arguments: &[&str]| shell::output(&mut shell::command("git", arguments));
    let commit = git(&["describe", "--always"])?;
    let changed = git(&[
        "diff",
        "--name-only",
        "HEAD",
        "--",
        ":/",
        ":(top,exclude)docs/results",
    ])?;
    let dirty = if changed.is_empty() { "" } else { "-dirty" };
    Ok(format!("{}{dirty}", commit.trim()))
}

fn machine() -> String {
    let cores = available_parallelism().map_or(0, usize::from);
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let memory: u64 = memory
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))
        .and_then(|total| total.split_whitespace().next()?.parse().ok())
        .unwrap_or_default();
    format!("{cores} cores and {} GiB", memory / 1024 / 1024)
}

/// The results of a day: of each part, in the order of [`Part::ALL`], what it came to if it passed.
fn page(date: &str, machine: &str, parts: [Option<Passed>; 4]) -> Result<String> {
    let mut page = format!(
        "# Full tests, {date}\n\n`cargo xtask test --full` on {machine}.\n\n| part | passed at commit |\n|---|---|\n"
    );
    for (part, passed) in Part::ALL.into_iter().zip(&parts) {
        let commit = passed.as_ref().map_or("not run", |passed| &passed.commit);
        writeln!(page, "| {} | {commit} |", part.title())?;
    }
    let [tests, _, _, scenarios] = parts;
    if let Some(tests) = tests {
        page.push_str("\n## Tests\n\n| tests of | passed | ignored | time |\n|---|---|---|---|\n");
        let suites = suites(tests.lines.iter().map(String::as_str));
        for suite in &suites {
            writeln!(
                page,
                "| {} | {} | {} | {} |",
                suite.name, suite.passed, suite.ignored, suite.time
            )?;
        }
        let passed: u64 = suites.iter().map(|suite| suite.passed).sum();
        writeln!(page, "\n{passed} passed, none failed.")?;
    }
    if let Some(scenarios) = scenarios {
        page.push_str("\n## In a Kubernetes of three nodes\n\n| scenario | result | time |\n|---|---|---|\n");
        for (name, result) in self::scenarios(scenarios.lines.iter().map(String::as_str)) {
            match result
                .strip_prefix("ok (")
                .and_then(|rest| rest.strip_suffix(')'))
            {
                Some(time) => writeln!(page, "| {name} | passed | {time} |")?,
                None => writeln!(page, "| {name} | {result} | |")?,
            }
        }
    }
    Ok(page)
}

/// Reads what the end-to-end tests print of scenarios: name, and what came of it.
fn scenarios<'a>(lines: impl Iterator<Item = &'a str>) -> Vec<(&'a str, &'a str)> {
    lines
        .filter_map(|line| line.strip_prefix("test ")?.split_once(" ... "))
        .collect()
}

/// Reads what cargo and the test harness print: the name of a binary, and then its result.
fn suites<'a>(lines: impl Iterator<Item = &'a str>) -> Vec<Suite> {
    let mut suites = Vec::new();
    let mut name = String::new();
    for line in lines {
        let line = line.trim();
        if let Some(running) = line
            .strip_prefix("Running ")
            .or_else(|| line.strip_prefix("Doc-tests "))
        {
            name = crate_of(running);
        } else if let Some(result) = line.strip_prefix("test result: ok. ") {
            let count = |what: &str| {
                let part = result.split("; ").find(|part| part.ends_with(what));
                part.and_then(|part| part.split(' ').next()?.parse().ok())
                    .unwrap_or_default()
            };
            let suite = Suite {
                name: name.clone(),
                passed: count(" passed"),
                ignored: count(" ignored"),
                time: result.rsplit(' ').next().unwrap_or_default().to_owned(),
            };
            if suite.passed + suite.ignored > 0 {
                suites.push(suite);
            }
        }
    }
    suites
}

/// `foreshore_crds` of `unittests src/lib.rs (target/debug/deps/foreshore_crds-0123456789abcdef)`.
fn crate_of(running: &str) -> String {
    let binary = running
        .rsplit_once('/')
        .map_or(running, |(_, binary)| binary.trim_end_matches(')'));
    let name = binary.rsplit_once('-').map_or(binary, |(name, _)| name);
    if running.starts_with("tests/") {
        format!("{name} (integration)")
    } else {
        name.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_tells_what_passed_and_what_did_not_run() {
        let passed = |commit: &str, lines: &[&str]| {
            Some(Passed {
                date: "2026-01-02".to_owned(),
                commit: commit.to_owned(),
                lines: lines.iter().map(|line| (*line).to_owned()).collect(),
            })
        };
        let tests = [
            "     Running unittests src/lib.rs (deps/foreshore_crds-0a4d23f8c2b1e5d7)",
            "test result: ok. 57 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 2.31s",
        ];
        let scenarios = ["test install_to_data ... ok (14 s)"];
        let parts = [
            passed("aaa", &tests),
            None,
            passed("bbb", &[]),
            passed("ccc", &scenarios),
        ];
        let page = page("2026-01-02", "2 cores", parts).unwrap();
        for line in [
            "| tests | aaa |",
            "(`cargo xtask soak --debug`) | not run |",
            "under emulation | bbb |",
            "57 passed, none failed.",
            "| install_to_data | passed | 14 s |",
        ] {
            assert!(page.contains(line), "{line} is not in {page}");
        }
    }

    #[test]
    fn scenarios_are_read_from_between_other_lines() {
        let printed = "==> end-to-end tests
test install_to_data ... ok (14 s)
    4652 values of 12 points
test gitops ... LEFT OUT: it needs Argo CD";
        assert_eq!(
            scenarios(printed.lines()),
            [
                ("install_to_data", "ok (14 s)"),
                ("gitops", "LEFT OUT: it needs Argo CD")
            ]
        );
    }

    #[test]
    fn results_are_read_by_binary_and_empty_ones_left_out() {
        let printed = "
     Running unittests src/lib.rs (/somewhere/debug/deps/foreshore_crds-0a4d23f8c2b1e5d7)
running 2 tests
test result: ok. 57 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 2.31s
     Running tests/broker/main.rs (/somewhere/debug/deps/broker-ae2085628d81ae8b)
test result: ok. 50 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 6.06s
   Doc-tests foreshore_crds
test result: ok. 0 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s";
        let suite = |name: &str, passed, ignored, time: &str| Suite {
            name: name.to_owned(),
            passed,
            ignored,
            time: time.to_owned(),
        };
        assert_eq!(
            suites(printed.lines()),
            [
                suite("foreshore_crds", 57, 1, "2.31s"),
                suite("broker (integration)", 50, 0, "6.06s")
            ]
        );
    }
}
