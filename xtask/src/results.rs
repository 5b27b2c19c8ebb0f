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

/// Writes `docs/results/DATE.md` from what the tests and the end-to-end tests printed.
pub(crate) fn write(tests: &[String], scenarios: &[String]) -> Result<PathBuf> {
    let suites = suites(tests.iter().map(String::as_str));
    let scenarios = self::scenarios(scenarios.iter().map(String::as_str));
    let now = Timestamp::now().strftime("%Y-%m-%d").to_string();
    let folder = shell::root().join("docs/results");
    fs::create_dir_all(&folder)?;
    let file = folder.join(format!("{now}.md"));
    fs::write(&file, page(&now, &suites, &scenarios)?)?;
    Ok(file)
}

fn page(date: &str, suites: &[Suite], scenarios: &[(&str, &str)]) -> Result<String> {
    let commit = shell::output(&mut shell::command("git", &["describe", "--always", "--dirty"]))?;
    let cores = available_parallelism().map_or(0, usize::from);
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let memory: u64 = memory
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))
        .and_then(|total| total.split_whitespace().next()?.parse().ok())
        .unwrap_or_default();
    let mut page = format!(
        "# Full tests, {date}\n\n`cargo xtask test --full` at commit {}, on {cores} cores and {} GiB.\n\n",
        commit.trim(),
        memory / 1024 / 1024
    );
    page.push_str("| tests of | passed | ignored | time |\n|---|---|---|---|\n");
    for suite in suites {
        writeln!(
            page,
            "| {} | {} | {} | {} |",
            suite.name, suite.passed, suite.ignored, suite.time
        )?;
    }
    let passed: u64 = suites.iter().map(|suite| suite.passed).sum();
    writeln!(page, "\n{passed} passed, none failed.")?;
    page.push_str("\n## In a Kubernetes of three nodes\n\n| scenario | result | time |\n|---|---|---|\n");
    for (name, result) in scenarios {
        match result
            .strip_prefix("ok (")
            .and_then(|rest| rest.strip_suffix(')'))
        {
            Some(time) => writeln!(page, "| {name} | passed | {time} |")?,
            None => writeln!(page, "| {name} | {result} | |")?,
        }
    }
    page.push_str(
        "\nThe program was built for arm64 too, and judged the manifests of the example under emulation. The broker held out \
         a soak of twenty minutes (`cargo xtask soak --debug`).\n",
    );
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
